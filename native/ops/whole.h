// Attributes that are whole numbers: a program may come from a file.
#pragma once
#include <cmath>
#include <limits>
#include <sstream>
#include <string>

#include "core/kernel.h"

namespace selscan::ops {

constexpr int64_t WholeMax = std::numeric_limits<int32_t>::max();

// A number as JavaScript would print it, near enough: 4294967296, 1.5.
inline std::string numberText(double value) {
  std::ostringstream out;
  out.precision(15);
  out << value;
  return out.str();
}

// Empty where the attribute is a whole number from `least` to 2^31 − 1; else what is wrong, in words.
inline std::string wholeLimit(const Call& call, const char* attribute, int64_t least) {
  const double value = call.attributes.number(attribute);
  if (value >= static_cast<double>(least) && value <= static_cast<double>(WholeMax) && value == std::floor(value)) return {};
  return std::string(attribute) + " is a whole number from " + std::to_string(least) + " to " + std::to_string(WholeMax) + ", got " +
         numberText(value);
}

}  // namespace selscan::ops
