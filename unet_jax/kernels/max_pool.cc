// XLA writes and reads arrays of the input's size five times for this.
#include "max_pool.h"

namespace unet {

void MaxPoolGradient(const Pool& pool, const float* x, const float* dskip,
                     const float* dy, float* dx, int B, int H, int W, int C) {
  const size_t row = (size_t)W * C;
  const int pairs = (H + 1) / 2;  // Of rows; the last may be one alone.
  ParallelFor(pool, B * pairs, [&](int task) {
    const int b = task / pairs, h = task % pairs;
    const size_t first = ((size_t)b * H + 2 * h) * row;
    const bool is_pair = 2 * h + 1 < H;
    const size_t pooled = is_pair ? (size_t)W / 2 * C : 0;
    const float* d = dy + ((size_t)b * (H / 2) + h) * (W / 2) * C;
    for (size_t w = 0; w < pooled; w += C) {
      for (int c = 0; c < C; c += kLanes) {
        const size_t at = first + 2 * w + c;
        const size_t places[4] = {at, at + C, at + row, at + row + C};
        Vector v[4], out = Load(d + w + c);
        UNROLL for (int i = 0; i < 4; i++) v[i] = Load(x + places[i]);
        const auto left = v[0] >= v[1], low_left = v[2] >= v[3];
        const auto top = (left ? v[0] : v[1]) >= (low_left ? v[2] : v[3]);
        const decltype(top) takes[4] = {top & left, top & ~left,
                                        ~top & low_left, ~top & ~low_left};
        UNROLL for (int i = 0; i < 4; i++) {
          Store(dx + places[i],
                Load(dskip + places[i]) + (takes[i] ? out : Vector{}));
        }
      }
    }
    // What the pool drops.
    for (int i = 0; i < 1 + is_pair; i++) {
      const size_t at = first + i * row + 2 * pooled;
      if (dx != dskip) std::copy_n(dskip + at, row - 2 * pooled, dx + at);
    }
  });
}

}  // namespace unet
