// The linear layer's products beside OpenBLAS.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace selscan::bench {

struct LinearShape {
  int64_t rows = 512, in = 1024, out = 1024;
  int threads = 1;
};

// One kind of product: milliseconds, one entry per round.
struct LinearTimes {
  std::string name;
  std::vector<double> milliseconds;
};
struct LinearOutcome {
  std::vector<LinearTimes> times;
  std::string kernels;  // the processor for which sgemm's kernels are
  std::string missing;  // why there is no sgemm among them; empty where there is
  double difference;    // the largest between our f32 and sgemm, relative to the largest output; 0 without sgemm
};

// linear in f32, bf16, int8 and, where there is AMX, bf16x3, its two gradients in bf16, and sgemm of libopenblas.so.0 on as many threads. In
// each round they take turns, so that a slow moment of the machine meets all. Activations are rounded and packed inside the time, weights
// are packed before it: what a model does.
LinearOutcome timeLinear(const LinearShape&, int rounds);

}  // namespace selscan::bench
