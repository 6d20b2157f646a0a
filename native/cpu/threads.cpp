// A section is a set of tasks and a door. The caller opens the door, takes tasks like everybody, closes it when none are left and
// waits for the workers that are still inside: never for one that has not come, which may be asleep or without a core because
// another process has it. A wake-up that comes late or goes missing therefore costs speed and nothing else.
//
// Who waits, spins first: two nodes of a run are some µs apart, and a sleeper needs 10 to 100 µs to come back. Then it sleeps, so
// that an idle model uses no core; and a caller that sleeps leaves its own core to the worker it waits for, should that have lost its.
//
// Beside a process that never sleeps a worker has its core half of the time. Were it to keep the core as long as the system lets it,
// it would lose it in the middle of a task, and the caller would wait some ms for that. So it offers the core itself, between tasks.
// Measured (2026-11-22, two cores of Zen 5, Linux 6.18, beside one such process): decoding of mamba-130m keeps 0.66 to 0.80 of its
// speed, a training step 0.53 to 0.58; a pool that waits for all its workers 0.50 and 0.48. selscan-bench threads --busy 1, two threads
// over one: 1.0 without offers, 1.07 to 1.25 with one every 600 µs; 1.0 to 1.15 at 300 µs, 1.0 to 1.24 at 1,000, 1.0 to 1.17 at 1,500.
// No better: a yield in every turn of spinning (0.7 to 1.1), the worker tied to the other core (1.0 to 1.1), a caller that spins for
// 300 or 1,000 µs before it sleeps.
#include "cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "core/check.h"
#include "cpu/cores.h"

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

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// Spins until ready() or for so long; whether it is ready.
template <class Ready>
bool spin(microseconds most, Ready&& ready) {
  const auto until = Clock::now() + most;
  do {
    for (int i = 0; i < 16; i++) {
      if (ready()) return true;
      relax();
    }
  } while (Clock::now() < until);
  return false;
}

constexpr microseconds WorkerSpin{50};   // for the next section: the gap between two nodes, and some
constexpr microseconds CallerSpin{50};   // for the last tasks
constexpr microseconds OfferEvery{600};  // a fifth of the time that Linux lets a thread run while others wait
constexpr microseconds LookEvery{10};    // at the clock, which takes 20 ns: tasks may be as short as 1 µs

// Whether this thread is inside a task, or a worker.
thread_local bool busy = false;

class Pool {
 public:
  // Called in turn, as sections are. Fewer than asked for where the system has no more.
  void resize(int threads) {
    const Turn turn(*this);
    stopping_.store(true);
    for (auto& worker : workers_) wake(*worker);
    for (auto& worker : workers_) worker->thread.join();
    workers_.clear();
    workers_.reserve(threads);
    stopping_.store(false);
    const uint64_t seen = door_.load() / Generation;  // a section that opens before a worker has begun is one for it, too
    try {
      while (static_cast<int>(workers_.size()) + 1 < threads) {
        auto worker = std::make_unique<Worker>();
        worker->thread = std::thread([this, seen, self = worker.get()] { work(*self, seen); });
        workers_.push_back(std::move(worker));
      }
    } catch (const std::system_error&) {  // at the limit of threads of a container, say
    }
    size_ = static_cast<int>(workers_.size()) + 1;
  }

  int size() const { return size_; }

  void run(int64_t count, void (*task)(void*, int64_t), void* context) {
    if (count == 1 || busy || size_ == 1) {
      for (int64_t i = 0; i < count; i++) task(context, i);
      return;
    }
    const Turn turn(*this);
    task_ = task;
    context_ = context;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    door_.fetch_add(Generation | Open);
    wakeSome();
    busy = true;
    takeTasks();
    busy = false;
    if (door_.fetch_sub(Open) & Inside) awaitLast();
  }

 private:
  // door_: how many sections there were, whether one is open, how many workers are inside. It opens only when nobody is, so that what
  // a worker has read of a section holds until it leaves.
  static constexpr uint64_t Inside = 0xffff, Open = 0x10000, Generation = 0x20000;

  struct alignas(64) Worker {
    std::thread thread;
    std::atomic<uint32_t> asleep{0};
  };

  // A place in the order of callers.
  class Turn {
   public:
    explicit Turn(Pool& pool) : pool_(pool), mine_(pool.turns_.fetch_add(1)) {
      for (uint32_t now; (now = pool_.serving_.load()) != mine_;) pool_.serving_.wait(now);
    }
    Turn(const Turn&) = delete;
    ~Turn() {
      pool_.serving_.store(mine_ + 1);
      if (pool_.turns_.load() != mine_ + 1) pool_.serving_.notify_all();
    }

   private:
    Pool& pool_;
    const uint32_t mine_;
  };

  void takeTasks() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) task_(context_, i);
  }

  // Until none is left or, after one of them, the time has come; whether none is left.
  bool takeTasksUntil(Clock::time_point end) {
    auto last = Clock::now();
    int64_t looks = 1, done = 0;
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) {
      task_(context_, i);
      if (++done < looks) continue;
      const auto now = Clock::now();
      if (now >= end) return false;
      looks = now - last < LookEvery ? 2 * looks : 1;
      done = 0;
      last = now;
    }
    return true;
  }

  void work(Worker& self, uint64_t seen) {
    busy = true;
    auto offer = Clock::now() + OfferEvery;
    while (await(self, seen, offer)) {
      if (next_.load(std::memory_order_relaxed) + 1 < count_) wakeSome();
      const bool all = takeTasksUntil(offer);
      leave();
      if (!all) seen--;  // the section may have tasks yet
      if (Clock::now() < offer) continue;
      std::this_thread::yield();
      offer = Clock::now() + OfferEvery;
    }
  }

  // Until this worker has entered a section; false when the pool ends. Sections that were over before it came are passed over. Who
  // slept has given its core away: its next offer is a whole stretch later.
  bool await(Worker& self, uint64_t& seen, Clock::time_point& offer) {
    for (;;) {
      uint64_t door = door_.load(std::memory_order_acquire);
      const auto news = [&] {
        door = door_.load(std::memory_order_acquire);
        return door / Generation != seen || stopping_.load(std::memory_order_relaxed);
      };
      if (!spin(WorkerSpin, news)) {
        sleep(self, seen);
        offer = Clock::now() + OfferEvery;
      }
      if (stopping_.load()) return false;
      if (door / Generation == seen) continue;
      if (!(door & Open)) seen = door / Generation;
      else if (door_.compare_exchange_strong(door, door + 1)) {
        seen = door / Generation;
        return true;
      }
    }
  }

  // Says so first and looks once more then: a caller opens the door first and looks for sleepers then.
  void sleep(Worker& self, uint64_t seen) {
    sleepers_.fetch_add(1);
    self.asleep.store(1);
    if (door_.load() / Generation != seen || stopping_.load()) return wake(self);
    self.asleep.wait(1);
  }

  void wake(Worker& worker) {
    if (worker.asleep.exchange(0) == 0) return;  // awake, or another has woken it
    sleepers_.fetch_sub(1);
    worker.asleep.notify_one();
  }

  // Wakes two of the workers that the section has tasks for, who do the same: a caller pays for two wake-ups however many sleep.
  void wakeSome() {
    const int64_t sleepers = sleepers_.load();
    if (sleepers == 0) return;
    const auto workers = static_cast<int64_t>(workers_.size());
    int64_t wanted = std::min({count_ - 1 - (workers - sleepers), sleepers, int64_t{2}});
    for (size_t i = 0; wanted > 0 && i < workers_.size(); i++) {
      if (workers_[i]->asleep.load() == 0) continue;
      wake(*workers_[i]);
      wanted--;
    }
  }

  void leave() {
    const uint64_t before = door_.fetch_sub(1);
    if ((before & (Inside | Open)) == 1 && waiting_.load() && waiting_.exchange(0)) waiting_.notify_one();
  }

  // Until no worker is inside.
  void awaitLast() {
    const auto empty = [&] { return (door_.load() & Inside) == 0; };
    if (spin(CallerSpin, empty)) return;
    for (;;) {
      waiting_.store(1);
      if (empty()) break;
      waiting_.wait(1);
    }
    waiting_.store(0);
  }

  // What all threads of a section write to lies in lines of the cache of its own.
  alignas(64) std::atomic<uint64_t> door_{0};
  void (*task_)(void*, int64_t) = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<uint32_t> waiting_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<int> size_{1};
  std::vector<std::unique_ptr<Worker>> workers_;
  alignas(64) std::atomic<uint32_t> turns_{0};
  std::atomic<uint32_t> serving_{0};
};

Pool& pool() {
  static Pool* pool = [] {  // never destroyed: its threads may outlive static destructors at exit
    auto made = std::make_unique<Pool>();
    const int asked = threadsAsked();
    made->resize(asked > 0 ? asked : usableCores());
    return made.release();
  }();
  return *pool;
}

}  // namespace

int threadsAsked() {
  const char* text = std::getenv("SELSCAN_THREADS");
  if (text == nullptr) return 0;
  int count = -1;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, count);
  check(error == std::errc() && stop == end && count >= 0 && count <= ThreadsMax, "BAD_OPTION", "SELSCAN_THREADS: a whole number from 0 to ",
        ThreadsMax, " is expected, got ", text, "; unset it for all usable cores");
  return count;
}

int threadCount() { return pool().size(); }

void setThreadCount(int count) {
  const int threads = count > 0 ? std::min(count, ThreadsMax) : usableCores();
  pool().resize(threads);
  check(count <= 0 || threadCount() >= threads, "OUT_OF_MEMORY", "threads: ", threads, " are expected, and the system gave ", threadCount(),
        "; ask for fewer, or raise the limit of threads");
}

void parallelTasks(int64_t count, void (*task)(void*, int64_t), void* context) {
  if (count > 0) pool().run(count, task, context);
}

}  // namespace selscan::cpu
