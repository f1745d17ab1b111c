// Convolutions and their gradients on CPUs: direct.cc and winograd.cc, between
// which targets.cc chooses.
//
// y[p, f] = bias[f] + sum over tap, c of x[stride p + tap, c] kernel[tap, c, f]
// for stride 1 or K, perhaps with a ReLU behind it, and for stride K what is
// made of it by exchanging input and output: y[K p + K - 1 - tap, f] = bias[f]
// + sum over c of x[p, c] kernel[tap, c, f], as in jax.lax.conv_transpose
// ("spread").
//
// Arrays are float32: images [B, H, W, C], kernels [K, K, C, F]. Every output
// is summed in an order that depends on the shapes alone: results have the same
// bits for any number of threads. Sums over pixels are cut into parts of a few
// hundred terms (a row, where it is wider), which are then added, so that
// rounding errors stay small.
//
// Two algorithms: direct products for any shape and, for 3x3 kernels,
// Winograd's F(2x2, 3x3): 16 products for 4 output pixels in place of 36
// (Lavin and Gray, arXiv 1509.09308; B, G and A below are its matrices).
#ifndef UNET_JAX_KERNELS_CONVOLUTION_H_
#define UNET_JAX_KERNELS_CONVOLUTION_H_

#include <type_traits>

#include "common.h"

namespace unet {

// Rows of a register tile that is NV vectors wide: three quarters of the
// registers hold sums.
constexpr int TileRows(int nv) { return kRegisters * 3 / 4 / nv; }

// sum[r][v] += a[r * row_step + k * k_step] * b[k][v] over k < n: the product
// that all algorithms come down to.
template <int R, int NV>
INLINE void MultiplyAdd(Vector (&sum)[R][NV], const float* a, size_t row_step,
                        size_t k_step, const float* b, int n) {
  for (int k = 0; k < n; k++, a += k_step, b += NV * kLanes) {
    Vector row[NV];
    UNROLL for (int v = 0; v < NV; v++) row[v] = Load(b + v * kLanes);
    UNROLL for (int r = 0; r < R; r++) {
      float scale = a[r * row_step];
      UNROLL for (int v = 0; v < NV; v++) sum[r][v] += scale * row[v];
    }
  }
}

// Stores the sums of a tile, or adds them to what is there; rows of `out` are
// `step` floats apart.
template <int R, int NV>
INLINE void StoreTile(const Vector (&sum)[R][NV], float* out, size_t step) {
  UNROLL for (int v = 0; v < R * NV; v++) {
    Store(out + v / NV * step + v % NV * kLanes, sum[v / NV][v % NV]);
  }
}
template <int R, int NV>
INLINE void AddTile(const Vector (&sum)[R][NV], float* out) {
  UNROLL for (int v = 0; v < R * NV; v++) {
    float* at = out + v * kLanes;
    Store(at, Load(at) + sum[v / NV][v % NV]);
  }
}

// Calls f(std::integral_constant<int, n>()) for a run-time n of 1 to N.
template <int N, class F>
INLINE void WithConstant(int n, const F& f) {
  if constexpr (N > 0) {
    if (n == N) {
      f(std::integral_constant<int, N>());
    } else {
      WithConstant<N - 1>(n, f);
    }
  }
}

struct Shape {
  int B, H, W, C;    // Of the input.
  int K, pad, flip;  // flip: the kernel is [K, K, F, C], read backwards.
  int OH, OW, F;     // Of the output.
  int stride, C2;    // C2: of the C channels, those of a second array.
};

// What is done to sums before they are stored: bias, of a block's channels with
// zeros behind the last, and the ReLU.
struct Epilogue {
  const float* bias;
  bool relu;

  INLINE Vector operator()(Vector v, int f) const {
    v += Load(bias + f);
    return relu ? v < 0 ? Vector{} : v : v;  // NaN stays, as in JAX's.
  }
  template <int R, int NV>
  INLINE void Apply(Vector (&sum)[R][NV], int f) const {
    UNROLL for (int v = 0; v < R * NV; v++) {
      Vector& at = sum[v / NV][v % NV];
      at = (*this)(at, f + v % NV * kLanes);
    }
  }
};

// Output channels of Winograd's at a time, and the fewest for which it is used.
constexpr int kWinogradChannels = 16;

// Output channels f to f + block of a kernel [K, K, C, F]: [K, K, C, block],
// zeros behind the last channel.
inline void PackKernel(const float* kernel, int K, const Shape& s, int f,
                       int block, float* out) {
  const int taps = K * K, count = std::min(block, s.F - f);
  for (int t = 0; t < taps; t++) {
    for (int c = 0; c < s.C; c++, out += block) {
      for (int i = 0; i < count; i++) {
        out[i] = s.flip
                     ? kernel[((size_t)(taps - 1 - t) * s.F + f + i) * s.C + c]
                     : kernel[((size_t)t * s.C + c) * s.F + f + i];
      }
      std::fill(out + count, out + block, 0);
    }
  }
}

// y of x and a kernel. With `spread` above 1, K of the transposed form. The
// last `s.C2` channels of Winograd's input are those of `x2`.
void DirectForward(const Pool& pool, const float* x, const float* kernel,
                   const Epilogue& epilogue, float* y, const Shape& s,
                   int spread);
void WinogradForward(const Pool& pool, const float* x, const float* x2,
                     const float* kernel, const Epilogue& epilogue, float* y,
                     const Shape& s);

// The gradient of the kernel, of x and that of y.
void DirectKernelGradient(const Pool& pool, const float* x, const float* dy,
                          float* gradient, const Shape& s);
void WinogradKernelGradient(const Pool& pool, const float* x, const float* dy,
                            float* gradient, const Shape& s);

}  // namespace unet

#endif  // UNET_JAX_KERNELS_CONVOLUTION_H_
