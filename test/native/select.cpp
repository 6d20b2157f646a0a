// Selections of cpu/select.h against a plain sort.
#include "cpu/select.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "check.h"

namespace {

using namespace selscan::cpu;

struct Memory {
  std::vector<std::byte> bytes;
  Selection selection;
  explicit Memory(int64_t count) : bytes(Selection::bytes(count)), selection(bytes.data(), count) {}
};

constexpr int64_t Counts[] = {1, 2, 15, 16, 17, 63, 64, 65, 255, 256, 257, 4095, 4096, 5003, 16383, 16384, 50280, 70001};
constexpr float Infinity = std::numeric_limits<float>::infinity();

using Make = std::function<float()>;

// Values of every kind that a vocabulary may have, by name.
std::vector<std::pair<const char*, Make>> kinds(std::mt19937_64& next) {
  const auto normal = [&next](float deviation) { return std::normal_distribution<float>(0, deviation)(next); };
  return {{"spread", [=] { return normal(3); }},
          {"near", [=] { return 7 + normal(1e-5f); }},
          {"tied", [=] { return std::round(normal(2)); }},
          {"equal", [] { return -2.5f; }},
          {"zeros of both signs", [&next] { return next() % 2 ? 0.0f : -0.0f; }},
          {"of all magnitudes", [=, &next] { return std::ldexp(normal(1), static_cast<int>(next() % 250) - 140); }},
          {"mostly out", [=, &next] { return next() % 8 ? -Infinity : normal(1); }}};
}

}  // namespace

TEST("the k-th largest is that of a sort") {
  std::mt19937_64 next(1);
  for (const int64_t count : Counts)
    for (const auto& [kind, make] : kinds(next)) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float& value : values) value = make();
      std::vector<float> sorted = values;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      Memory memory(count);
      for (const int64_t k : {int64_t{1}, int64_t{2}, int64_t{40}, count / 128, count / 127, count / 2, count - 1, count}) {
        if (k < 1 || k > count) continue;
        const float found = kthLargest(values.data(), count, k, sorted[0], memory.selection);
        CHECK(found == sorted[static_cast<size_t>(k - 1)], kind, count, k, found);
      }
    }
}

// Weights are whole multiples of 2⁻²⁰, whose sums are exact in any order: greater and equal ones are those of a sort to the bit.
TEST("the value at which sums reach a target is that of a sort, with the sums above it and of its equals") {
  std::mt19937_64 next(2);
  for (const int64_t count : Counts)
    for (const uint64_t steps : {uint64_t{1} << 20, uint64_t{1000}, uint64_t{3}, uint64_t{1}}) {
      std::vector<float> values(static_cast<size_t>(count));
      for (float& value : values) value = std::ldexp(static_cast<float>(next() % steps + 1), steps == 1 ? 0 : -20);
      std::vector<float> sorted = values;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      double total = 0;
      for (const float value : sorted) total += value;
      Memory memory(count);
      for (const double share : {0.0, 1e-9, 0.25, 0.5, 0.95, 0.999999, 1.0}) {
        double above = 0, mass = 0;
        size_t i = 0;
        do {
          above += mass;
          mass = 0;
          for (const float value = sorted[i]; i < sorted.size() && sorted[i] == value; i++) mass += value;
        } while (above + mass < share * total);
        const Selected found = reaching(share * total, values.data(), count, sorted.back(), sorted[0], memory.selection);
        CHECK(found.value == sorted[i - 1] && found.above == above && found.mass == mass, count, steps, share, found.value);
      }
    }
}

TEST("a selection has the same bits for any number of threads, and leaves out what is lighter than it was told") {
  std::mt19937_64 next(3);
  std::vector<float> values(50280);
  for (float& value : values) value = std::exp(-10 * std::generate_canonical<float, 24>(next));
  const float most = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (const float value : values) sum += value >= 1e-3f ? value : 0.0f;
  Memory memory(50280);
  const auto selected = [&](double share) { return reaching(share * sum, values.data(), 50280, 1e-3f, most, memory.selection); };
  const Selected all = selected(2);
  CHECK(all.value >= 1e-3f && std::fabs((all.above + all.mass) / sum - 1) < 1e-12, "none reaches it: the lightest of them");
  const Selected before = selected(0.9);
  for (const int threads : {1, 3, 0}) {
    setThreadCount(threads);
    const Selected again = selected(0.9);
    CHECK(again.value == before.value && again.above == before.above && again.mass == before.mass, threads);
  }
}
