// Read bandwidth and peaks of multiply-adds, on the instruction set that the kernels use.
//
// All are maxima, so the best pass counts: whatever else the machine does can only take away. The buffer is 512 MB, 16 times
// a large L3; its sum is checked, so that no compiler may leave the reading out.
#include <algorithm>
#include <chrono>
#include <vector>

#include "bench/native/limits.h"
#include "core/check.h"
#include "core/device.h"
#include "cpu/threads.h"

#define EACH_ISA "bench/native/limits.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA::limits {

// 12 chains: two units with a latency of 4 need 8, and 12 with their two operands fit 16 registers.
constexpr int Chains = 12;

inline float total(const F32* sums) {
  float lanes[Lanes], all = 0;
  for (int i = 0; i < Chains; i++) {
    store(lanes, sums[i]);
    for (const float lane : lanes) all += lane;
  }
  return all;
}

// Sum of count floats, count a multiple of Chains·Lanes.
float sum(const float* data, int64_t count) {
  F32 sums[Chains];
  for (F32& one : sums) one = set(0.0f);
  for (int64_t i = 0; i < count; i += Chains * Lanes)
    for (int c = 0; c < Chains; c++) sums[c] = sums[c] + load(data + i + c * Lanes);
  return total(sums);
}

// rounds·Chains·Lanes multiply-adds.
float multiplyAdds(int64_t rounds) {
  F32 sums[Chains];
  for (int c = 0; c < Chains; c++) sums[c] = set(static_cast<float>(c));
  const F32 factor = set(0.999f), step = set(0.001f);
  for (int64_t r = 0; r < rounds; r++)
    for (int c = 0; c < Chains; c++) sums[c] = fma(sums[c], factor, step);
  return total(sums);
}

}  // namespace selscan::ISA::limits
#else
#if SELSCAN_X86
// The probes take multiply-adds on operands in registers, and return what was summed.
SELSCAN_PUSH_TARGET_AVX512VNNI
namespace selscan::bench {
constexpr int EightChains = 12;  // 8 read 0.92 of it
#define DOT(sum) "vpdpbusd %6, %6, %" #sum "\n\t"
#define DOTS(a, b, c, d, e, f) \
  asm volatile(DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f) : "v"(ones))
// In assembly and without an array: around the intrinsic GCC 12 copies every sum, into memory too, and the peak reads half. Volatile, for
// sums that are alike might be computed once.
static float eights(int64_t rounds) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i a = ones, b = ones, c = ones, d = ones, e = ones, f = ones, g = ones, h = ones, i = ones, j = ones, k = ones, l = ones;
  for (int64_t r = 0; r < rounds; r++) {
    DOTS(a, b, c, d, e, f);
    DOTS(g, h, i, j, k, l);
  }
  return static_cast<float>(_mm512_reduce_add_epi32(a + b + c + d + e + f + g + h + i + j + k + l));
}
#undef DOTS
#undef DOT
}  // namespace selscan::bench
SELSCAN_POP_TARGET
SELSCAN_PUSH_TARGET_AVX512BF16
namespace selscan::bench {
constexpr int DotChains = 20;  // a latency of 6 asks for more of them than f32's 4: with 12 the peak read 474 GFLOP/s, with 20 517
static float dots(int64_t rounds) {
  __m512 sums[DotChains];
  for (int c = 0; c < DotChains; c++) sums[c] = _mm512_set1_ps(0.0f);
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 32
    for (int c = 0; c < DotChains; c++) sums[c] = _mm512_dpbf16_ps(sums[c], ones, ones);
  }
  for (int c = 1; c < DotChains; c++) sums[0] = _mm512_add_ps(sums[0], sums[c]);
  return _mm512_reduce_add_ps(sums[0]);
}
}  // namespace selscan::bench
SELSCAN_POP_TARGET
SELSCAN_PUSH_TARGET_AMX
namespace selscan::bench {
static float tiles(int64_t rounds) {
  // Palette 1, then bytes of a row (from 16 on) and rows (from 48 on) of eight tiles. Not on the stack: GCC's intrinsic says that it
  // reads eight bytes of the 64.
  alignas(64) static uint8_t shape[64] = {1};
  for (int tile = 0; tile < 8; tile++) shape[16 + 2 * tile] = 64, shape[48 + tile] = 16;
  alignas(64) float corner[16][16];
  _tile_loadconfig(shape);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t r = 0; r < rounds; r++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, corner, 64);
  _tile_release();
  return corner[0][0];
}
}  // namespace selscan::bench
SELSCAN_POP_TARGET
#endif
namespace selscan::bench {
namespace {

struct Probes {
  float (*sum)(const float*, int64_t);
  float (*multiplyAdds)(int64_t);
  int64_t perRound;
};

Probes probes() {
#if SELSCAN_X86
  if (cpu::isa() >= cpu::Isa::avx512) return {avx512::limits::sum, avx512::limits::multiplyAdds, avx512::limits::Chains * avx512::Lanes};
  if (cpu::isa() == cpu::Isa::avx2) return {avx2::limits::sum, avx2::limits::multiplyAdds, avx2::limits::Chains * avx2::Lanes};
#endif
  return {portable::limits::sum, portable::limits::multiplyAdds, portable::limits::Chains * portable::Lanes};
}

template <class Body>
double bestSeconds(int passes, Body&& body) {
  double best = 1e9;
  for (int pass = 0; pass < passes; pass++) {
    const auto begin = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

double readGBps(const Probes& probe) {
  constexpr int64_t Piece = 192 * 1024 * 4, Pieces = 171;  // floats: 3 MB a piece, 538 MB in all
  Buffer buffer(device("cpu"), Piece * Pieces * sizeof(float));
  float* data = reinterpret_cast<float*>(buffer.data());
  std::fill(data, data + Piece * Pieces, 1.0f);
  std::vector<float> sums(Pieces);
  const double seconds = bestSeconds(6, [&] {
    cpu::parallel(Pieces, [&](int64_t i) { sums[i] = probe.sum(data + i * Piece, Piece); });
  });
  for (const float sum : sums) check(sum == static_cast<float>(Piece), "NATIVE", "limits: a sum of ", Piece, " ones is ", sum);
  return static_cast<double>(Piece * Pieces * sizeof(float)) / seconds / 1e9;
}

// Of a probe that does `perRound` multiply-adds a round.
double gFlops(float (*probe)(int64_t), int64_t rounds, int64_t perRound, int threads) {
  std::vector<float> sums(threads);
  const double seconds = bestSeconds(12, [&] { cpu::parallel(threads, [&](int64_t i) { sums[i] = probe(rounds); }); });
  for (const float sum : sums) check(sum == sums[0], "NATIVE", "limits: threads differ in a sum, ", sum, " and ", sums[0]);
  return 2.0 * static_cast<double>(rounds * perRound * threads) / seconds / 1e9;
}

double halfGFlops([[maybe_unused]] int threads) {
#if SELSCAN_X86
  if (cpu::isa() >= cpu::Isa::amx) return gFlops(tiles, 1'000'000, 4 * 16 * 16 * 32, threads);
  if (cpu::isa() >= cpu::Isa::avx512bf16) return gFlops(dots, 8'000'000, DotChains * 32, threads);
#endif
  return 0;
}

double int8GOps([[maybe_unused]] int threads) {
#if SELSCAN_X86
  if (cpu::isa() >= cpu::Isa::avx512 && __builtin_cpu_supports("avx512vnni")) return gFlops(eights, 8'000'000, EightChains * 64, threads);
#endif
  return 0;
}

}  // namespace

Limits measureLimits(int threads) {
  cpu::setThreadCount(threads);
  const Probes probe = probes();
  const int count = cpu::threadCount();
  return {readGBps(probe), gFlops(probe.multiplyAdds, 8'000'000, probe.perRound, count), halfGFlops(count), int8GOps(count)};
}

}  // namespace selscan::bench
#endif
