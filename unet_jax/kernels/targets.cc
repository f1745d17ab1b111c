// The targets of XLA's FFI.
#include "adamw.h"
#include "batch_norm.h"
#include "convolution.h"
#include "max_pool.h"
#include "pages.h"
#include "xla/ffi/api/ffi.h"

namespace unet {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

Pool MakePool(ffi::ThreadPool& pool) {
  return {(int)pool.num_threads(),
          [&pool](std::function<void()> f) { pool.Schedule(std::move(f)); }};
}

// Whether Winograd's is the algorithm: channels fill vectors and, nearly, its
// blocks, and fit its row of zeros and a core's cache.
bool FitsWinograd(const Shape& s) {
  return s.K == 3 && s.stride == 1 && s.C % kLanes == 0 && s.F % kLanes == 0 &&
         std::min(s.C, s.F) >= kWinogradChannels && std::max(s.C, s.F) <= 1024;
}

Shape MakeShape(const Buffer& x, int64_t K, int64_t F, int64_t stride,
                int64_t pad, bool flip) {
  auto d = x.dimensions();
  Shape s{};
  s.B = d[0], s.H = d[1], s.W = d[2], s.C = d[3], s.F = F;
  s.K = K, s.pad = pad, s.flip = flip, s.stride = stride;
  s.OH = (s.H + 2 * s.pad - s.K) / s.stride + 1;
  s.OW = (s.W + 2 * s.pad - s.K) / s.stride + 1;
  return s;
}

// Arrays of nothing (no image, no channel): what there is to fill is zero.
bool FillEmpty(const Buffer& in, Buffer out) {
  if (in.element_count() && out.element_count()) return false;
  std::fill_n(out.typed_data(), out.element_count(), 0.0f);
  return true;
}

// The channels of x and `x2`, or with an empty one of x alone.
ffi::Error Convolution(ffi::ThreadPool pool, Buffer x, Buffer x2, Buffer kernel,
                       Buffer bias, Result y, int64_t stride, int64_t pad,
                       bool flip, bool spread, bool relu) {
  if (FillEmpty(x, *y)) return ffi::Error::Success();
  UseHugePages(y->typed_data(), y->size_bytes());
  auto d = kernel.dimensions();
  Shape s = MakeShape(x, d[0], d[flip ? 2 : 3], stride, pad, flip);
  if (spread) s.stride = 1, s.OH = s.H * stride, s.OW = s.W * stride;
  if (x2.element_count()) {
    s.C2 = x2.dimensions().back();
    s.C += s.C2;
    if (s.C % kWinogradChannels || s.C2 % kWinogradChannels ||
        !FitsWinograd(s)) {
      return ffi::Error::InvalidArgument("no convolution of two arrays");
    }
  }
  // Without a bias, zeros; some more, for whole vectors.
  std::vector<float> padded(s.F + 2 * kLanes);
  std::copy_n(bias.typed_data(), bias.element_count(), padded.begin());
  const Pool p = MakePool(pool);
  const Epilogue epilogue{padded.data(), relu};
  if (!spread && FitsWinograd(s)) {
    WinogradForward(p, x.typed_data(), x2.typed_data(), kernel.typed_data(),
                    epilogue, y->typed_data(), s);
  } else {
    DirectForward(p, x.typed_data(), kernel.typed_data(), epilogue,
                  y->typed_data(), s, spread ? stride : 1);
  }
  return ffi::Error::Success();
}

ffi::Error ConvolutionKernelGradient(ffi::ThreadPool pool, Buffer x, Buffer dy,
                                     Result gradient, int64_t stride,
                                     int64_t pad) {
  if (FillEmpty(dy, *gradient)) return ffi::Error::Success();
  auto d = gradient->dimensions();
  const Shape s = MakeShape(x, d[0], d[3], stride, pad, false);
  auto* f = FitsWinograd(s) ? WinogradKernelGradient : DirectKernelGradient;
  f(MakePool(pool), x.typed_data(), dy.typed_data(), gradient->typed_data(), s);
  return ffi::Error::Success();
}

// [2, C] of x [B, N, C].
ffi::Error MomentsTarget(ffi::ThreadPool pool, Buffer x, Result moments) {
  const int C = x.dimensions().back();
  Moments(MakePool(pool), x.typed_data(), x.element_count() / C, C,
          moments->typed_data());
  return ffi::Error::Success();
}

ffi::Error GradientSumsTarget(ffi::ThreadPool pool, Buffer x, Buffer dy,
                              Buffer mean, Buffer sign, Buffer limit,
                              Result sums, bool relu) {
  const int C = x.dimensions().back();
  GradientSums(MakePool(pool), x.typed_data(), dy.typed_data(),
               x.element_count() / C, C, mean.typed_data(), sign.typed_data(),
               limit.typed_data(), relu, sums->typed_data());
  return ffi::Error::Success();
}

ffi::Error MaxPoolGradientTarget(ffi::ThreadPool pool, Buffer x, Buffer dskip,
                                 Buffer dy, Result dx) {
  auto d = x.dimensions();
  MaxPoolGradient(MakePool(pool), x.typed_data(), dskip.typed_data(),
                  dy.typed_data(), dx->typed_data(), d[0], d[1], d[2], d[3]);
  return ffi::Error::Success();
}

// Arguments: the rates; of all parameters, gradients, values, first and second
// moments and, perhaps, averages. Results: the norm, and what has changed.
ffi::Error AdamWTarget(ffi::ThreadPool pool, ffi::RemainingArgs in,
                       ffi::RemainingRets out, ffi::Span<const float> decay,
                       double b1, double b2, float epsilon, float max_norm) {
  const size_t count = decay.size(), groups = (out.size() - 1) / count;
  const float* rates = in.get<Buffer>(0)->typed_data();
  std::vector<Leaf> leaves(count);
  for (size_t i = 0; i < count; i++) {
    const Buffer gradient = *in.get<Buffer>(1 + i);
    float* changed[4] = {};
    for (size_t j = 0; j < groups; j++) {
      const Buffer old = *in.get<Buffer>(1 + (j + 1) * count + i);
      changed[j] = (*out.get<Buffer>(1 + j * count + i))->typed_data();
      if (changed[j] != old.typed_data()) {
        memcpy(changed[j], old.typed_data(), old.size_bytes());
      }
    }
    leaves[i] = {gradient.typed_data(),
                 changed[0],
                 changed[1],
                 changed[2],
                 changed[3],
                 (int64_t)gradient.element_count(),
                 decay[i]};
  }
  const AdamW step{b1,       b2,       epsilon,  max_norm,
                   rates[0], rates[1], rates[2], rates[3]};
  *(*out.get<Buffer>(0))->typed_data() = step.Update(MakePool(pool), leaves);
  return ffi::Error::Success();
}

// Context and arrays of a target.
template <int N>
auto Bind() {
  if constexpr (N == 0) {
    return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>();
  } else {
    return Bind<N - 1>().template Arg<Buffer>();
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(UnetConvolution, Convolution,
                              Bind<4>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("pad")
                                  .Attr<bool>("flip")
                                  .Attr<bool>("spread")
                                  .Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    UnetConvolutionKernelGradient, ConvolutionKernelGradient,
    Bind<2>().Ret<Buffer>().Attr<int64_t>("stride").Attr<int64_t>("pad"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(UnetMoments, MomentsTarget,
                              Bind<1>().Ret<Buffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(UnetNormGradientSums, GradientSumsTarget,
                              Bind<5>().Ret<Buffer>().Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(UnetMaxPoolGradient, MaxPoolGradientTarget,
                              Bind<3>().Ret<Buffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(UnetAdamW, AdamWTarget,
                              Bind<0>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const float>>("decay")
                                  .Attr<double>("b1")
                                  .Attr<double>("b2")
                                  .Attr<float>("epsilon")
                                  .Attr<float>("max_norm"));

}  // namespace unet
