#include "cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace selscan::cpu {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// One parallel section at a time: the device queue runs programs in order, so sections never overlap.
class Pool {
 public:
  ~Pool() { resize(1); }

  void resize(int threads) {
    std::lock_guard section(section_);
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
    const uint64_t seen = generation_.load();
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, seen] { work(seen); });
    size_ = threads;
  }

  int size() const { return size_; }

  void run(int64_t count, void (*task)(void*, int64_t), void* context) {
    std::lock_guard section(section_);
    if (workers_.empty() || count == 1) {
      for (int64_t i = 0; i < count; i++) task(context, i);
      return;
    }
    task_ = task;
    context_ = context;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
      std::lock_guard lock(mutex_);  // so that no worker misses the wake-up between its check and its sleep
      generation_.fetch_add(1, std::memory_order_release);
    }
    if (sleeping_.load(std::memory_order_acquire)) wake_.notify_all();
    takeTasks();
    for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; spins++) spins < 4000 ? relax() : std::this_thread::yield();
  }

 private:
  void takeTasks() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) task_(context_, i);
  }

  void work(uint64_t seen) {
    for (;;) {
      seen = await(seen);
      if (stopping_) return;
      takeTasks();
      busy_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  // Spins at most 50 µs for the next section, then sleeps: an idle model must not burn a core.
  uint64_t await(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    uint64_t now;
    while ((now = generation_.load(std::memory_order_acquire)) == seen && std::chrono::steady_clock::now() < until)
      for (int i = 0; i < 16; i++) relax();
    if (now != seen) return now;
    std::unique_lock lock(mutex_);
    sleeping_.fetch_add(1);
    wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    sleeping_.fetch_sub(1);
    return generation_.load();
  }

  std::mutex section_, mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> busy_{0}, sleeping_{0}, size_{1};
  bool stopping_ = false;
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
};

// The cgroup's quota in whole cores, or a large number where there is none.
int quotaCores() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) return std::max(1, static_cast<int>(std::stod(quota) / period + 0.5));
  return 1 << 20;
}

Pool& pool() {
  static Pool* pool = [] {  // never destroyed: worker threads may outlive static destructors at exit
    auto* made = new Pool;
    made->resize(usableCores());
    return made;
  }();
  return *pool;
}

}  // namespace

int usableCores() {
  int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = std::max(1, CPU_COUNT(&set));
#endif
  return std::min(cores, quotaCores());
}

int threadCount() { return pool().size(); }
void setThreadCount(int count) { pool().resize(count > 0 ? std::min(count, 1024) : usableCores()); }

void parallelTasks(int64_t count, void (*task)(void*, int64_t), void* context) {
  if (count > 0) pool().run(count, task, context);
}

}  // namespace selscan::cpu
