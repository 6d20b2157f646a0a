// Element types of tensors and their conversions. bf16 and f16 round to nearest even; NaN stays NaN.
#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace selscan {

enum class Dtype : uint8_t { f32 = 0, bf16 = 1, f16 = 2, i32 = 3, i8 = 4 };
constexpr int DtypeCount = 5;

inline size_t sizeBytes(Dtype dtype) { return dtype == Dtype::f32 || dtype == Dtype::i32 ? 4 : dtype == Dtype::i8 ? 1 : 2; }
inline const char* name(Dtype dtype) {
  constexpr const char* Names[DtypeCount] = {"f32", "bf16", "f16", "i32", "i8"};
  return Names[static_cast<int>(dtype)];
}

inline float fromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t toBf16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // a quiet NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float fromF16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::ldexp(static_cast<float>(mantissa), -24)));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

}  // namespace selscan
