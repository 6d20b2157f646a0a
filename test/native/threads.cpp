// The pool of threads: every task exactly once, whatever the count, the size and who else calls.
#include "cpu/threads.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"

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

}  // namespace selscan::test
