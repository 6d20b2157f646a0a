// Philox4x32-10, the counter-based random generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3").
// A bijection of the counter under a key: random numbers are a function of (seed, position), with no state to carry.
#pragma once
#include <array>
#include <cstdint>

namespace selscan {

inline std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; round++) {
    const uint64_t even = uint64_t{0xD2511F53u} * counter[0], odd = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(odd >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(odd),
               static_cast<uint32_t>(even >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(even)};
    key[0] += 0x9E3779B9u;  // the golden ratio
    key[1] += 0xBB67AE85u;  // √3 − 1
  }
  return counter;
}

// Uniform in [0, 1) with 53 bits, from the first two words of the block at `counter`.
inline double uniformAt(uint64_t seed, uint64_t counter) {
  const auto words = philox({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0},
                            {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<double>((uint64_t{words[0]} << 32 | words[1]) >> 11) * 0x1p-53;
}

}  // namespace selscan
