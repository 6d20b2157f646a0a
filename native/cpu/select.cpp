// The k-th largest value, and the value at which sums from the largest down reach a target. See select.h.
//
// By digits of the keys, bits that order like the numbers, the highest first: each value adds its mass (1, or itself) to the bucket of its
// digit; the bucket at which the masses from the greatest down reach the target holds the value, and its values alone are looked at for the
// next digit. Digits cut the range that is left, not all that 32 bits could say: the second is mostly the last that has more than some
// values. Sums are f64 in an order given by shape: the same bits for any number of threads.
//
// Of few among many, the k-th largest of the maxima of groups bounds the k-th largest from below (as many values are no smaller), and
// nearly all others are left out before anything is counted.
// Bound by one addition to a bucket for each value of the first range, about 1 ns; values that are all equal have three such rounds.
// No better: one table of 2,048 buckets, where equals wait for one another (top-p of 50,280 logits that are all equal 585 µs, now 209),
// and all values in the first round, those out of question too (logits as of a trained model 213 µs, now 38).
#include "cpu/select.h"

#include <cstring>
#include <limits>

#ifndef ISA
namespace selscan::cpu {
namespace {

constexpr int64_t Tables = 4;  // neighbours add to different ones: an addition waits for the one before to the same bucket
constexpr int64_t Group = 64;  // values that have a maximum together

// How values fall into buckets: (key − low) >> shift. Those outside, below or above, fall into one more, which nobody reads.
struct Digit {
  uint32_t low;
  int shift;
  uint32_t buckets;
  bool weighted;  // a value's mass is the value, or 1

  int64_t stride() const { return int64_t{buckets} + 1; }
};

}  // namespace
}  // namespace selscan::cpu
#endif

#define EACH_ISA "cpu/select.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

// The masses of the buckets.
void tally(const float* values, int64_t count, cpu::Digit digit, double* masses) {
  constexpr int64_t Piece = 256;
  const int64_t stride = digit.stride();
  uint32_t buckets[Piece];
  float numbers[Piece];
  __builtin_memset(masses, 0, cpu::Tables * stride * sizeof(double));
  for (int64_t begin = 0; begin < count; begin += Piece) {
    const int64_t size = count - begin < Piece ? count - begin : Piece;
    for (int64_t i = 0; i < size; i++) numbers[i] = values[begin + i] + 0.0f;  // −0 is 0
    __builtin_memcpy(buckets, numbers, size * sizeof(float));
    for (int64_t i = 0; i < size; i++) {
      const uint32_t bits = buckets[i], key = bits >> 31 ? ~bits : bits | 0x80000000u, bucket = (key - digit.low) >> digit.shift;
      buckets[i] = bucket < digit.buckets ? bucket : digit.buckets;
    }
    if (!digit.weighted)
      for (int64_t i = 0; i < size; i++) numbers[i] = 1;
    for (int64_t i = 0; i < size; i++) masses[i % cpu::Tables * stride + buckets[i]] += numbers[i];
  }
  for (int64_t bucket = 0; bucket < stride; bucket++)
    masses[bucket] = (masses[bucket] + masses[stride + bucket]) + (masses[2 * stride + bucket] + masses[3 * stride + bucket]);
}

// Copies the values within [low, high] in their order, in place where it must be; how many.
int64_t gather(const float* values, int64_t count, float low, float high, float* found) {
  int64_t taken = 0, i = 0;
#if defined(SELSCAN_AVX512)
  for (; i + Lanes <= count; i += Lanes) {
    const F32 x = load(values + i);
    const __mmask16 above = _mm512_cmp_ps_mask(x.v, set(low).v, _CMP_GE_OQ);
    const __mmask16 inside = _mm512_mask_cmp_ps_mask(above, x.v, set(high).v, _CMP_LE_OQ);
    store(found + taken, {_mm512_maskz_compress_ps(inside, x.v)});  // in place: over what has been read
    taken += __builtin_popcount(inside);
  }
#endif
  for (; i < count; i++) {
    const float x = values[i];
    found[taken] = x;
    taken += static_cast<int>(x >= low) & static_cast<int>(x <= high);
  }
  return taken;
}

// The greatest of each whole group, and of the rest.
void maxima(const float* values, int64_t count, float* found) {
  int64_t i = 0;
  for (; i + cpu::Group <= count; i += cpu::Group) {
    F32 most = load(values + i);
    for (int k = Lanes; k < cpu::Group; k += Lanes) most = max(most, load(values + i + k));
    found[i / cpu::Group] = maximum(most);
  }
  if (i == count) return;
  float most = values[i];
  for (int64_t k = i; k < count; k++) most = values[k] > most ? values[k] : most;
  found[i / cpu::Group] = most;
}

}  // namespace
}  // namespace selscan::ISA
#else
namespace selscan::cpu {
namespace {

// −0 like 0.
uint32_t keyOf(float x) {
  x += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
float numberOf(uint32_t key) {
  const uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr uint32_t bucketsFor(int64_t count) { return count < 4096 ? 256 : 512; }

// Values of which one is to be found: it has a key within [low, high].
struct Range {
  const float* values;
  int64_t count;
  uint32_t low, high;
  bool weighted;
};

// Leaves of the range what lies within its keys.
void narrow(Range& range, float* candidates) {
  const Parts parts(range.count);
  int64_t found[Parts::Most];
  parts.each([&](int64_t part, int64_t begin, int64_t size) {
    found[part] = FOR_THIS_PROCESSOR(gather)(range.values + begin, size, numberOf(range.low), numberOf(range.high), candidates + begin);
  });
  range.values = candidates;
  range.count = found[0];
  for (int64_t part = 1; part < parts.count; range.count += found[part++])
    std::memmove(candidates + range.count, candidates + parts.begin(part), static_cast<size_t>(found[part]) * sizeof(float));
}

// The greatest value at which the masses of all ≥ it reach the target; the least where none does. One value at least has the key
// `high`, and none a greater one.
Selected select(Range range, double target, const Selection& memory) {
  for (double above = 0;; narrow(range, memory.candidates)) {
    const Parts parts(range.count);
    Digit digit{range.low, 0, bucketsFor(range.count), range.weighted};
    while ((range.high - range.low) >> digit.shift >= digit.buckets) digit.shift++;
    const int64_t stride = Tables * digit.stride();
    parts.each([&](int64_t part, int64_t begin, int64_t size) {
      FOR_THIS_PROCESSOR(tally)(range.values + begin, size, digit, memory.masses + part * stride);
    });
    int64_t chosen = 0;
    double mass = 0, reached = above;
    for (int64_t bucket = (range.high - range.low) >> digit.shift; bucket >= 0 && (mass == 0 || reached < target); bucket--) {
      double sum = 0;
      for (int64_t part = 0; part < parts.count; part++) sum += memory.masses[part * stride + bucket];
      if (sum == 0) continue;
      chosen = bucket;
      mass = sum;
      above = reached;
      reached += sum;
    }
    range.low += static_cast<uint32_t>(chosen) << digit.shift;
    if (digit.shift == 0) return {numberOf(range.low), above, mass};
    range.high = std::min(range.high, range.low + ((1u << digit.shift) - 1));
  }
}

int64_t roomFor(int64_t count) { return (count + 15) / 16 * 16; }

}  // namespace

size_t Selection::bytes(int64_t count) {
  const int64_t masses = Parts(count).count * Tables * (bucketsFor(count) + 1);
  return static_cast<size_t>(roomFor(count)) * sizeof(float) + static_cast<size_t>(masses) * sizeof(double);
}
Selection::Selection(std::byte* memory, int64_t count)
    : candidates(reinterpret_cast<float*>(memory)), masses(reinterpret_cast<double*>(candidates + roomFor(count))) {}

float kthLargest(const float* values, int64_t count, int64_t k, float most, const Selection& memory) {
  const auto target = static_cast<double>(k);
  const int64_t groups = (count + Group - 1) / Group;
  Range range{values, count, keyOf(-std::numeric_limits<float>::infinity()), keyOf(most), false};
  if (k <= groups / 2) {  // with more, most would stay
    Parts(count).each([&](int64_t, int64_t begin, int64_t size) {
      FOR_THIS_PROCESSOR(maxima)(values + begin, size, memory.candidates + begin / Group);
    });
    range.low = keyOf(select({memory.candidates, groups, range.low, range.high, false}, target, memory).value);
    narrow(range, memory.candidates);
  }
  return select(range, target, memory).value;
}

Selected reaching(double target, const float* values, int64_t count, float least, float most, const Selection& memory) {
  Range range{values, count, keyOf(least), keyOf(most), true};
  narrow(range, memory.candidates);
  return select(range, target, memory);
}

}  // namespace selscan::cpu
#endif
