// Philox4x32-10 on the device: core/philox.h says what it is, and gives the same numbers.
#pragma once
#include "cuda/ptx.cuh"

namespace selscan::cuda {

// Uniform in [0, 1) with 53 bits, from the first two words of the block at `counter` under the key `seed`.
__device__ __forceinline__ double uniformAt(uint64_t seed, uint64_t counter) {
  uint32_t words[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t even = uint64_t{0xD2511F53u} * words[0], odd = uint64_t{0xCD9E8D57u} * words[2];
    words[0] = static_cast<uint32_t>(odd >> 32) ^ words[1] ^ low;
    words[1] = static_cast<uint32_t>(odd);
    words[2] = static_cast<uint32_t>(even >> 32) ^ words[3] ^ high;
    words[3] = static_cast<uint32_t>(even);
    low += 0x9E3779B9u;   // the golden ratio
    high += 0xBB67AE85u;  // √3 − 1
  }
  return static_cast<double>((uint64_t{words[0]} << 32 | words[1]) >> 11) * 0x1p-53;
}

}  // namespace selscan::cuda
