// A step of the optimiser AdamW on all parameters at once.
#ifndef UNET_JAX_KERNELS_ADAMW_H_
#define UNET_JAX_KERNELS_ADAMW_H_

#include "common.h"

namespace unet {

// A parameter: all but the gradient are changed in place.
struct Leaf {
  const float* gradient;
  float *value, *first, *second;  // The moments.
  float* average;                 // Of the value; may be null.
  int64_t size;
  float decay;
};

// What holds for all parameters at a step.
struct AdamW {
  double b1, b2;  // What the moments keep; 1 - b would round.
  float epsilon;
  float max_norm;                  // Of all gradients together; 0: any.
  float rate;                      // Of learning.
  float correction1, correction2;  // The moments are divided by.
  float average_rate;

  // Returns the norm of the gradients, before they are scaled to `max_norm`.
  float Update(const Pool& pool, const std::vector<Leaf>& leaves) const;
};

}  // namespace unet

#endif  // UNET_JAX_KERNELS_ADAMW_H_
