// Convolutions of any shape by direct products.
#include "convolution.h"

namespace unet {
namespace {

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

// output[p, f] = sum of input[stride * p + tap, c] * kernel[tap, c, f].
//
// With `spread` above 1, K of the transposed form, each tap is a product of its
// own, stored at its own places.
template <int NV>
void Forward(const Pool& pool, const float* x, const float* kernel,
             const Epilogue& epilogue, float* y, const Shape& s, int spread) {
  constexpr int kBlock = NV * kLanes, kTile = TileRows(NV);
  const int blocks = (s.F + kBlock - 1) / kBlock, padded = s.W + 2 * s.pad;
  const int products = spread * spread, K = spread == 1 ? s.K : 1;
  const size_t row = (size_t)padded * s.C;
  const size_t block_size = (size_t)K * K * s.C * kBlock;
  const std::unique_ptr<float[]> packed(
      new float[products * blocks * block_size]);
  ParallelFor(pool, products * blocks, [&](int i) {
    PackKernel(kernel + (size_t)(i / blocks) * s.C * s.F, K, s,
               i % blocks * kBlock, kBlock, &packed[i * block_size]);
  });
  // Rows and columns of the sums: of the output or, spread, of the input.
  const int OH = s.OH / spread, OW = s.OW / spread;
  // Bands of rows whose padded input stays in a core's cache.
  int bands = std::max<int64_t>(1, (24576 / (int64_t)row - K) / s.stride + 1);
  bands = (OH + bands - 1) / bands;
  const int tiles = (OW + kTile - 1) / kTile;
  ParallelFor(pool, s.B * bands, [&](int task) {
    const int b = task / bands, i = task % bands;
    const int h0 = Cut(OH, i, bands), h1 = Cut(OH, i + 1, bands);
    const float* image = x + (size_t)b * s.H * s.W * s.C;
    const float* in = image + h0 * s.stride * row;
    if (s.pad) {
      const int rows = (h1 - h0 - 1) * s.stride + K;
      float* copy = Scratch(0, row * rows);
      in = copy;
      for (int r = 0; r < rows; r++) {
        CopyRow(image, s, h0 * s.stride - s.pad + r, s.C, 0, copy + r * row);
      }
    }
    for (int j = 0; j < products * blocks; j++) {
      const float* k = &packed[j * block_size];
      const int f = j % blocks * kBlock, count = std::min(kBlock, s.F - f);
      const int tap = s.flip ? j / blocks : products - 1 - j / blocks;
      const int down = tap / spread, right = tap % spread;
      for (int h = h0; h < h1; h++) {
        for (int t = 0; t < tiles; t++) {
          const int w0 = Cut(OW, t, tiles), w1 = Cut(OW, t + 1, tiles);
          const float* a = in + s.stride * ((h - h0) * row + (size_t)w0 * s.C);
          const size_t at =
              ((size_t)b * s.OH + h * spread + down) * s.OW + w0 * spread;
          float* out = y + (at + right) * s.F + f;
          WithConstant<kTile>(w1 - w0, [&](auto pixels) {
            Vector sum[pixels][NV] = {};
            for (int ky = 0; ky < K; ky++) {
              MultiplyAdd(sum, a + ky * row, s.stride * s.C, 1,
                          k + (size_t)ky * K * s.C * kBlock, K * s.C);
            }
            epilogue.Apply(sum, f);
            if (count == kBlock) return StoreTile(sum, out, spread * s.F);
            for (int p = 0; p < pixels; p++) {
              memcpy(out + (size_t)p * spread * s.F, sum[p],
                     count * sizeof(float));
            }
          });
        }
      }
    }
  });
}

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

// gradient[tap, c, f] = sum over pixels of x[stride * p + tap, c] * dy[p, f].
//
// The input is copied in panels of few channels, so that a window of K taps of
// a panel is K * g numbers in a row: with those as rows of register tiles, all
// of them and a block of output channels are one product over the pixels.
template <int NV>
void KernelGradient(const Pool& pool, const float* x, const float* dy,
                    float* gradient, const Shape& s) {
  constexpr int kBlock = NV * kLanes, kTile = TileRows(NV);
  const int group = std::max(1, kTile / s.K);
  const int g = s.C % group == 0 ? group : s.C, groups = s.C / g;
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
    const size_t row = (size_t)padded * g;
    const size_t panel = row * ((rows - 1) * s.stride + s.K);
    float* in = Scratch(0, panel * groups);
    float* out_gradient = Scratch(1, (size_t)rows * s.OW * kBlock);
    for (int i = Cut(s.B * bands, part, parts);
         i < Cut(s.B * bands, part + 1, parts); i++) {
      const int image = i / bands, h0 = Cut(s.OH, i % bands, bands);
      const int h1 = Cut(s.OH, i % bands + 1, bands);
      for (int r = 0; r < (h1 - h0 - 1) * s.stride + s.K; r++) {
        CopyRow(x + (size_t)image * s.H * s.W * s.C, s,
                h0 * s.stride - s.pad + r, g, panel, in + r * row);
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
              MultiplyAdd(sum, a + h * s.stride * row, 1, g * s.stride,
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
            const float* part = &sums[p * size + at];
            for (int f = 0; f < kBlock; f++) total[f] += part[f];
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

}  // namespace

// Few output channels fill one vector.
void DirectForward(const Pool& pool, const float* x, const float* kernel,
                   const Epilogue& epilogue, float* y, const Shape& s,
                   int spread) {
  auto* f = s.F > kLanes ? Forward<2> : Forward<1>;
  f(pool, x, kernel, epilogue, y, s, spread);
}

void DirectKernelGradient(const Pool& pool, const float* x, const float* dy,
                          float* gradient, const Shape& s) {
  auto* f = s.F > kLanes ? KernelGradient<2> : KernelGradient<1>;
  f(pool, x, dy, gradient, s);
}

}  // namespace unet
