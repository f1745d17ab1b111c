// Sums over the pixels of each channel, for batch norm and its gradient.
//
// XLA takes a pass over the array for each sum, and writes the terms to memory
// first; these read each array once. Arrays are float32 [pixels, C]. Some
// hundred terms are summed in float32 and these sums in float64, in an order
// that depends on the shapes alone.
#include <array>
#include <numeric>

#include "common.h"

namespace {

// Pixels in a row of whole vectors, so long that no sum waits for its last term.
int PixelsPerRow(int C) {
  const int least = kLanes / std::gcd(C, kLanes);
  return least * std::max(1, 64 / (C * least));
}

// Two sums over the pixels of each channel of arrays [pixels, C]: [2, C].
//
// `terms(in, i)` returns the two terms of each pixel and channel of a vector:
// in[n] are the numbers of array n, i is the place in the row. Zeros add nothing.
template <size_t N, class Terms>
std::vector<double> SumPixels(ffi::ThreadPool& pool,
                              const std::array<const float*, N>& arrays,
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
          // The last row ends in zeros.
          float* copy = last + n * width;
          std::fill(copy, copy + width, 0);
          std::copy(row[n], arrays[n] + size, copy);
          row[n] = copy;
        }
        for (int i = 0; i < width; i += kLanes) {
          Vector in[N];
          UNROLL for (size_t n = 0; n < N; n++) in[n] = Load(row[n] + i);
          const std::array<Vector, 2> two = terms(in, i);
          Store(few + i, Load(few + i) + two[0]);
          Store(few + width + i, Load(few + width + i) + two[1]);
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

// Mean and variance of each channel: [2, C].
ffi::Error Moments(ffi::ThreadPool pool, Buffer x, Result moments) {
  const int C = x.dimensions().back();
  const int64_t pixels = x.element_count() / C;
  auto sums = SumPixels<1>(pool, {x.typed_data()}, pixels, C,
                           [](const Vector* in, int) INLINE_LAMBDA {
                             return std::array<Vector, 2>{in[0], in[0] * in[0]};
                           });
  float* out = moments->typed_data();
  for (int c = 0; c < C; c++) {
    const double mean = sums[c] / pixels;
    out[c] = mean;
    out[C + c] = std::max(0.0, sums[C + c] / pixels - mean * mean);
  }
  return ffi::Error::Success();
}

// Sums of dz and of dz * (x - mean): [2, C]. dz is dy, with `relu` only where
// scale * x + shift is positive.
ffi::Error GradientSums(ffi::ThreadPool pool, Buffer x, Buffer dy, Buffer mean,
                        Buffer scale, Buffer shift, Result result, bool relu) {
  const int C = x.dimensions().back(), together = PixelsPerRow(C);
  // Of the channels, repeated for the pixels of a row.
  std::vector<float> m, a, b;
  for (int i = 0; i < together; i++) {
    m.insert(m.end(), mean.typed_data(), mean.typed_data() + C);
    a.insert(a.end(), scale.typed_data(), scale.typed_data() + C);
    b.insert(b.end(), shift.typed_data(), shift.typed_data() + C);
  }
  auto sums = SumPixels<2>(
      pool, {x.typed_data(), dy.typed_data()}, x.element_count() / C, C,
      [&](const Vector* in, int i) INLINE_LAMBDA {
        Vector dz = in[1];
        if (relu) dz = Load(&a[i]) * in[0] + Load(&b[i]) > 0 ? dz : Vector{};
        return std::array<Vector, 2>{dz, dz * (in[0] - Load(&m[i]))};
      });
  std::copy(sums.begin(), sums.end(), result->typed_data());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(UnetMoments, Moments,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(UnetNormGradientSums, GradientSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<bool>("relu"));
