#include "core/plan.h"

#include <algorithm>
#include <numeric>

namespace selscan {

Plan planArena(const std::vector<Lifetime>& lifetimes) {
  constexpr size_t Alignment = 64;
  const auto padded = [&](size_t i) { return (lifetimes[i].bytes + Alignment - 1) / Alignment * Alignment; };
  std::vector<size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });

  Plan plan{std::vector<size_t>(lifetimes.size(), 0), 0};
  std::vector<size_t> placed;  // by rising offset
  for (const size_t block : order) {
    const size_t bytes = padded(block);
    if (bytes == 0) continue;
    size_t offset = 0;
    for (const size_t other : placed) {
      if (lifetimes[other].last < lifetimes[block].first || lifetimes[block].last < lifetimes[other].first) continue;
      if (plan.offsets[other] >= offset + bytes) break;  // the gap before `other` is wide enough
      offset = std::max(offset, plan.offsets[other] + padded(other));
    }
    plan.offsets[block] = offset;
    plan.peakBytes = std::max(plan.peakBytes, offset + bytes);
    const auto at = std::upper_bound(placed.begin(), placed.end(), offset, [&](size_t o, size_t i) { return o < plan.offsets[i]; });
    placed.insert(at, block);
  }
  return plan;
}

}  // namespace selscan
