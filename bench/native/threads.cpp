#include "bench/native/threads.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "core/check.h"
#include "cpu/threads.h"

namespace selscan::bench {
namespace {

using Clock = std::chrono::steady_clock;
double microsecondsSince(Clock::time_point begin) { return std::chrono::duration<double, std::micro>(Clock::now() - begin).count(); }

// A chain of multiply-adds, each of which waits for the one before; returns its end so that none is left out.
float chain(int64_t steps) {
  float x = 1;
  for (int64_t i = 0; i < steps; i++) {
    x = x * 0.999f + 0.001f;
    __asm__ volatile("" : "+x"(x));
  }
  return x;
}

int64_t stepsPerMicrosecond() {
  constexpr int64_t Steps = 1'000'000;
  double best = 1e9;
  for (int i = 0; i < 8; i++) {
    const auto begin = Clock::now();
    check(chain(Steps) > 0, "NATIVE", "threads: a chain of multiply-adds ended below zero");
    best = std::min(best, microsecondsSince(begin));
  }
  return static_cast<int64_t>(Steps / best);
}

// Processes that use a core each, at this one's priority, until they are killed.
class BusyProcesses {
 public:
  explicit BusyProcesses(int count) {
    const pid_t parent = getpid();
    for (int i = 0; i < count; i++) {
      const pid_t child = fork();
      check(child >= 0, "NATIVE", "threads: no process could be started; lower --busy");
      if (child > 0) {
        children_.push_back(child);
        continue;
      }
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      while (getppid() == parent) chain(10'000'000);
      _exit(0);
    }
  }
  BusyProcesses(const BusyProcesses&) = delete;
  ~BusyProcesses() {
    for (const pid_t child : children_) kill(child, SIGKILL);
    for (const pid_t child : children_) waitpid(child, nullptr, 0);
  }

 private:
  std::vector<pid_t> children_;
};

SectionCost emptySections(int64_t tasks, int pause, int samples) {
  std::vector<double> times;
  for (int i = 0; i < samples; i++) {
    if (pause > 0) std::this_thread::sleep_for(std::chrono::microseconds(pause));
    const auto begin = Clock::now();
    cpu::parallel(tasks, [](int64_t) {});
    times.push_back(microsecondsSince(begin));
  }
  std::sort(times.begin(), times.end());
  return {static_cast<double>(pause), times[times.size() / 2], times[times.size() * 99 / 100]};
}

template <class Work>
double milliseconds(Work&& work) {
  const auto begin = Clock::now();
  work();
  return microsecondsSince(begin) / 1e3;
}

void inTurns(Turns& turns, int sections, int64_t tasks, int64_t steps) {
  turns.one.push_back(milliseconds([&] {
    for (int64_t i = 0; i < sections * tasks; i++) chain(steps);
  }));
  turns.all.push_back(milliseconds([&] {
    for (int i = 0; i < sections; i++) cpu::parallel(tasks, [steps](int64_t) { chain(steps); });
  }));
}

}  // namespace

ThreadTimes timeThreads(int threads, int busy, int rounds) {
  const int64_t microsecond = stepsPerMicrosecond();
  const BusyProcesses beside(busy);  // before the pool has threads: a child of fork has none of them
  std::this_thread::sleep_for(std::chrono::milliseconds(busy > 0 ? 200 : 0));

  ThreadTimes times;
  cpu::setThreadCount(threads);
  const std::pair<int, int> plan[] = {{0, 20'000}, {100, 2'000}, {1'000, 500}, {10'000, 100}};
  for (const auto& [pause, samples] : plan) times.empty.push_back(emptySections(2 * threads, pause, samples));
  for (int round = 0; round < rounds; round++) {
    inTurns(times.small, 3000, 24, microsecond);
    inTurns(times.large, 100, 32, 50 * microsecond);
  }
  return times;
}

}  // namespace selscan::bench
