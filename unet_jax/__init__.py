"""A U-Net of configurable depth for image segmentation, in JAX."""

import time

# Of the program, as nearly as its slow imports matter (`time.perf_counter`).
STARTED = time.perf_counter()
