// Convolutions of stride 1 and their gradients on CPUs, called by XLA's FFI.
//
// Arrays are float32: images [B, H, W, C], kernels [K, K, C, F]. Every output
// is summed in an order that depends on the shapes alone: results have the same
// bits for any number of threads. Sums are cut into parts of a few hundred
// terms, which are then added, so that rounding errors stay small.
//
// Two algorithms: direct products for any shape and, for 3x3 kernels,
// Winograd's F(2x2, 3x3): 16 products for 4 output pixels in place of 36
// (Lavin and Gray, arXiv 1509.09308; B, G and A below are its matrices).
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

// ---- Vectors -------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#else
#error "written for AVX2, AVX-512 and NEON"
#endif
typedef float Vector
    __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

INLINE Vector Load(const float* p) { return *(const Vector*)p; }
INLINE void Store(float* p, Vector v) { *(Vector*)p = v; }

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
  UNROLL for (int r = 0; r < R; r++) {
    UNROLL for (int v = 0; v < NV; v++) Store(out + r * step + v * kLanes, sum[r][v]);
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

// ---- Memory and threads --------------------------------------------------

// Memory that a thread keeps from call to call; each slot is one array.
float* Scratch(int slot, size_t floats) {
  struct Array {
    float* data = nullptr;
    size_t size = 0;
    ~Array() { free(data); }
  };
  static thread_local Array arrays[4];
  Array& array = arrays[slot];
  if (array.size < floats) {
    free(array.data);
    array.size = (floats + 63) / 16 * 16;
    array.data = (float*)aligned_alloc(64, array.size * sizeof(float));
    if (!array.data) {
      array.size = 0;
      throw std::bad_alloc();
    }
  }
  return array.data;
}

// Calls f(i) for all i < n, on the pool's threads and on this one. A lack of
// memory on any of them is thrown here: XLA turns it into an error.
template <class F>
void ParallelFor(ffi::ThreadPool& pool, int n, const F& f) {
  struct State {
    std::atomic<int> next{0}, done{0};
    std::atomic<bool> no_memory{false};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  int helpers = (int)std::min<int64_t>(pool.num_threads(), n) - 1;
  if (helpers <= 0) {
    for (int i = 0; i < n; i++) f(i);
    return;
  }
  // Shared, since a helper may start when all is done; f is not touched then.
  auto state = std::make_shared<State>();
  auto work = [state, n, &f] {
    int count = 0;
    for (int i; (i = state->next.fetch_add(1)) < n; count++) {
      try {
        f(i);
      } catch (const std::bad_alloc&) {
        state->no_memory = true;
      }
    }
    if (count && state->done.fetch_add(count) + count == n) {
      std::lock_guard<std::mutex> lock(state->mutex);
      state->all_done.notify_all();
    }
  };
  for (int i = 0; i < helpers; i++) pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done.load() == n; });
  if (state->no_memory) throw std::bad_alloc();
}

// Part i of n things cut into parts: where it begins.
INLINE int Cut(int64_t n, int i, int parts) { return (int)(n * i / parts); }

struct Shape {
  int B, H, W, C;     // Of the input.
  int K, pad, flip;   // flip: the kernel is [K, K, F, C], read backwards.
  int OH, OW, F;      // Of the output.
};

// ---- Direct: forward, and the gradient of the input ----------------------

// [K, K, C, F] to [F / block][K, K, C][block], zeros behind the last channel.
void PackKernel(ffi::ThreadPool& pool, const float* kernel, const Shape& s,
                int block, float* packed) {
  const int taps = s.K * s.K;
  ParallelFor(pool, (s.F + block - 1) / block, [&](int fb) {
    float* out = packed + (size_t)fb * taps * s.C * block;
    for (int t = 0; t < taps; t++) {
      for (int c = 0; c < s.C; c++) {
        for (int i = 0, f = fb * block; i < block; i++, f++) {
          *out++ = f >= s.F ? 0
                   : s.flip
                       ? kernel[((size_t)(taps - 1 - t) * s.F + f) * s.C + c]
                       : kernel[((size_t)t * s.C + c) * s.F + f];
        }
      }
    }
  });
}

// Copies a row of an image with zeros around it, as [groups][W + 2 pad][g]:
// one panel for each group of g channels, `panel` floats apart.
void CopyRow(const float* image, const Shape& s, int h, int g, size_t panel,
             float* out) {
  const size_t side = (size_t)s.pad * g, row = (size_t)s.W * g;
  const int groups = s.C / g;
  for (int q = 0; q < groups; q++) {
    float* o = out + q * panel;
    if (h < 0 || h >= s.H) {
      memset(o, 0, (row + 2 * side) * sizeof(float));
    } else {
      memset(o, 0, side * sizeof(float));
      memset(o + side + row, 0, side * sizeof(float));
    }
  }
  if (h < 0 || h >= s.H) return;
  const float* in = image + (size_t)h * s.W * s.C;
  if (groups == 1) {
    memcpy(out + side, in, row * sizeof(float));
    return;
  }
  for (int w = 0; w < s.W; w++) {
    for (int q = 0; q < groups; q++, in += g) {
      float* o = out + q * panel + side + (size_t)w * g;
      for (int c = 0; c < g; c++) o[c] = in[c];
    }
  }
}

// output[p, f] = sum of input[p + tap, c] * kernel[tap, c, f].
template <int NV>
void DirectForward(ffi::ThreadPool& pool, const float* x, const float* kernel,
                   float* y, const Shape& s) {
  constexpr int kBlock = NV * kLanes, kTile = TileRows(NV);
  const int blocks = (s.F + kBlock - 1) / kBlock, padded = s.W + 2 * s.pad;
  const size_t row = (size_t)padded * s.C;
  std::vector<float> packed((size_t)blocks * s.K * s.K * s.C * kBlock);
  PackKernel(pool, kernel, s, kBlock, packed.data());
  // Bands of rows whose padded input stays in a core's cache.
  int bands = std::max<int64_t>(1, 24576 / (int64_t)row - s.K + 1);
  bands = (s.OH + bands - 1) / bands;
  const int tiles = (s.OW + kTile - 1) / kTile;
  ParallelFor(pool, s.B * bands, [&](int task) {
    const int b = task / bands, i = task % bands;
    const int h0 = Cut(s.OH, i, bands), h1 = Cut(s.OH, i + 1, bands);
    float* in = Scratch(0, row * (h1 - h0 + s.K - 1));
    for (int r = 0; r < h1 - h0 + s.K - 1; r++) {
      CopyRow(x + (size_t)b * s.H * s.W * s.C, s, h0 - s.pad + r, s.C, 0,
              in + r * row);
    }
    for (int fb = 0; fb < blocks; fb++) {
      const float* k = &packed[(size_t)fb * s.K * s.K * s.C * kBlock];
      const int count = std::min(kBlock, s.F - fb * kBlock);
      for (int h = h0; h < h1; h++) {
        for (int t = 0; t < tiles; t++) {
          const int w0 = Cut(s.OW, t, tiles), w1 = Cut(s.OW, t + 1, tiles);
          const float* a = in + (h - h0) * row + (size_t)w0 * s.C;
          float* out = y + (((size_t)b * s.OH + h) * s.OW + w0) * s.F;
          out += fb * kBlock;
          WithConstant<kTile>(w1 - w0, [&](auto pixels) {
            Vector sum[pixels][NV] = {};
            for (int ky = 0; ky < s.K; ky++) {
              MultiplyAdd(sum, a + ky * row, s.C, 1,
                          k + (size_t)ky * s.K * s.C * kBlock, s.K * s.C);
            }
            if (count == kBlock) return StoreTile(sum, out, s.F);
            for (int p = 0; p < pixels; p++) {
              memcpy(out + (size_t)p * s.F, sum[p], count * sizeof(float));
            }
          });
        }
      }
    }
  });
}

// ---- Direct: gradient of the kernel --------------------------------------

// Channels f to f + N of [pixels, F], zeros behind the last one: [pixels, N].
template <int N>
void CopyChannels(const float* in, int pixels, int F, int f, float* out) {
  const int count = std::min(N, F - f);
  for (in += f; pixels > 0; pixels--, in += F, out += N) {
    if (count == N) {
      memcpy(out, in, N * sizeof(float));
    } else {
      memcpy(out, in, count * sizeof(float));
      memset(out + count, 0, (N - count) * sizeof(float));
    }
  }
}

// gradient[ky, kx, c, f] = sum over pixels of x[p + (ky, kx), c] * dy[p, f].
//
// The input is copied in panels of few channels, so that a window of K taps of
// a panel is K * g numbers in a row: with those as rows of register tiles, all
// of them and a block of output channels are one product over the pixels.
template <int NV>
void DirectKernelGradient(ffi::ThreadPool& pool, const float* x,
                          const float* dy, float* gradient, const Shape& s) {
  constexpr int kBlock = NV * kLanes, kTile = TileRows(NV), kGroup = kTile / 3;
  const int g = s.C % kGroup == 0 ? kGroup : s.C, groups = s.C / g;
  const int window = s.K * g, tiles = (window + kTile - 1) / kTile;
  const int blocks = (s.F + kBlock - 1) / kBlock, padded = s.W + 2 * s.pad;
  // Bands of about 256 pixels, whose sums are added to those of the part.
  const int rows = std::min(s.OH, std::max(1, 256 / s.OW));
  const int bands = (s.OH + rows - 1) / rows;
  const size_t size = (size_t)blocks * groups * s.K * window * kBlock;
  // Parts for the threads: fewer where the kernel is large.
  const int parts = std::max<int64_t>(
      1, std::min<int64_t>({s.B * bands, 16, (int64_t)(4194304 / size)}));
  const int slices = std::min(blocks, std::max(1, 16 / parts));
  std::vector<float> sums(parts * size);
  ParallelFor(pool, parts * slices, [&](int task) {
    const int part = task / slices, slice = task % slices;
    const int fb0 = Cut(blocks, slice, slices);
    const int fb1 = Cut(blocks, slice + 1, slices);
    const size_t row = (size_t)padded * g, panel = row * (rows + s.K - 1);
    float* in = Scratch(0, panel * groups);
    float* out_gradient = Scratch(1, (size_t)rows * s.OW * kBlock);
    for (int i = Cut(s.B * bands, part, parts);
         i < Cut(s.B * bands, part + 1, parts); i++) {
      const int image = i / bands, h0 = Cut(s.OH, i % bands, bands);
      const int h1 = Cut(s.OH, i % bands + 1, bands);
      for (int r = 0; r < h1 - h0 + s.K - 1; r++) {
        CopyRow(x + (size_t)image * s.H * s.W * s.C, s, h0 - s.pad + r, g, panel,
                in + r * row);
      }
      const float* band = dy + ((size_t)image * s.OH + h0) * s.OW * s.F;
      const int pixels = (h1 - h0) * s.OW;
      for (int fb = fb0; fb < fb1; fb++) {
        const float* b = s.F == kBlock ? band : out_gradient;
        if (s.F != kBlock) {
          CopyChannels<kBlock>(band, pixels, s.F, fb * kBlock, out_gradient);
        }
        for (int j = 0; j < groups * s.K * tiles; j++) {
          const int q = j / (s.K * tiles), ky = j / tiles % s.K, t = j % tiles;
          const int j0 = Cut(window, t, tiles), j1 = Cut(window, t + 1, tiles);
          const float* a = in + q * panel + ky * row + j0;
          float* to = &sums[part * size];
          to += ((((size_t)fb * groups + q) * s.K + ky) * window + j0) * kBlock;
          WithConstant<kTile>(j1 - j0, [&](auto n) {
            Vector sum[n][NV] = {};
            for (int h = 0; h < h1 - h0; h++) {
              MultiplyAdd(sum, a + h * row, 1, g,
                          b + (size_t)h * s.OW * kBlock, s.OW);
            }
            AddTile(sum, to);
          });
        }
      }
    }
  });
  // Adds the parts: [part][block][group][ky][kx, c] to [ky][kx][c][f].
  ParallelFor(pool, groups, [&](int q) {
    for (int fb = 0; fb < blocks; fb++) {
      const int count = std::min(kBlock, s.F - fb * kBlock);
      for (int ky = 0; ky < s.K; ky++) {
        for (int j = 0; j < window; j++) {
          const size_t at =
              ((((size_t)fb * groups + q) * s.K + ky) * window + j) * kBlock;
          float total[kBlock] = {};
          for (int p = 0; p < parts; p++) {
            for (int f = 0; f < kBlock; f++) total[f] += sums[p * size + at + f];
          }
          const int kx = j / g, c = q * g + j % g;
          memcpy(gradient + (((size_t)ky * s.K + kx) * s.C + c) * s.F +
                     fb * kBlock,
                 total, count * sizeof(float));
        }
      }
    }
  });
}

// ---- Winograd ------------------------------------------------------------

// Output channels at a time, and the register tile that this makes.
constexpr int kBlock = 16, kWide = kBlock / kLanes, kTile = TileRows(kWide);
// Floats between the 16 components of a transform, beyond their size: powers
// of two would fall into the same lines of the cache.
constexpr int kSkew = 16;

// 2x2 blocks of output pixels, in the order of the images and their rows.
struct Blocks {
  int rows, columns, count;
  explicit Blocks(const Shape& s)
      : rows((s.OH + 1) / 2), columns((s.OW + 1) / 2),
        count(s.B * rows * columns) {}
};

// Block t: its image and its first pixel.
struct Block {
  int b, h, w;
  Block(const Blocks& blocks, int t)
      : b(t / (blocks.rows * blocks.columns)),
        h(2 * (t / blocks.columns % blocks.rows)), w(2 * (t % blocks.columns)) {
  }
};

alignas(64) const float kZeros[512] = {};

// B^T d B of the 4x4 input pixels below blocks t0 to t1, channels c0 to
// c0 + channels: [16][block][channels], `step` floats apart.
void TransformInput(const float* x, const Shape& s, const Blocks& blocks,
                    int t0, int t1, int c0, int channels, float* out,
                    size_t step) {
  for (int t = t0; t < t1; t++, out += channels) {
    const Block block(blocks, t);
    const float* d[4][4];
    const float* image = x + (size_t)block.b * s.H * s.W * s.C + c0;
    UNROLL for (int i = 0; i < 16; i++) {
      const int h = block.h + i / 4 - s.pad, w = block.w + i % 4 - s.pad;
      const bool inside = h >= 0 && h < s.H && w >= 0 && w < s.W;
      d[i / 4][i % 4] = inside ? image + ((size_t)h * s.W + w) * s.C : kZeros;
    }
    for (int c = 0; c < channels; c += kLanes) {
      Vector m[4][4];
      UNROLL for (int j = 0; j < 4; j++) {
        const Vector d0 = Load(d[0][j] + c), d1 = Load(d[1][j] + c);
        const Vector d2 = Load(d[2][j] + c), d3 = Load(d[3][j] + c);
        m[0][j] = d0 - d2, m[1][j] = d1 + d2;
        m[2][j] = d2 - d1, m[3][j] = d1 - d3;
      }
      UNROLL for (int i = 0; i < 4; i++) {
        float* o = out + i * 4 * step + c;
        Store(o, m[i][0] - m[i][2]);
        Store(o + step, m[i][1] + m[i][2]);
        Store(o + 2 * step, m[i][2] - m[i][1]);
        Store(o + 3 * step, m[i][1] - m[i][3]);
      }
    }
  }
}

// G g G^T of packed kernels: [F / 16][3, 3, C][16] to [F / 16][16][C][16].
void TransformKernel(ffi::ThreadPool& pool, const float* packed, const Shape& s,
                     float* out) {
  const size_t step = (size_t)s.C * kBlock;
  ParallelFor(pool, s.F / kBlock, [&](int fb) {
    for (size_t i = 0; i < step; i += kLanes) {
      const float* g = packed + fb * 9 * step + i;
      float* o = out + fb * 16 * step + i;
      Vector r[4][3];
      UNROLL for (int j = 0; j < 3; j++) {
        const Vector g0 = Load(g + j * step), g1 = Load(g + (3 + j) * step);
        const Vector g2 = Load(g + (6 + j) * step);
        r[0][j] = g0, r[1][j] = 0.5f * (g0 + g1 + g2);
        r[2][j] = 0.5f * (g0 - g1 + g2), r[3][j] = g2;
      }
      UNROLL for (int k = 0; k < 4; k++, o += 4 * step) {
        Store(o, r[k][0]);
        Store(o + step, 0.5f * (r[k][0] + r[k][1] + r[k][2]));
        Store(o + 2 * step, 0.5f * (r[k][0] - r[k][1] + r[k][2]));
        Store(o + 3 * step, r[k][2]);
      }
    }
  });
}

// A^T m A of block t: [16][kBlock], `step` floats apart, to 2x2 pixels.
INLINE void StoreBlock(const float* m, size_t step, const Shape& s,
                       const Blocks& blocks, int t, int fb, float* y) {
  const Block block(blocks, t);
  const size_t down = (size_t)s.OW * s.F;
  const bool right = block.w + 1 < s.OW, below = block.h + 1 < s.OH;
  float* out = y + (((size_t)block.b * s.OH + block.h) * s.OW + block.w) * s.F;
  out += fb * kBlock;
  UNROLL for (int v = 0; v < kBlock; v += kLanes) {
    Vector r[2][4];
    UNROLL for (int j = 0; j < 4; j++) {
      const Vector m0 = Load(m + j * step + v);
      const Vector m1 = Load(m + (4 + j) * step + v);
      const Vector m2 = Load(m + (8 + j) * step + v);
      const Vector m3 = Load(m + (12 + j) * step + v);
      r[0][j] = m0 + m1 + m2, r[1][j] = m1 - m2 - m3;
    }
    Store(out + v, r[0][0] + r[0][1] + r[0][2]);
    if (right) Store(out + s.F + v, r[0][1] - r[0][2] - r[0][3]);
    if (below) Store(out + down + v, r[1][0] + r[1][1] + r[1][2]);
    if (right && below) {
      Store(out + down + s.F + v, r[1][1] - r[1][2] - r[1][3]);
    }
  }
}

void WinogradForward(ffi::ThreadPool& pool, const float* x, const float* kernel,
                     float* y, const Shape& s) {
  const Blocks blocks(s);
  std::vector<float> packed((size_t)9 * s.C * s.F);
  std::vector<float> transformed((size_t)16 * s.C * s.F);
  PackKernel(pool, kernel, s, kBlock, packed.data());
  TransformKernel(pool, packed.data(), s, transformed.data());
  // Blocks at a time: their transformed input stays in a core's cache.
  const int chunk = std::max(16, std::min(64, 65536 / (16 * s.C)));
  ParallelFor(pool, (blocks.count + chunk - 1) / chunk, [&](int task) {
    const int t0 = task * chunk, t1 = std::min(blocks.count, t0 + chunk);
    const size_t in_step = (size_t)chunk * s.C + kSkew;
    const size_t out_step = (size_t)chunk * kBlock + kSkew;
    float* in = Scratch(0, 16 * in_step);
    float* out = Scratch(1, 16 * out_step);
    TransformInput(x, s, blocks, t0, t1, 0, s.C, in, in_step);
    const int tiles = (t1 - t0 + kTile - 1) / kTile;
    for (int fb = 0; fb < s.F / kBlock; fb++) {
      for (int k = 0; k < 16; k++) {
        const float* b = &transformed[((size_t)fb * 16 + k) * s.C * kBlock];
        for (int i = 0; i < tiles; i++) {
          const int p0 = Cut(t1 - t0, i, tiles), p1 = Cut(t1 - t0, i + 1, tiles);
          WithConstant<kTile>(p1 - p0, [&](auto n) {
            Vector sum[n][kWide] = {};
            MultiplyAdd(sum, in + k * in_step + (size_t)p0 * s.C, s.C, 1, b,
                        s.C);
            StoreTile(sum, out + k * out_step + p0 * kBlock, kBlock);
          });
        }
      }
      for (int t = t0; t < t1; t++) {
        StoreBlock(out + (t - t0) * kBlock, out_step, s, blocks, t, fb, y);
      }
    }
  });
}

// A dy A^T of blocks t0 to t1, channels f to f + kBlock: [16][block][kBlock].
void TransformGradient(const float* dy, const Shape& s, const Blocks& blocks,
                       int t0, int t1, int f, float* out, size_t step) {
  for (int t = t0; t < t1; t++, out += kBlock) {
    const Block block(blocks, t);
    const bool right = block.w + 1 < s.OW, below = block.h + 1 < s.OH;
    const float* d =
        dy + (((size_t)block.b * s.OH + block.h) * s.OW + block.w) * s.F + f;
    const float* d01 = right ? d + s.F : kZeros;
    const float* d10 = below ? d + (size_t)s.OW * s.F : kZeros;
    const float* d11 = right && below ? d10 + s.F : kZeros;
    UNROLL for (int v = 0; v < kBlock; v += kLanes) {
      const Vector top[2] = {Load(d + v), Load(d01 + v)};
      const Vector low[2] = {Load(d10 + v), Load(d11 + v)};
      Vector r[4][2];
      UNROLL for (int j = 0; j < 2; j++) {
        r[0][j] = top[j], r[1][j] = top[j] + low[j];
        r[2][j] = top[j] - low[j], r[3][j] = -low[j];
      }
      UNROLL for (int i = 0; i < 4; i++) {
        float* o = out + i * 4 * step + v;
        Store(o, r[i][0]);
        Store(o + step, r[i][0] + r[i][1]);
        Store(o + 2 * step, r[i][0] - r[i][1]);
        Store(o + 3 * step, -r[i][1]);
      }
    }
  }
}

// G^T u G of sums u [parts][16][kBlock channels ...], see below, to 3x3 taps.
INLINE void StoreTaps(const float* sums, size_t part_step, int parts,
                      size_t step, float* out, size_t tap) {
  Vector u[4][4] = {};
  for (int p = 0; p < parts; p++, sums += part_step) {
    UNROLL for (int k = 0; k < 16; k++) u[k / 4][k % 4] += Load(sums + k * step);
  }
  Vector r[3][4];
  UNROLL for (int j = 0; j < 4; j++) {
    const Vector plus = 0.5f * (u[1][j] + u[2][j]);
    r[0][j] = u[0][j] + plus, r[1][j] = 0.5f * (u[1][j] - u[2][j]);
    r[2][j] = plus + u[3][j];
  }
  UNROLL for (int i = 0; i < 3; i++) {
    const Vector plus = 0.5f * (r[i][1] + r[i][2]);
    Store(out + (i * 3 + 0) * tap, r[i][0] + plus);
    Store(out + (i * 3 + 1) * tap, 0.5f * (r[i][1] - r[i][2]));
    Store(out + (i * 3 + 2) * tap, plus + r[i][3]);
  }
}

void WinogradKernelGradient(ffi::ThreadPool& pool, const float* x,
                            const float* dy, float* gradient, const Shape& s) {
  const Blocks blocks(s);
  // Squares of the gradient that stay in a core's cache.
  const int cs = s.C % 64 == 0 ? 64 : s.C, fs = s.F % 64 == 0 ? 64 : s.F;
  const int squares = (s.C / cs) * (s.F / fs), tiles = (cs + kTile - 1) / kTile;
  const int chunk = std::max(32, std::min(128, 2048 / std::max(cs, fs)));
  const int chunks = (blocks.count + chunk - 1) / chunk;
  const int parts = std::max(1, std::min(chunks, 16 / squares));
  const size_t step = (size_t)cs * kBlock, square = (size_t)16 * cs * fs;
  std::vector<float> sums(square * squares * parts);
  ParallelFor(pool, parts * squares, [&](int task) {
    const int part = task / squares, ci = task % squares / (s.F / fs);
    const int fi = task % (s.F / fs);
    const size_t in_step = (size_t)chunk * cs + kSkew;
    const size_t out_step = (size_t)chunk * kBlock + kSkew;
    float* in = Scratch(0, 16 * in_step);
    float* out = Scratch(1, 16 * out_step);
    for (int i = Cut(chunks, part, parts); i < Cut(chunks, part + 1, parts);
         i++) {
      const int t0 = i * chunk, t1 = std::min(blocks.count, t0 + chunk);
      TransformInput(x, s, blocks, t0, t1, ci * cs, cs, in, in_step);
      for (int fb = 0; fb < fs / kBlock; fb++) {
        TransformGradient(dy, s, blocks, t0, t1, fi * fs + fb * kBlock, out,
                          out_step);
        for (int j = 0; j < 16 * tiles; j++) {
          const int k = j / tiles, c0 = Cut(cs, j % tiles, tiles);
          const int c1 = Cut(cs, j % tiles + 1, tiles);
          float* to = &sums[task * square + (fb * 16 + k) * step + c0 * kBlock];
          WithConstant<kTile>(c1 - c0, [&](auto n) {
            Vector sum[n][kWide] = {};
            MultiplyAdd(sum, in + k * in_step + c0, 1, cs, out + k * out_step,
                        t1 - t0);
            AddTile(sum, to);
          });
        }
      }
    }
  });
  ParallelFor(pool, squares, [&](int i) {
    const int ci = i / (s.F / fs), fi = i % (s.F / fs);
    for (int fb = 0; fb < fs / kBlock; fb++) {
      for (size_t j = 0; j < step; j += kLanes) {
        const int c = ci * cs + j / kBlock;
        StoreTaps(&sums[i * square + fb * 16 * step + j], squares * square,
                  parts, step,
                  gradient + (size_t)c * s.F + fi * fs + fb * kBlock +
                      j % kBlock,
                  (size_t)s.C * s.F);
      }
    }
  });
}

// ---- Targets of the FFI --------------------------------------------------

using Buffer = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;

// Channels fit Winograd's tiles, and the buffers of zeros and of the caches.
bool FitsWinograd(const Shape& s) {
  return s.K == 3 && s.C % kBlock == 0 && s.F % kBlock == 0 && s.C <= 512 &&
         s.F <= 512;
}

Shape MakeShape(const Buffer& x, int64_t K, int64_t F, int64_t pad, bool flip) {
  auto d = x.dimensions();
  Shape s{(int)d[0], (int)d[1], (int)d[2], (int)d[3], (int)K, (int)pad, flip,
          0, 0, (int)F};
  s.OH = s.H + 2 * s.pad - s.K + 1;
  s.OW = s.W + 2 * s.pad - s.K + 1;
  return s;
}

// Arrays of nothing (no image, no channel): what there is to fill is zero.
bool FillEmpty(const Buffer& in, Buffer out) {
  if (in.element_count() && out.element_count()) return false;
  std::fill_n(out.typed_data(), out.element_count(), 0.0f);
  return true;
}

ffi::Error Forward(ffi::ThreadPool pool, Buffer x, Buffer kernel, Result y,
                   int64_t pad, bool flip, bool winograd) {
  if (FillEmpty(x, *y)) return ffi::Error::Success();
  auto d = kernel.dimensions();
  const Shape s = MakeShape(x, d[0], d[flip ? 2 : 3], pad, flip);
  auto* f = winograd && FitsWinograd(s) ? WinogradForward
            : s.F > kLanes              ? DirectForward<2>
                                        : DirectForward<1>;
  f(pool, x.typed_data(), kernel.typed_data(), y->typed_data(), s);
  return ffi::Error::Success();
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Buffer x, Buffer dy,
                          Result gradient, int64_t pad, bool winograd) {
  if (FillEmpty(dy, *gradient)) return ffi::Error::Success();
  auto d = gradient->dimensions();
  const Shape s = MakeShape(x, d[0], d[3], pad, false);
  auto* f = winograd && FitsWinograd(s) ? WinogradKernelGradient
            : s.F > kLanes              ? DirectKernelGradient<2>
                                        : DirectKernelGradient<1>;
  f(pool, x.typed_data(), dy.typed_data(), gradient->typed_data(), s);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    UnetConvolution, Forward,
    ffi::Ffi::Bind()
        .Ctx<ffi::ThreadPool>()
        .Arg<Buffer>()
        .Arg<Buffer>()
        .Ret<Buffer>()
        .Attr<int64_t>("pad")
        .Attr<bool>("flip")
        .Attr<bool>("winograd"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(UnetConvolutionKernelGradient, KernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Buffer>()
                                  .Arg<Buffer>()
                                  .Ret<Buffer>()
                                  .Attr<int64_t>("pad")
                                  .Attr<bool>("winograd"));
