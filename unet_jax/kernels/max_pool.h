// The gradient of a 2x2 max pool whose input is also used elsewhere, as a skip.
#ifndef UNET_JAX_KERNELS_MAX_POOL_H_
#define UNET_JAX_KERNELS_MAX_POOL_H_

#include "common.h"

namespace unet {

// dx = dskip + the gradient of the pool's input x [B, H, W, C] from dy [B, H/2,
// W/2, C]: of equal values the first in row-major order gets it. dx may be
// dskip; C fills vectors.
void MaxPoolGradient(const Pool& pool, const float* x, const float* dskip,
                     const float* dy, float* dx, int B, int H, int W, int C);

}  // namespace unet

#endif  // UNET_JAX_KERNELS_MAX_POOL_H_
