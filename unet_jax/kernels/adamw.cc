// XLA compiles four loops for each parameter, which takes a third of the time
// to compile a training step.
#include "adamw.h"

#include <cmath>

namespace unet {
namespace {

// Some thousand numbers of a parameter.
struct Part {
  const Leaf* leaf;
  int64_t begin, end;
};

std::vector<Part> Parts(const std::vector<Leaf>& leaves) {
  constexpr int64_t kSize = 8192;
  std::vector<Part> parts;
  for (const Leaf& leaf : leaves) {
    for (int64_t i = 0; i < leaf.size; i += kSize) {
      parts.push_back({&leaf, i, std::min(leaf.size, i + kSize)});
    }
  }
  return parts;
}

double SumOfSquares(const float* x, int64_t size) {
  Vector sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    UNROLL for (int j = 0; j < 4; j++) {
      const Vector v = Load(x + i + j * kLanes);
      sums[j] += v * v;
    }
  }
  double total = 0;
  for (; i < size; i++) total += (double)x[i] * x[i];
  for (int j = 0; j < 4 * kLanes; j++) total += sums[j / kLanes][j % kLanes];
  return total;
}

// A step on n numbers; `s` is a copy, which no array can be.
void Step(AdamW s, float factor, float decay, int64_t n,
          const float* __restrict gradient, float* __restrict value,
          float* __restrict first, float* __restrict second) {
  const float b1 = s.b1, b2 = s.b2, new1 = 1 - s.b1, new2 = 1 - s.b2;
  for (int64_t i = 0; i < n; i++) {
    const float g = factor * gradient[i];
    first[i] = new1 * g + b1 * first[i];
    second[i] = new2 * (g * g) + b2 * second[i];
    const float root = std::sqrt(second[i] / s.correction2);
    const float step = first[i] / s.correction1 / (root + s.epsilon);
    value[i] -= s.rate * (step + decay * value[i]);
  }
}

void Approach(float rate, int64_t n, const float* __restrict value,
              float* __restrict average) {
  for (int64_t i = 0; i < n; i++) average[i] += rate * (value[i] - average[i]);
}

}  // namespace

float AdamW::Update(const Pool& pool, const std::vector<Leaf>& leaves) const {
  const std::vector<Part> parts = Parts(leaves);
  std::vector<double> squares(parts.size());
  ParallelFor(pool, parts.size(), [&](int i) {
    const Part& part = parts[i];
    squares[i] =
        SumOfSquares(part.leaf->gradient + part.begin, part.end - part.begin);
  });
  double total = 0;
  for (double square : squares) total += square;
  const float norm = std::sqrt(total);
  // NaN stays, as in JAX's minimum.
  const float factor =
      max_norm > 0 && !(norm <= max_norm) ? max_norm / norm : 1;
  ParallelFor(pool, parts.size(), [&](int i) {
    const Leaf& leaf = *parts[i].leaf;
    const int64_t at = parts[i].begin, n = parts[i].end - at;
    Step(*this, factor, leaf.decay, n, leaf.gradient + at, leaf.value + at,
         leaf.first + at, leaf.second + at);
    if (leaf.average) {
      Approach(average_rate, n, leaf.value + at, leaf.average + at);
    }
  });
  return norm;
}

}  // namespace unet
