// The device language for a host compiler: what our kernels use of CUDA's keywords, vector types, intrinsics and barriers.
//
// `__shared__` is not defined on purpose: kernels take shared memory through SHARED (ptx.h). Warp operations take the full mask.
// __launch_bounds__ is not checked.
#pragma once
#include <math.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

#define SELSCAN_VECTORS(Scalar, name)                                                                        \
  struct alignas(2 * sizeof(Scalar)) name##2 { Scalar x, y; };                                               \
  struct name##3 { Scalar x, y, z; };                                                                        \
  struct alignas(4 * sizeof(Scalar)) name##4 { Scalar x, y, z, w; };                                         \
  inline name##2 make_##name##2(Scalar x, Scalar y) { return {x, y}; }                                       \
  inline name##3 make_##name##3(Scalar x, Scalar y, Scalar z) { return {x, y, z}; }                          \
  inline name##4 make_##name##4(Scalar x, Scalar y, Scalar z, Scalar w) { return {x, y, z, w}; }
SELSCAN_VECTORS(float, float)
SELSCAN_VECTORS(int, int)
SELSCAN_VECTORS(unsigned, uint)
SELSCAN_VECTORS(unsigned short, ushort)
#undef SELSCAN_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// Of the CUDA thread that runs; the emulator writes them at every switch.
extern constinit thread_local uint3 threadIdx;
extern constinit thread_local uint3 blockIdx;
extern constinit thread_local dim3 blockDim;
extern constinit thread_local dim3 gridDim;
constexpr int warpSize = 32;

namespace selscan::emulator {

// Waits for all threads of the block; returns for how many of them the condition holds.
int barrier(bool condition);
// Waits for all lanes of the warp and orders their memory.
void warpBarrier(unsigned mask);
// Waits for all lanes of the warp and returns the bits that lane `source` gave; orders no memory, as on the device.
uint64_t exchange(unsigned mask, uint64_t bits, int source);
unsigned ballot(unsigned mask, bool condition);
int laneIndex();
[[noreturn]] void trap();

template <class T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take types of 4 or 8 bytes");
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<T>(static_cast<Bits>(exchange(mask, std::bit_cast<Bits>(value), source)));
}

}  // namespace selscan::emulator

inline void __syncthreads() { selscan::emulator::barrier(false); }
inline int __syncthreads_count(int condition) { return selscan::emulator::barrier(condition != 0); }
inline int __syncthreads_or(int condition) { return selscan::emulator::barrier(condition != 0) > 0; }
inline int __syncthreads_and(int condition) { return selscan::emulator::barrier(condition == 0) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { selscan::emulator::warpBarrier(mask); }

// Lanes shuffle within aligned groups of `width`, a power of two; beyond the group a lane keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = selscan::emulator::laneIndex() & -width;
  return selscan::emulator::shuffle(mask, value, first + (source & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = selscan::emulator::laneIndex(), source = lane - static_cast<int>(delta);
  return selscan::emulator::shuffle(mask, value, source < (lane & -width) ? lane : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = selscan::emulator::laneIndex(), source = lane + static_cast<int>(delta);
  return selscan::emulator::shuffle(mask, value, source >= (lane & -width) + width ? lane : source);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int laneMask, int width = 32) {
  const int lane = selscan::emulator::laneIndex(), source = lane ^ laneMask;
  return selscan::emulator::shuffle(mask, value, source >= (lane & -width) + width ? lane : source);
}
inline unsigned __ballot_sync(unsigned mask, int condition) { return selscan::emulator::ballot(mask, condition != 0); }
inline int __any_sync(unsigned mask, int condition) { return selscan::emulator::ballot(mask, condition != 0) != 0; }
inline int __all_sync(unsigned mask, int condition) { return selscan::emulator::ballot(mask, condition == 0) == 0; }
[[noreturn]] inline void __trap() { selscan::emulator::trap(); }

template <class T>
T __ldg(const T* data) {
  return *data;
}

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline int __clzll(long long bits) { return std::countl_zero(static_cast<unsigned long long>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

#define SELSCAN_MIN_MAX(T)                          \
  constexpr T min(T a, T b) { return b < a ? b : a; } \
  constexpr T max(T a, T b) { return a < b ? b : a; }
SELSCAN_MIN_MAX(int)
SELSCAN_MIN_MAX(unsigned)
SELSCAN_MIN_MAX(long)
SELSCAN_MIN_MAX(unsigned long)
SELSCAN_MIN_MAX(long long)
SELSCAN_MIN_MAX(unsigned long long)
#undef SELSCAN_MIN_MAX
// Of a number and a NaN, the number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
