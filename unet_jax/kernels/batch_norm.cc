// Sums over the pixels of each channel, for batch norm and its gradient.
//
// XLA takes a pass over the array for each sum, and writes the terms to memory
// first; these read each array once. Arrays are float32 [pixels, C]. Some
// hundred terms are summed in float32 and these sums in float64, in an order
// that depends on the shapes alone.
#include "common.h"

namespace {

// Two sums over the pixels of each channel, as two arrays [C] in a row.
//
// `add(i, n, sums)` adds the two terms of numbers i to i + n of the array, which
// begin at the first channel, to sums[0 to n] and sums[width to width + n].
template <class Add>
std::vector<double> SumPixels(ffi::ThreadPool& pool, int64_t pixels, int C,
                              const Add& add) {
  // Several pixels make a row, so that no sum waits for the term before it.
  const int together = std::max(1, 64 / C), width = C * together;
  const int64_t rows = (pixels + together - 1) / together;
  constexpr int kRows = 128;  // Whose sums are float32.
  const int parts = std::min<int64_t>(64, (rows + kRows - 1) / kRows);
  std::vector<double> sums((size_t)parts * 2 * width);
  ParallelFor(pool, parts, [&](int part) {
    float* few = Scratch(0, 2 * width);
    const int64_t end = rows * (part + 1) / parts;
    for (int64_t first = rows * part / parts; first < end; first += kRows) {
      std::fill(few, few + 2 * width, 0);
      for (int64_t r = first; r < std::min(end, first + kRows); r++) {
        add(r * width, std::min<int64_t>(width, pixels * C - r * width), few,
            width);
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
ffi::Error Moments(ffi::ThreadPool pool, Buffer array, Result moments) {
  const int C = array.dimensions().back();
  const int64_t pixels = array.element_count() / C;
  const float* x = array.typed_data();
  auto sums = SumPixels(
      pool, pixels, C, [x](int64_t i, int n, float* sums, int width) {
        for (int j = 0; j < n; j++) {
          sums[j] += x[i + j];
          sums[width + j] += x[i + j] * x[i + j];
        }
      });
  for (int c = 0; c < C; c++) {
    const double mean = sums[c] / pixels;
    moments->typed_data()[c] = mean;
    moments->typed_data()[C + c] =
        std::max(0.0, sums[C + c] / pixels - mean * mean);
  }
  return ffi::Error::Success();
}

// Sums of dz and of dz * (x - mean): [2, C]. dz is dy, with `relu` only where
// scale * x + shift is positive.
ffi::Error GradientSums(ffi::ThreadPool pool, Buffer array, Buffer gradient,
                        Buffer mean, Buffer scale, Buffer shift, Result result,
                        bool relu) {
  const int C = array.dimensions().back(), together = std::max(1, 64 / C);
  const float *x = array.typed_data(), *dy = gradient.typed_data();
  // Per channel, repeated for the pixels of a row.
  std::vector<float> repeated;
  for (const Buffer& b : {mean, scale, shift}) {
    for (int i = 0; i < together; i++) {
      repeated.insert(repeated.end(), b.typed_data(), b.typed_data() + C);
    }
  }
  const float *m = repeated.data(), *a = m + C * together,
              *b = a + C * together;
  auto sum = [&](auto masks) {
    return SumPixels(
        pool, array.element_count() / C, C,
        [=](int64_t i, int n, float* sums, int width) {
          for (int j = 0; j < n; j++) {
            float dz = dy[i + j];
            if (masks) dz = a[j] * x[i + j] + b[j] > 0 ? dz : 0;
            sums[j] += dz;
            sums[width + j] += dz * (x[i + j] - m[j]);
          }
        });
  };
  auto sums = relu ? sum(std::true_type()) : sum(std::false_type());
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
