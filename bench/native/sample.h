// Choosing the next token, by settings and by how flat the distribution is.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace selscan::bench {

struct SampleShape {
  int64_t samples = 1, vocab = 50280;
  int threads = 1;
};

// Microseconds of a run, one entry per round.
struct SampleTimes {
  std::string name;
  std::vector<double> microseconds;
};

// All settings take turns in each round. Logits are "peaked" (Zipf's law with exponent 1.5, as a trained model has them), "flat" (normal
// with deviation ½, as one with random weights has them) or "equal".
std::vector<SampleTimes> timeSample(const SampleShape&, int rounds);

}  // namespace selscan::bench
