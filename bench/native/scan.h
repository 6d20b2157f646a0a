// The selective scan beside a plain loop of the same equations.
#pragma once
#include <cstdint>
#include <vector>

namespace selscan::bench {

struct ScanShape {
  int64_t rows = 512, inner = 1024, state = 16;
};

// Nanoseconds per channel·token, one entry per round.
struct ScanTimes {
  std::vector<double> plain, one, two, training;  // training: forward and backward on one thread
  double difference;  // the largest between kernel and plain loop, relative to the largest output
};

// In each round the plain loop, the kernel on one thread, forward and backward on one thread and the kernel on two take turns,
// so that a slow moment of the machine meets all of them.
ScanTimes timeScan(const ScanShape&, int rounds);

}  // namespace selscan::bench
