// What this machine can do at most, measured: the yardsticks beside which kernels are printed.
#pragma once

namespace selscan::bench {

struct Limits {
  double readGBps;   // sums of a buffer far larger than the caches
  double fmaGFlops;  // independent f32 multiply-adds in registers; one counts as two operations
  double halfGFlops;  // the same of products of bf16 (vdpbf16ps or AMX tiles); 0 where the processor has no instruction for them
  double int8GOps;    // the same of products of 8 bits (vpdpbusd of AVX512-VNNI); 0 without
};

// The best of several passes on `threads` threads (0: all usable cores). Leaves the pool at that size.
Limits measureLimits(int threads);

}  // namespace selscan::bench
