// What the kernels share: vectors, memory that threads keep, parallel loops.
#ifndef UNET_JAX_KERNELS_COMMON_H_
#define UNET_JAX_KERNELS_COMMON_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace unet {

// ---- Vectors -------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRegisters = 16;
#else
#error "the processor has none of AVX2, AVX-512 and 64-bit Arm's NEON"
#endif
typedef float Vector
    __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

INLINE Vector Load(const float* p) { return *(const Vector*)p; }
INLINE void Store(float* p, Vector v) { *(Vector*)p = v; }

// ---- Memory and threads --------------------------------------------------

// Memory that a thread keeps from call to call; each slot is one array.
inline float* Scratch(int slot, size_t floats) {
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

// XLA's pool of threads.
struct Pool {
  int num_threads;
  std::function<void(std::function<void()>)> schedule;
};

// Calls f(i) for all i < n, on the pool's threads and on this one. A lack of
// memory on any of them is thrown here: XLA turns it into an error.
template <class F>
void ParallelFor(const Pool& pool, int n, const F& f) {
  struct State {
    std::atomic<int> next{0}, done{0};
    std::atomic<bool> no_memory{false};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  int helpers = std::min(pool.num_threads, n) - 1;
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
  try {
    for (int i = 0; i < helpers; i++) pool.schedule(work);
  } catch (const std::bad_alloc&) {
    // Those that were scheduled still use f: this thread does the rest.
  }
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done.load() == n; });
  if (state->no_memory) throw std::bad_alloc();
}

// Part i of n things cut into parts: where it begins.
INLINE int Cut(int64_t n, int i, int parts) { return (int)(n * i / parts); }

}  // namespace unet

#endif  // UNET_JAX_KERNELS_COMMON_H_
