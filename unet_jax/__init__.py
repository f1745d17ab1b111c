"""A U-Net of configurable depth for image segmentation, in JAX."""
