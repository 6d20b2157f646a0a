// The pool of threads: every task exactly once, whatever the count, the size and who else calls.
#include "cpu/threads.h"

#include <pthread.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "core/check.h"
#include "cpu/cores.h"

namespace selscan::test {
namespace {

bool allOnce(int64_t count) {
  std::unique_ptr<std::atomic<int>[]> runs(new std::atomic<int>[count + 1]());
  cpu::parallel(count, [&](int64_t i) { runs[i].fetch_add(1); });
  for (int64_t i = 0; i < count; i++)
    if (runs[i] != 1) return false;
  return runs[count] == 0;
}

// Restores the default number of threads.
struct Restore {
  ~Restore() { cpu::setThreadCount(0); }
};

// Of a signal that keeps a thread from going on.
std::atomic<bool> held{false}, holding{false};

}  // namespace

TEST("parallel runs every task exactly once for any number of threads") {
  const Restore restore;
  for (const int threads : {1, 2, 3, 8}) {
    cpu::setThreadCount(threads);
    CHECK(cpu::threadCount() == threads, cpu::threadCount());
    for (const int64_t count : {0, 1, 2, 7, 64, 10'000}) CHECK(allOnce(count), threads, count);
  }
}

TEST("the results of all tasks are seen by the caller") {
  const Restore restore;
  cpu::setThreadCount(4);
  for (int round = 0; round < 2'000; round++) {
    int64_t squares[16] = {};
    cpu::parallel(16, [&](int64_t i) { squares[i] = i * i + round; });
    for (int64_t i = 0; i < 16; i++) CHECK(squares[i] == i * i + round, round, i);
  }
}

TEST("workers that fell asleep are woken") {
  const Restore restore;
  cpu::setThreadCount(3);
  for (int round = 0; round < 50; round++) {
    std::this_thread::sleep_for(std::chrono::microseconds(round % 2 ? 500 : 60));  // about as long as workers spin
    CHECK(allOnce(100), round);
  }
}

TEST("the pool can be resized between sections") {
  const Restore restore;
  for (int round = 0; round < 30; round++) {
    cpu::setThreadCount(1 + round % 5);
    CHECK(allOnce(50), round);
  }
  cpu::setThreadCount(0);
  CHECK(cpu::threadCount() == cpu::usableCores());
}

TEST("sections from several callers do not disturb one another") {
  const Restore restore;
  cpu::setThreadCount(2);
  std::atomic<int> good{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; caller++)
    callers.emplace_back([&] {
      for (int round = 0; round < 50; round++) good += allOnce(200);
    });
  for (auto& caller : callers) caller.join();
  CHECK(good == 150, good);
}

TEST("a section within a task is done by that task's thread") {
  const Restore restore;
  for (const int threads : {1, 3}) {
    cpu::setThreadCount(threads);
    std::atomic<int> inner{0}, astray{0};
    cpu::parallel(20, [&](int64_t) {
      const auto self = std::this_thread::get_id();
      cpu::parallel(10, [&](int64_t) {
        inner.fetch_add(1);
        if (std::this_thread::get_id() != self) astray.fetch_add(1);
      });
    });
    CHECK(inner == 200 && astray == 0, threads, inner, astray);
  }
}

TEST("callers, and one that resizes the pool, take turns under stress") {
  const Restore restore;
  cpu::setThreadCount(4);
  std::atomic<int64_t> sum{0};
  std::atomic<bool> over{false};
  std::thread resizing([&] {
    for (int threads = 1; !over; threads = threads % 6 + 1) {
      cpu::setThreadCount(threads);
      std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
  });
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; caller++)
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 2'000; round++) {
        cpu::parallel(1 + round % 9, [&](int64_t i) { sum.fetch_add(i + 1, std::memory_order_relaxed); });
        if (round % 100 == caller) std::this_thread::sleep_for(std::chrono::microseconds(80));
      }
    });
  for (auto& caller : callers) caller.join();
  over = true;
  resizing.join();
  int64_t expected = 0;
  for (int round = 0; round < 2'000; round++) expected += 4 * (1 + round % 9) * (2 + round % 9) / 2;
  CHECK(sum == expected, sum, expected);
}

TEST("tasks of very different lengths are all waited for") {
  const Restore restore;
  cpu::setThreadCount(3);
  for (int round = 0; round < 20; round++) {
    std::atomic<int> done{0};
    cpu::parallel(6, [&](int64_t i) {  // the longest outlasts the caller's spinning: it sleeps until the worker is done
      std::this_thread::sleep_for(std::chrono::microseconds(i == round % 6 ? 2'000 : 10));
      done.fetch_add(1);
    });
    CHECK(done == 6, round, done);
  }
}

TEST("a section waits for no worker that has not come") {
  const Restore restore;
  cpu::setThreadCount(2);
  std::atomic<int> met{0};
  std::atomic<pthread_t> worker{pthread_self()};
  cpu::parallel(2, [&, caller = pthread_self()](int64_t) {  // both wait for each other: one of them is the worker
    if (!pthread_equal(pthread_self(), caller)) worker = pthread_self();
    met++;
    while (met < 2) std::this_thread::yield();
  });
  held = true;
  std::signal(SIGUSR1, [](int) {
    holding = true;
    while (held) continue;
  });
  pthread_kill(worker, SIGUSR1);
  while (!holding) std::this_thread::yield();
  std::atomic<bool> over{false};
  std::thread rescuer([&] {  // or a failure of this test would never end
    for (int i = 0; i < 5'000 && !over; i++) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    held = false;
  });
  for (int round = 0; round < 20; round++) CHECK(allOnce(50) && held, round);
  over = true;
  rescuer.join();
  std::signal(SIGUSR1, SIG_DFL);
  CHECK(allOnce(100));
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // whose own addresses do not fit under a limit
TEST("a number of threads that the system has not is refused, and those there are go on") {
  const Restore restore;
  rlimit before{};
  getrlimit(RLIMIT_AS, &before);
  const rlimit tight{rlim_t{3} << 30, before.rlim_max};  // the stacks of 1023 workers are 8 GB of addresses
  if (setrlimit(RLIMIT_AS, &tight) != 0) return;
  std::string code, message;
  try {
    cpu::setThreadCount(1024);
  } catch (const Error& error) {
    code = error.code;
    message = error.what();
  }
  const int got = cpu::threadCount();
  const bool works = allOnce(1'000);
  setrlimit(RLIMIT_AS, &before);
  CHECK(code == "OUT_OF_MEMORY" && message.starts_with("threads: 1024 are expected"), code, message);
  CHECK(got >= 1 && got < 1024 && works, got);
}
#endif

TEST("an idle pool uses no processor") {
  const Restore restore;
  cpu::setThreadCount(4);
  CHECK(allOnce(100));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const auto used = [] {
    timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double before = used();
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  CHECK(used() - before < 0.01, used() - before);  // a worker that spins would use half a second
}

TEST("SELSCAN_THREADS is a number, and what is none is refused") {
  const auto asked = [](const char* text) {
    setenv("SELSCAN_THREADS", text, 1);
    try {
      const int count = cpu::threadsAsked();
      unsetenv("SELSCAN_THREADS");
      return count;
    } catch (const Error& error) {
      unsetenv("SELSCAN_THREADS");
      return error.code == "BAD_OPTION" ? -1 : -2;
    }
  };
  CHECK(cpu::threadsAsked() == 0);
  CHECK(asked("3") == 3 && asked("0") == 0 && asked("1024") == 1024);
  for (const char* text : {"", " ", "two", "-1", "+2", "1025", "2.5", "3 ", "0x4", "99999999999999999999"}) CHECK(asked(text) == -1, text);
}

}  // namespace selscan::test
