// Random convolutions and sums, several at a time, against those of one thread
// bit for bit; sanitize.sh runs it. The threads are its own, since a thread
// sanitizer does not see what XLA's pool synchronises.
#include <cstdio>
#include <deque>
#include <random>
#include <thread>

#include "../../unet_jax/kernels/adamw.h"
#include "../../unet_jax/kernels/batch_norm.h"
#include "../../unet_jax/kernels/convolution.h"

using Floats = std::vector<float>;

class Threads {
 public:
  explicit Threads(int count) {
    for (int i = 0; i < count; i++) threads_.emplace_back([this] { Work(); });
  }
  ~Threads() {
    Schedule(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }
  unet::Pool pool() {
    return {(int)threads_.size(),
            [this](std::function<void()> f) { Schedule(f); }};
  }

 private:
  void Schedule(std::function<void()> task) {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(task);
    changed_.notify_all();
  }
  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return !tasks_.empty(); });
      const auto task = tasks_.front();
      if (!task) return;  // The end, for all threads.
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }
  std::deque<std::function<void()>> tasks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::thread> threads_;
};

Floats Random(size_t size) {
  std::mt19937 random(size);
  Floats numbers(size);
  for (float& v : numbers) v = (float)random() / 4294967296.0f - 0.5f;
  return numbers;
}

struct Case {
  int size, pad, stride, h, c, f;
  bool winograd;
};

// The value, both gradients, and the sums of a batch norm of the value.
Floats Compute(const unet::Pool& pool, const Case& t) {
  const int w = t.h + 2, B = 2;
  unet::Shape s{B, t.h, w, t.c, t.size, t.pad, 0, 0, 0, t.f, t.stride, 0};
  s.OH = (s.H + 2 * s.pad - s.K) / s.stride + 1;
  s.OW = (s.W + 2 * s.pad - s.K) / s.stride + 1;
  const Floats x = Random((size_t)B * s.H * s.W * s.C);
  const Floats kernel = Random((size_t)s.K * s.K * s.C * s.F);
  const Floats bias = Random(s.F + 2 * unet::kLanes);
  Floats y((size_t)B * s.OH * s.OW * s.F), dkernel(kernel.size());
  const unet::Epilogue epilogue{bias.data(), t.f % 2 == 0};
  if (t.winograd) {
    unet::WinogradForward(pool, x.data(), nullptr, kernel.data(), epilogue,
                          y.data(), s);
    unet::WinogradKernelGradient(pool, x.data(), y.data(), dkernel.data(), s);
  } else {
    unet::DirectForward(pool, x.data(), kernel.data(), epilogue, y.data(), s,
                        1);
    unet::DirectKernelGradient(pool, x.data(), y.data(), dkernel.data(), s);
  }
  // Of the input: of a stride, by the transposed form.
  unet::Shape back{B, s.OH, s.OW, s.F, s.K, s.K - 1 - s.pad,
                   1, s.H,  s.W,  s.C, 1,   0};
  if (t.stride > 1) back.pad = 0;
  const Floats none(s.C + 2 * unet::kLanes);
  Floats dx((size_t)B * back.OH * back.OW * s.C);
  unet::DirectForward(pool, y.data(), kernel.data(), {none.data(), false},
                      dx.data(), back, t.stride);
  Floats moments(2 * t.f), sums(2 * t.f);
  const int64_t pixels = y.size() / t.f;
  unet::Moments(pool, y.data(), pixels, t.f, moments.data());
  unet::GradientSums(pool, y.data(), y.data(), pixels, t.f, moments.data(),
                     bias.data(), bias.data(), true, sums.data());
  Floats value = y, first = y, second(y.size()), average = y;
  unet::AdamW step{0.9, 0.999, 1e-8f, 1, 0.1f, 0.1f, 0.1f, 0.1f};
  step.Update(pool, {{y.data(), value.data(), first.data(), second.data(),
                      average.data(), (int64_t)y.size(), 0.1f},
                     {bias.data(), moments.data(), sums.data(), sums.data(),
                      nullptr, 0, 0}});
  Floats all;
  for (const Floats& part :
       {y, dkernel, dx, moments, sums, value, first, second, average}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

int main() {
  std::mt19937 random(0);
  auto draw = [&](std::initializer_list<int> of) {
    return of.begin()[random() % of.size()];
  };
  std::atomic<int> different{0};
  Threads alone(1);
  for (int i = 0; i < 40; i++) {
    Case t{draw({1, 2, 3, 3, 3, 5})};
    t.winograd = i % 2;
    if (t.winograd) t.size = 3;
    t.stride = t.size == 2 ? 2 : 1;
    t.pad = t.stride > 1 ? 0 : random() % t.size;
    t.h = 2 * (t.size + random() % 10);
    t.c = draw({1, 3, 8, 16, 17, 32, 48, 64, 128});
    t.f = draw({1, 3, 8, 16, 17, 32, 48, 64, 128});
    if (t.winograd) {
      t.c = unet::kLanes * draw({2, 3, 8});
      t.f = unet::kLanes * draw({2, 3, 6, 8});
    }
    const Floats expected = Compute(alone.pool(), t);
    Threads threads(4);
    std::vector<std::thread> callers;
    for (int j = 0; j < 3; j++) {
      callers.emplace_back(
          [&] { different += Compute(threads.pool(), t) != expected; });
    }
    for (std::thread& caller : callers) caller.join();
  }
  printf("%d of 120 differ from one thread\n", different.load());
  return different != 0;
}
