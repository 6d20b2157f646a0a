// Values at a place in the order of all, without sorting them: the k-th largest logit, the lightest weight of a nucleus.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/threads.h"

namespace selscan::cpu {

// Elements that a sum is made of before sums are added: whole vectors on every instruction set.
constexpr int64_t Block = 512;

// A range in parts that threads share, cut by its length alone, between blocks.
struct Parts {
  static constexpr int64_t Most = 8, Least = 8192;
  int64_t total, count, length;

  explicit Parts(int64_t total)
      : total(total), count(std::clamp<int64_t>(total / Least, 1, Most)),
        length(((total + count - 1) / count + Block - 1) / Block * Block) {}
  int64_t begin(int64_t part) const { return part * length; }
  // body(part, begin, size)
  template <class Body>
  void each(Body&& body) const {
    parallel(count, [&](int64_t part) { body(part, begin(part), std::min(length, total - begin(part))); });
  }
};

// What a selection works in: room for its candidates, and for the masses of buckets.
struct Selection {
  float* candidates;
  double* masses;

  static size_t bytes(int64_t count);
  Selection(std::byte* memory, int64_t count);
};

// The k-th largest of the values, 0 < k ≤ count, none of which is NaN; `most` is the largest.
float kthLargest(const float* values, int64_t count, int64_t k, float most, const Selection&);

struct Selected {
  float value;
  double above, mass;  // the sums of all greater values, and of its equals
};
// The greatest value at which the sum of all values ≥ it reaches the target. Looks at values from `least` on alone: their sum reaches
// the target whatever its rounding. 0 < least; `most` is the largest value.
Selected reaching(double target, const float* values, int64_t count, float least, float most, const Selection&);

}  // namespace selscan::cpu
