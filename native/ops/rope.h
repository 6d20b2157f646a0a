// What rotary embeddings are on every device: attributes, limits, and how far each pair turns from one position to the next. See
// lib/ops/rope.ts.
//
// An angle is a fraction of a turn in 64 bits, so a product with a position wraps as angles do: it is exact, and so is what is
// left of it inside the turn. What is lost is the rounding of the step, 2⁻⁶⁵ of a turn a position: 4e-10 at the last position,
// where a product in f64 would be off by up to 5e-7. Steps therefore need more digits than f64 has.
#pragma once
#include <cmath>
#include <string>

#include "core/dims.h"
#include "core/segments.h"

namespace selscan::ops {

constexpr int PairsMost = 128;

struct Turn {
  int64_t headDim, heads, pairs;
  bool interleaved, inverse;

  int64_t rotary() const { return 2 * pairs; }
  int64_t width() const { return heads * headDim; }  // columns of the heads that turn
};
inline Turn turnOf(const Attributes& attributes) {
  const auto whole = [&](const char* name) { return static_cast<int64_t>(attributes.number(name)); };
  const int64_t headDim = whole("headDim"), rotary = whole("rotary");
  return {headDim, whole("heads"), (rotary == 0 ? headDim : rotary) / 2, attributes.flag("interleaved"), attributes.flag("inverse")};
}

inline std::string ropeLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call, {"activation rows width", "i32 segments 5"}, {"activation rows width"});
  if (!wrong.empty()) return wrong;
  constexpr double Most = 1 << 30;
  for (const char* name : {"headDim", "heads", "rotary"}) {
    const double value = call.attributes.number(name);
    if (!(value >= 0 && value <= Most) || value != std::floor(value) || (value == 0 && std::string_view(name) != "rotary"))
      return std::string(name) + " is a whole number, got " + std::to_string(value);
  }
  const Turn turn = turnOf(call.attributes);
  const double base = call.attributes.number("base"), rotary = call.attributes.number("rotary");
  const double turning = rotary == 0 ? static_cast<double>(turn.headDim) : rotary;
  if (!(base > 1 && std::isfinite(base))) return "base is above 1, got " + std::to_string(base);
  if (turning != static_cast<double>(turn.rotary()) || turn.pairs > PairsMost || turn.rotary() > turn.headDim)
    return "an even number of columns, at most 256 and headDim, turns, got " + std::to_string(turning);
  if (call.inputs[0][1] > Most || turn.width() > call.inputs[0][1])
    return "x has heads·headDim = " + std::to_string(turn.width()) + " columns or more, at most 2^30, got " +
           std::to_string(call.inputs[0][1]);
  return {};
}
inline void checkRope(const Call& call) { checkSegments(call, call.inputs[1], call.inputs[0][0], 0); }

// The unevaluated sum of two f64: some 106 bits.
struct Double2 {
  double high, low;
};
inline Double2 operator*(Double2 a, Double2 b) {
  const double cross = a.high * b.low + a.low * b.high, high = std::fma(a.high, b.high, cross);
  return {high, std::fma(a.high, b.high, -high) + cross};
}

// Turns per position of every pair, in units of 2⁻⁶⁴: base^(−i/pairs)/2π.
struct Steps {
  uint64_t at[PairsMost];
};
inline Steps stepsOf(const Turn& turn, double base) {
  // The ratio of two neighbours, first in f64. ratioⁿ·base should be 1; where it is 1 + e, the ratio is too large by e/n of itself.
  const double first = std::pow(base, -1.0 / static_cast<double>(turn.pairs));
  Double2 one{base, 0};
  for (int64_t i = 0; i < turn.pairs; i++) one = one * Double2{first, 0};
  const Double2 ratio{first, -first * ((one.high - 1) + one.low) / static_cast<double>(turn.pairs)};

  Steps steps{};
  Double2 frequency{0.15915494309189535, -9.839338337591243e-18};  // 1/2π
  for (int64_t i = 0; i < turn.pairs; i++, frequency = frequency * ratio) {
    const double scaled = std::ldexp(frequency.high, 64), whole = std::floor(scaled);
    steps.at[i] = static_cast<uint64_t>(static_cast<int64_t>(whole) + std::llround((scaled - whole) + std::ldexp(frequency.low, 64)));
  }
  return steps;
}

}  // namespace selscan::ops
