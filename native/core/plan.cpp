#include "core/plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/check.h"

namespace selscan {

namespace {

constexpr size_t Alignment = 64;
size_t padded(const Lifetime& lifetime) { return (lifetime.bytes + Alignment - 1) / Alignment * Alignment; }

// Places blocks in the order given, each at the lowest offset that is free throughout its life.
Plan placeInOrder(const std::vector<Lifetime>& lifetimes, const std::vector<size_t>& order) {
  Plan plan{std::vector<size_t>(lifetimes.size(), 0), 0};
  std::vector<size_t> placed;  // by rising offset
  for (const size_t block : order) {
    const size_t bytes = padded(lifetimes[block]);
    if (bytes == 0) continue;
    size_t offset = 0;
    for (const size_t other : placed) {
      if (lifetimes[other].last < lifetimes[block].first || lifetimes[block].last < lifetimes[other].first) continue;
      if (plan.offsets[other] >= offset + bytes) break;  // the gap before `other` is wide enough
      offset = std::max(offset, plan.offsets[other] + padded(lifetimes[other]));
    }
    plan.offsets[block] = offset;
    plan.peakBytes = std::max(plan.peakBytes, offset + bytes);
    const auto at = std::upper_bound(placed.begin(), placed.end(), offset, [&](size_t o, size_t i) { return o < plan.offsets[i]; });
    placed.insert(at, block);
  }
  return plan;
}

}  // namespace

Plan planArena(const std::vector<Lifetime>& lifetimes) {
  size_t left = std::numeric_limits<size_t>::max() / 4;  // offsets must not wrap around
  for (const Lifetime& lifetime : lifetimes) {
    check(lifetime.bytes <= left, "OUT_OF_MEMORY", "program: its values are larger than any memory; use smaller sizes");
    left -= std::min(left, padded(lifetime));
  }
  std::vector<size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto byKey = [&](auto key) {
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key(lifetimes[a]) > key(lifetimes[b]); });
    return placeInOrder(lifetimes, order);
  };
  Plan best = byKey([](const Lifetime& l) { return l.bytes; });
  for (Plan other : {byKey([](const Lifetime& l) { return static_cast<double>(l.bytes) * (l.last - l.first + 1); }),
                     byKey([](const Lifetime& l) { return l.last - l.first; })})
    if (other.peakBytes < best.peakBytes) best = std::move(other);
  return best;
}

}  // namespace selscan
