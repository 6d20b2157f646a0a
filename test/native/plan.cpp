// The arena planner on random lifetimes.
#include "core/plan.h"

#include <algorithm>
#include <random>

#include "check.h"

namespace {

using selscan::Lifetime;
using selscan::Plan;

size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// What any plan needs: the largest sum of blocks alive at one node.
size_t lowerBound(const std::vector<Lifetime>& lifetimes) {
  size_t most = 0;
  for (const Lifetime& at : lifetimes) {
    size_t live = 0;
    for (const Lifetime& other : lifetimes)
      if (other.first <= at.first && at.first <= other.last) live += padded(other.bytes);
    most = std::max(most, live);
  }
  return most;
}

void checkPlan(const std::vector<Lifetime>& lifetimes, const Plan& plan) {
  CHECK(plan.offsets.size() == lifetimes.size());
  size_t end = 0;
  for (size_t a = 0; a < lifetimes.size(); a++) {
    CHECK(plan.offsets[a] % 64 == 0, "offset", plan.offsets[a]);
    CHECK(plan.offsets[a] + lifetimes[a].bytes <= plan.peakBytes, "block", a);
    end = std::max(end, plan.offsets[a] + padded(lifetimes[a].bytes));
    for (size_t b = 0; b < a; b++) {
      const bool meet = lifetimes[a].first <= lifetimes[b].last && lifetimes[b].first <= lifetimes[a].last;
      const bool apart = plan.offsets[a] + lifetimes[a].bytes <= plan.offsets[b] || plan.offsets[b] + lifetimes[b].bytes <= plan.offsets[a];
      CHECK(!meet || apart || lifetimes[a].bytes == 0 || lifetimes[b].bytes == 0, "blocks", a, "and", b);
    }
  }
  CHECK(plan.peakBytes == end, "peak", plan.peakBytes, "end", end);
  CHECK(plan.peakBytes >= lowerBound(lifetimes), "peak", plan.peakBytes, "bound", lowerBound(lifetimes));
}

}  // namespace

TEST("the planner gives an empty program an empty arena") {
  const auto plan = selscan::planArena({});
  CHECK(plan.peakBytes == 0 && plan.offsets.empty());
}

TEST("blocks that follow one another share their place, blocks that meet at a node do not") {
  const auto apart = selscan::planArena({{100, 0, 1}, {100, 2, 3}});
  CHECK(apart.peakBytes == 128, apart.peakBytes);
  const auto meeting = selscan::planArena({{100, 0, 2}, {100, 2, 3}});
  CHECK(meeting.peakBytes == 256, meeting.peakBytes);
}

TEST("in random plans no two live blocks overlap and the peak is at least the live bytes") {
  std::mt19937 random(1);
  const auto below = [&](uint32_t n) { return static_cast<int>(random() % n); };
  double worst = 0;
  for (int round = 0; round < 2000; round++) {
    const int nodes = 1 + below(40);
    std::vector<Lifetime> lifetimes(static_cast<size_t>(1 + below(60)));
    for (Lifetime& lifetime : lifetimes) {
      lifetime.bytes = below(8) == 0 ? 0 : static_cast<size_t>(below(below(2) ? 100 : 100'000));
      lifetime.first = below(static_cast<uint32_t>(nodes));
      lifetime.last = lifetime.first + below(static_cast<uint32_t>(nodes - lifetime.first));
    }
    const Plan plan = selscan::planArena(lifetimes);
    checkPlan(lifetimes, plan);
    if (plan.peakBytes > 0) worst = std::max(worst, static_cast<double>(plan.peakBytes) / static_cast<double>(lowerBound(lifetimes)));
  }
  CHECK(worst < 2.0, "the worst plan takes", worst, "times the lower bound");
}

TEST("blocks of a forward and a backward pass nest, and are planned without waste") {
  // Activation i lives from node i to its backward node: the live bytes in the middle are all of them.
  std::vector<Lifetime> lifetimes;
  for (int i = 0; i < 50; i++) lifetimes.push_back({size_t{64} * (1 + static_cast<size_t>(i * 7 % 13)), i, 99 - i});
  const Plan plan = selscan::planArena(lifetimes);
  checkPlan(lifetimes, plan);
  CHECK(plan.peakBytes == lowerBound(lifetimes), plan.peakBytes);
}
