// Random convolutions, several at a time, against those of one thread bit for
// bit; sanitize.sh runs it. The pool of threads is its own, since a thread
// sanitizer does not see what XLA's synchronises.
#include <cstdio>
#include <deque>
#include <random>
#include <thread>

#include "../../unet_jax/kernels/convolution.cc"

// What XLA gives a handler as its thread pool.
struct Pool {
  explicit Pool(int count) {
    for (int i = 0; i < count; i++) threads.emplace_back([this] { Work(); });
  }
  ~Pool() {
    Schedule(nullptr, nullptr);
    for (std::thread& thread : threads) thread.join();
  }
  void Schedule(XLA_FFI_Task* task, void* data) {
    std::lock_guard<std::mutex> lock(mutex);
    tasks.push_back({task, data});
    changed.notify_all();
  }
  void Work() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [this] { return !tasks.empty(); });
      const auto [task, data] = tasks.front();
      if (!task) return;  // The end, for all threads.
      tasks.pop_front();
      lock.unlock();
      task(data);
    }
  }
  std::deque<std::pair<XLA_FFI_Task*, void*>> tasks;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::thread> threads;
};

struct Array {
  explicit Array(std::vector<int64_t> shape) : dims(shape) {
    size_t size = 1;
    for (int64_t n : dims) size *= n;
    data.resize(size);
    std::mt19937 random(size);
    for (float& v : data) v = (float)random() / 4294967296.0f - 0.5f;
    buffer.dtype = XLA_FFI_DataType_F32;
    buffer.data = data.data();
    buffer.rank = dims.size();
    buffer.dims = dims.data();
  }
  Array(const Array&) = delete;
  std::vector<int64_t> dims;
  std::vector<float> data;
  XLA_FFI_Buffer buffer = {};
};

// The value and both gradients of a convolution.
std::vector<float> Convolve(Pool& pool, int size, int pad, int h, int c, int f,
                            bool winograd) {
  XLA_FFI_Api api = {};
  api.XLA_FFI_ThreadPool_Schedule = [](XLA_FFI_ThreadPool_Schedule_Args* args) {
    ((Pool*)args->ctx)->Schedule(args->task, args->data);
    return (XLA_FFI_Error*)nullptr;
  };
  api.XLA_FFI_ThreadPool_NumThreads =
      [](XLA_FFI_ThreadPool_NumThreads_Args* args) {
        *args->num_threads = ((Pool*)args->ctx)->threads.size();
        return (XLA_FFI_Error*)nullptr;
      };
  ffi::DiagnosticEngine diagnostic;
  ffi::ThreadPool threads = *ffi::CtxDecoding<ffi::ThreadPool>::Decode(
      &api, (XLA_FFI_ExecutionContext*)&pool, diagnostic);
  const int w = h + 2, down = 2 * pad - size + 1;
  Array x({2, h, w, c}), kernel({size, size, c, f});
  Array y({2, h + down, w + down, f});
  Array dx({2, h, w, c}), gradient({size, size, c, f});
  Forward(threads, Buffer(&x.buffer), Buffer(&kernel.buffer),
          Result(Buffer(&y.buffer)), pad, false, winograd);
  Forward(threads, Buffer(&y.buffer), Buffer(&kernel.buffer),
          Result(Buffer(&dx.buffer)), size - 1 - pad, true, winograd);
  KernelGradient(threads, Buffer(&x.buffer), Buffer(&y.buffer),
                 Result(Buffer(&gradient.buffer)), pad, winograd);
  std::vector<float> all = y.data;
  all.insert(all.end(), dx.data.begin(), dx.data.end());
  all.insert(all.end(), gradient.data.begin(), gradient.data.end());
  return all;
}

int main() {
  std::mt19937 random(0);
  auto draw = [&](std::initializer_list<int> of) {
    return of.begin()[random() % of.size()];
  };
  std::atomic<int> different{0};
  Pool alone(1);
  for (int i = 0; i < 40; i++) {
    const int size = draw({1, 2, 3, 3, 3, 3, 5}), pad = random() % size;
    const int h = size + random() % 20;
    const int c = draw({1, 3, 8, 16, 17, 32, 48, 64, 128});
    const int f = draw({1, 3, 8, 16, 17, 32, 48, 64, 128});
    const bool winograd = i % 2;
    const auto expected = Convolve(alone, size, pad, h, c, f, winograd);
    Pool pool(4);
    std::vector<std::thread> callers;
    for (int j = 0; j < 3; j++) {
      callers.emplace_back([&] {
        const auto found = Convolve(pool, size, pad, h, c, f, winograd);
        different += found != expected;
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  printf("%d of 120 differ from one thread\n", different.load());
  return different != 0;
}
