// XLA takes a pass over the array for each sum, and writes the terms to memory
// first; these read each array once. Arrays are float32 [pixels, C]. Some
// hundred terms are summed in float32 and these sums in float64, in an order
// that depends on the shapes alone.
#include "batch_norm.h"

#include <array>
#include <numeric>

namespace unet {
namespace {

struct Two {
  Vector first, second;
};

// Pixels in a row of whole vectors, so long that no sum waits for the one
// before it.
int PixelsPerRow(int C) {
  const int least = kLanes / std::gcd(C, kLanes);
  return least * std::max(1, 64 / (C * least));
}

// Two sums over the pixels of each channel of arrays [pixels, C]: [2, C].
//
// `terms(in, i)` returns the two terms of each pixel and channel of a vector:
// in[n] are the numbers of array n, i is the place in the row. Rows of numbers
// whose terms are 0 fill the last row.
template <size_t N, class Terms>
std::vector<double> SumPixels(const Pool& pool,
                              const std::array<const float*, N>& arrays,
                              const std::array<const float*, N>& neutral,
                              int64_t pixels, int C, const Terms& terms) {
  const int width = C * PixelsPerRow(C);
  const int64_t size = pixels * C, rows = (size + width - 1) / width;
  constexpr int kRows = 128;  // Whose sums are float32.
  const int parts = std::min<int64_t>(64, (rows + kRows - 1) / kRows);
  std::vector<double> sums((size_t)parts * 2 * width);
  ParallelFor(pool, parts, [&](int part) {
    float *few = Scratch(0, 2 * width), *last = Scratch(1, N * width);
    const int64_t end = rows * (part + 1) / parts;
    for (int64_t first = rows * part / parts; first < end; first += kRows) {
      std::fill(few, few + 2 * width, 0);
      for (int64_t r = first; r < std::min(end, first + kRows); r++) {
        const float* row[N];
        for (size_t n = 0; n < N; n++) {
          row[n] = arrays[n] + r * width;
          if (size - r * width >= width) continue;
          float* copy = last + n * width;
          std::copy(neutral[n], neutral[n] + width, copy);
          std::copy(row[n], arrays[n] + size, copy);
          row[n] = copy;
        }
        for (int i = 0; i < width; i += kLanes) {
          Vector in[N];
          UNROLL for (size_t n = 0; n < N; n++) in[n] = Load(row[n] + i);
          const Two two = terms(in, i);
          Store(few + i, Load(few + i) + two.first);
          Store(few + width + i, Load(few + width + i) + two.second);
        }
      }
      for (int i = 0; i < 2 * width; i++) sums[part * 2 * width + i] += few[i];
    }
  });
  std::vector<double> total(2 * C);
  for (size_t i = 0; i < sums.size(); i++) {
    total[i / width % 2 * C + i % width % C] += sums[i];
  }
  return total;
}

// The numbers of the channels, for each pixel of a row.
std::vector<float> Repeat(const float* numbers, int C) {
  std::vector<float> row;
  for (int i = 0; i < PixelsPerRow(C); i++) {
    row.insert(row.end(), numbers, numbers + C);
  }
  return row;
}

}  // namespace

void Moments(const Pool& pool, const float* x, int64_t pixels, int C,
             float* moments) {
  // Of the differences to the first pixel: a mean that is large beside the
  // deviation would leave few digits of it.
  const auto first = Repeat(x, C);
  auto sums = SumPixels<1>(pool, {x}, {first.data()}, pixels, C,
                           [&](const Vector* in, int i) {
                             const Vector d = in[0] - Load(&first[i]);
                             return Two{d, d * d};
                           });
  for (int c = 0; c < C; c++) {
    const double mean = sums[c] / pixels;
    moments[c] = x[c] + mean;
    // In this order NaN stays.
    moments[C + c] = std::max(sums[C + c] / pixels - mean * mean, 0.0);
  }
}

void GradientSums(const Pool& pool, const float* x, const float* dy,
                  int64_t pixels, int C, const float* mean, const float* sign,
                  const float* limit, bool relu, float* result) {
  const auto m = Repeat(mean, C), a = Repeat(sign, C), b = Repeat(limit, C);
  const std::vector<float> zeros(m.size());
  auto sums =
      SumPixels<2>(pool, {x, dy}, {m.data(), zeros.data()}, pixels, C,
                   [&](const Vector* in, int i) {
                     Vector dz = in[1];
                     if (relu)
                       dz = Load(&a[i]) * in[0] > Load(&b[i]) ? dz : Vector{};
                     return Two{dz, dz * (in[0] - Load(&m[i]))};
                   });
  std::copy(sums.begin(), sums.end(), result);
}

}  // namespace unet
