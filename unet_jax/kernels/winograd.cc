// Convolutions of 3x3 kernels by Winograd's F(2x2, 3x3).
//
// Y = A^T ((G g G^T) * (B^T d B)) A, for 2x2 pixels Y of the output and the 4x4
// pixels d of the input below them.
#include "convolution.h"

namespace unet {
namespace {

// Floats between the 16 components of a transform, beyond their size: powers
// of two would fall into the same lines of the cache.
constexpr int kSkew = 16;

// Output channels at a time: two vectors of them load least for each product,
// and zeros fill the last block.
constexpr int kNarrow = kWinogradChannels, kWide = std::max(16, 2 * kLanes);
int OutputBlocks(int F, int block) { return (F + block - 1) / block; }

struct Free {
  void operator()(float* p) const { free(p); }
};
using Floats = std::unique_ptr<float[], Free>;

// Whole lines of the cache, which vectors do not straddle.
Floats Allocate(size_t floats) {
  const size_t size = (floats * sizeof(float) + 63) / 64 * 64;
  Floats array((float*)aligned_alloc(64, size));
  if (!array) throw std::bad_alloc();
  return array;
}

// 2x2 blocks of output pixels, in the order of the images and their rows.
struct Blocks {
  int rows, columns, count;
  explicit Blocks(const Shape& s)
      : rows((s.OH + 1) / 2),
        columns((s.OW + 1) / 2),
        count(s.B * rows * columns) {}
};

// Block t: its image and its first pixel.
struct Block {
  int b, h, w;
  Block(const Blocks& blocks, int t)
      : b(t / (blocks.rows * blocks.columns)),
        h(2 * (t / blocks.columns % blocks.rows)),
        w(2 * (t % blocks.columns)) {}
  INLINE void Next(const Blocks& blocks) {
    if ((w += 2) < 2 * blocks.columns) return;
    w = 0;
    if ((h += 2) < 2 * blocks.rows) return;
    h = 0;
    b++;
  }
};

alignas(64) const float kZeros[1024] = {};

// B^T d B of the pixels (i, j) at pixel(i, j): [16], `step` floats apart, of
// vectors of channels, `next` floats apart.
template <class Pixel>
INLINE void TransformBlock(const Pixel& pixel, int channels, float* out,
                           size_t next, size_t step) {
  for (int c = 0; c < channels; c += kLanes, out += next) {
    Vector m[4][4];
    UNROLL for (int j = 0; j < 4; j++) {
      const Vector d0 = Load(pixel(0, j) + c), d1 = Load(pixel(1, j) + c);
      const Vector d2 = Load(pixel(2, j) + c), d3 = Load(pixel(3, j) + c);
      m[0][j] = d0 - d2, m[1][j] = d1 + d2;
      m[2][j] = d2 - d1, m[3][j] = d1 - d3;
    }
    UNROLL for (int i = 0; i < 4; i++) {
      float* o = out + i * 4 * step;
      Store(o, m[i][0] - m[i][2]);
      Store(o + step, m[i][1] + m[i][2]);
      Store(o + 2 * step, m[i][2] - m[i][1]);
      Store(o + 3 * step, m[i][1] - m[i][3]);
    }
  }
}

// Where the transform of an input has the same channels of the next block, the
// next vector of channels, and the next of its 16 components.
struct Steps {
  size_t block, vector, component;
};

// B^T d B of the 4x4 input pixels below blocks t0 to t1, of `channels` of the C
// channels of x.
void TransformInput(const float* x, int C, const Shape& s, const Blocks& blocks,
                    int t0, int t1, int channels, float* out,
                    const Steps& steps) {
  Block block(blocks, t0);
  for (int t = t0; t < t1; t++, out += steps.block, block.Next(blocks)) {
    const float* image = x + (size_t)block.b * s.H * s.W * C;
    const int top = block.h - s.pad, left = block.w - s.pad;
    if (top >= 0 && left >= 0 && top + 4 <= s.H && left + 4 <= s.W) {
      const float* first = image + ((size_t)top * s.W + left) * C;
      const size_t down = (size_t)s.W * C, right = C;
      const auto pixel = [=](int i, int j) INLINE_LAMBDA {
        return first + i * down + j * right;
      };
      TransformBlock(pixel, channels, out, steps.vector, steps.component);
      continue;
    }
    const float* d[16];
    for (int i = 0; i < 16; i++) {
      const int h = top + i / 4, w = left + i % 4;
      const bool inside = h >= 0 && h < s.H && w >= 0 && w < s.W;
      d[i] = inside ? image + ((size_t)h * s.W + w) * C : kZeros;
    }
    TransformBlock([&](int i, int j) INLINE_LAMBDA { return d[4 * i + j]; },
                   channels, out, steps.vector, steps.component);
  }
}

// G g G^T of a kernel: [3, 3, C, F] to [F / kBlock][16][C][kBlock].
template <int kBlock>
void TransformKernel(const Pool& pool, const float* kernel, const Shape& s,
                     float* out) {
  const size_t step = (size_t)s.C * kBlock;
  ParallelFor(pool, OutputBlocks(s.F, kBlock), [&](int fb) {
    float* packed = Scratch(0, 9 * step);
    PackKernel(kernel, 3, s, fb * kBlock, kBlock, packed);
    for (size_t i = 0; i < step; i += kLanes) {
      const float* g = packed + i;
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

// A^T m A of a block: [16][kBlock], `step` floats apart, to 2x2 pixels of the
// channels from f on.
template <int kBlock>
INLINE void StoreBlock(const float* m, size_t step, const Shape& s,
                       const Block& block, int f, const Epilogue& epilogue,
                       float* y) {
  const size_t down = (size_t)s.OW * s.F;
  const bool right = block.w + 1 < s.OW, below = block.h + 1 < s.OH;
  float* out = y + (((size_t)block.b * s.OH + block.h) * s.OW + block.w) * s.F;
  out += f;
  UNROLL for (int v = 0; v < kBlock; v += kLanes) {
    if (f + v >= s.F) break;
    Vector r[2][4];
    UNROLL for (int j = 0; j < 4; j++) {
      const Vector m0 = Load(m + j * step + v);
      const Vector m1 = Load(m + (4 + j) * step + v);
      const Vector m2 = Load(m + (8 + j) * step + v);
      const Vector m3 = Load(m + (12 + j) * step + v);
      r[0][j] = m0 + m1 + m2, r[1][j] = m1 - m2 - m3;
    }
    auto store = [&](size_t at, Vector sum) {
      Store(out + at + v, epilogue(sum, f + v));
    };
    store(0, r[0][0] + r[0][1] + r[0][2]);
    if (right) store(s.F, r[0][1] - r[0][2] - r[0][3]);
    if (below) store(down, r[1][0] + r[1][1] + r[1][2]);
    if (right && below) store(down + s.F, r[1][1] - r[1][2] - r[1][3]);
  }
}

template <int kBlock>
void Forward(const Pool& pool, const float* x, const float* x2,
             const float* kernel, const Epilogue& epilogue, float* y,
             const Shape& s) {
  constexpr int kVectors = kBlock / kLanes, kTile = TileRows(kVectors);
  const Blocks blocks(s);
  const int outputs = OutputBlocks(s.F, kBlock);
  const Floats transformed = Allocate((size_t)16 * s.C * outputs * kBlock);
  TransformKernel<kBlock>(pool, kernel, s, transformed.get());
  // Blocks at a time: whole tiles, whose transformed input stays in a core's
  // cache. Its rows of a vector of channels, so that the steps between the
  // numbers of a tile are known to the compiler.
  constexpr int chunk = 24, row = chunk * kLanes;
  ParallelFor(pool, (blocks.count + chunk - 1) / chunk, [&](int task) {
    const int t0 = task * chunk, t1 = std::min(blocks.count, t0 + chunk);
    const Steps steps{kLanes, row, (size_t)chunk * s.C + kSkew};
    const size_t out_step = (size_t)chunk * kBlock + kSkew;
    float* in = Scratch(0, 16 * steps.component);
    float* out = Scratch(1, 16 * out_step);
    const int C = s.C - s.C2;
    TransformInput(x, C, s, blocks, t0, t1, C, in, steps);
    if (s.C2) {
      TransformInput(x2, s.C2, s, blocks, t0, t1, s.C2, in + C * chunk, steps);
    }
    const int tiles = (t1 - t0 + kTile - 1) / kTile;
    for (int fb = 0; fb < outputs; fb++) {
      for (int k = 0; k < 16; k++) {
        const float* g = &transformed[((size_t)fb * 16 + k) * s.C * kBlock];
        for (int i = 0; i < tiles; i++) {
          const int p0 = Cut(t1 - t0, i, tiles);
          const int p1 = Cut(t1 - t0, i + 1, tiles);
          WithConstant<kTile>(p1 - p0, [&](auto n) {
            Vector sum[n][kVectors] = {};
            const float *a = in + k * steps.component + p0 * kLanes, *b = g;
            for (int c = 0; c < s.C; c += kLanes) {
              MultiplyAdd(sum, a, kLanes, 1, b, kLanes);
              a += row, b += kLanes * kBlock;
            }
            StoreTile(sum, out + k * out_step + p0 * kBlock, kBlock);
          });
        }
      }
      Block block(blocks, t0);
      for (int t = t0; t < t1; t++, block.Next(blocks)) {
        StoreBlock<kBlock>(out + (t - t0) * kBlock, out_step, s, block,
                           fb * kBlock, epilogue, y);
      }
    }
  });
}

}  // namespace

void WinogradForward(const Pool& pool, const float* x, const float* x2,
                     const float* kernel, const Epilogue& epilogue, float* y,
                     const Shape& s) {
  auto* f = s.F % kWide ? Forward<kNarrow> : Forward<kWide>;
  f(pool, x, x2, kernel, epilogue, y, s);
}

namespace {

// A dy A^T of blocks t0 to t1, channels f to f + kBlock: [16][block][kBlock].
template <int kBlock>
void TransformGradient(const float* dy, const Shape& s, const Blocks& blocks,
                       int t0, int t1, int f, float* out, size_t step) {
  Block block(blocks, t0);
  for (int t = t0; t < t1; t++, out += kBlock, block.Next(blocks)) {
    const bool right = block.w + 1 < s.OW, below = block.h + 1 < s.OH;
    const float* d =
        dy + (((size_t)block.b * s.OH + block.h) * s.OW + block.w) * s.F + f;
    const float* d01 = right ? d + s.F : kZeros;
    const float* d10 = below ? d + (size_t)s.OW * s.F : kZeros;
    const float* d11 = right && below ? d10 + s.F : kZeros;
    UNROLL for (int v = 0; v < kBlock; v += kLanes) {
      if (f + v >= s.F) break;
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
    UNROLL for (int k = 0; k < 16; k++) {
      u[k / 4][k % 4] += Load(sums + k * step);
    }
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

template <int kBlock>
void KernelGradient(const Pool& pool, const float* x, const float* dy,
                    float* gradient, const Shape& s) {
  constexpr int kVectors = kBlock / kLanes, kTile = TileRows(kVectors);
  const Blocks blocks(s);
  // Squares of the gradient that stay in a core's cache.
  const int cs = s.C % 64 == 0 ? 64 : s.C, fs = s.F % 64 == 0 ? 64 : s.F;
  const int squares = (s.C / cs) * (s.F / fs), tiles = (cs + kTile - 1) / kTile;
  constexpr int chunk = 48;
  const int chunks = (blocks.count + chunk - 1) / chunk;
  const int parts = std::max(1, std::min(chunks, 16 / squares));
  const size_t step = (size_t)cs * kBlock;
  const size_t square = 16 * step * OutputBlocks(fs, kBlock);
  const Floats sums = Allocate(square * squares * parts);
  ParallelFor(pool, parts * squares, [&](int task) {
    const int part = task / squares, ci = task % squares / (s.F / fs);
    const int fi = task % (s.F / fs);
    const Steps steps{(size_t)cs, kLanes, (size_t)chunk * cs + kSkew};
    const size_t out_step = (size_t)chunk * kBlock + kSkew;
    float* in = Scratch(0, 16 * steps.component);
    float* out = Scratch(1, 16 * out_step);
    std::fill_n(&sums[task * square], square, 0.0f);
    for (int i = Cut(chunks, part, parts); i < Cut(chunks, part + 1, parts);
         i++) {
      const int t0 = i * chunk, t1 = std::min(blocks.count, t0 + chunk);
      TransformInput(x + ci * cs, s.C, s, blocks, t0, t1, cs, in, steps);
      for (int fb = 0; fb < OutputBlocks(fs, kBlock); fb++) {
        TransformGradient<kBlock>(dy, s, blocks, t0, t1, fi * fs + fb * kBlock,
                                  out, out_step);
        for (int j = 0; j < 16 * tiles; j++) {
          const int k = j / tiles, c0 = Cut(cs, j % tiles, tiles);
          const int c1 = Cut(cs, j % tiles + 1, tiles);
          float* to = &sums[task * square + (fb * 16 + k) * step + c0 * kBlock];
          WithConstant<kTile>(c1 - c0, [&](auto n) {
            Vector sum[n][kVectors] = {};
            MultiplyAdd(sum, in + k * steps.component + c0, 1, cs,
                        out + k * out_step, t1 - t0);
            AddTile(sum, to);
          });
        }
      }
    }
  });
  ParallelFor(pool, squares, [&](int i) {
    const int ci = i / (s.F / fs), fi = i % (s.F / fs);
    for (int fb = 0; fb < OutputBlocks(fs, kBlock); fb++) {
      for (size_t j = 0; j < step; j += kLanes) {
        const int c = ci * cs + j / kBlock;
        const int f = fi * fs + fb * kBlock + j % kBlock;
        if (f >= s.F) continue;
        StoreTaps(&sums[i * square + fb * 16 * step + j], squares * square,
                  parts, step, gradient + (size_t)c * s.F + f,
                  (size_t)s.C * s.F);
      }
    }
  });
}

}  // namespace

void WinogradKernelGradient(const Pool& pool, const float* x, const float* dy,
                            float* gradient, const Shape& s) {
  auto* f = s.F % kWide ? KernelGradient<kNarrow> : KernelGradient<kWide>;
  f(pool, x, dy, gradient, s);
}

}  // namespace unet
