// Read bandwidth and peak of multiply-adds, on the instruction set that the kernels use.
//
// Both are maxima, so the best pass counts: whatever else the machine does can only take away. The buffer is 512 MB, 16 times
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

double fmaGFlops(const Probes& probe, int threads) {
  constexpr int64_t Rounds = 8'000'000;
  std::vector<float> sums(threads);
  const double seconds = bestSeconds(12, [&] { cpu::parallel(threads, [&](int64_t i) { sums[i] = probe.multiplyAdds(Rounds); }); });
  for (const float sum : sums) check(sum == sums[0], "NATIVE", "limits: threads differ in a sum, ", sum, " and ", sums[0]);
  return 2.0 * static_cast<double>(Rounds * probe.perRound * threads) / seconds / 1e9;
}

}  // namespace

Limits measureLimits(int threads) {
  cpu::setThreadCount(threads);
  const Probes probe = probes();
  return {readGBps(probe), fmaGFlops(probe, cpu::threadCount())};
}

}  // namespace selscan::bench
#endif
