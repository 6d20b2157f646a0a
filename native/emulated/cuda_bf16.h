// bfloat16 as CUDA's header of this name has it, as far as our kernels use it: the upper half of a float, rounded to nearest
// even.
// There are no operators and no implicit conversions: kernels compute in float.
#pragma once
#include <bit>
#include <cstdint>

#include "emulated/language.h"

class __nv_bfloat16 {
 public:
  __nv_bfloat16() = default;

 private:
  unsigned short bits_;
  friend constexpr __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits);
  friend constexpr unsigned short __bfloat16_as_ushort(__nv_bfloat16 value);
};
constexpr __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  __nv_bfloat16 value{};
  value.bits_ = bits;
  return value;
}
constexpr unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits_; }

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
  __nv_bfloat162() = default;
  constexpr __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};

inline float __bfloat162float(__nv_bfloat16 value) { return std::bit_cast<float>(uint32_t{__bfloat16_as_ushort(value)} << 16); }

// Every NaN becomes 0x7FFF, as on the device.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return __ushort_as_bfloat16(0x7FFF);
  return __ushort_as_bfloat16(static_cast<unsigned short>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16));
}
inline __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __floats2bfloat162_rn(v.x, v.y); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__low2float(v), __high2float(v)}; }
