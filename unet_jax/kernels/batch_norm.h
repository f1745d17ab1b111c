// Sums over the pixels of each channel of arrays [pixels, C], for batch norm.
#ifndef UNET_JAX_KERNELS_BATCH_NORM_H_
#define UNET_JAX_KERNELS_BATCH_NORM_H_

#include "common.h"

namespace unet {

// Mean and variance of each channel: [2, C].
void Moments(const Pool& pool, const float* x, int64_t pixels, int C,
             float* moments);

// Sums of dz and of dz * (x - mean): [2, C]. dz is dy, with `relu` only where
// sign * x is above the limit.
void GradientSums(const Pool& pool, const float* x, const float* dy,
                  int64_t pixels, int C, const float* mean, const float* sign,
                  const float* limit, bool relu, float* sums);

}  // namespace unet

#endif  // UNET_JAX_KERNELS_BATCH_NORM_H_
