// What handing out work to the pool costs, on idle cores and beside processes that never sleep.
#pragma once
#include <vector>

namespace selscan::bench {

// Microseconds of a section whose tasks do nothing, begun after a pause of so many.
struct SectionCost {
  double pause, median, p99;
};

// Milliseconds of the same work on the calling thread and on the pool, one entry per round.
struct Turns {
  std::vector<double> one, all;
};

struct ThreadTimes {
  std::vector<SectionCost> empty;
  Turns small;  // 3,000 sections of 24 tasks of 1 µs: some tokens of a small model
  Turns large;  // 100 sections of 32 tasks of 50 µs: a prompt
};

// Beside `busy` processes that compute without end. The thread and the pool take turns in every round.
ThreadTimes timeThreads(int threads, int busy, int rounds);

}  // namespace selscan::bench
