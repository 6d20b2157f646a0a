// ldmatrix and mma.m16n8k16 in PTX's fragment layouts. Compiled without -fsanitize=thread; rows read from shared memory are
// recorded for the lane that gave their address.
//
// With g = lane / 4 and q = lane % 4, register by register (two bf16 each, the lower half first):
//   A 16x16: [g][2q..] [g+8][2q..] [g][2q+8..] [g+8][2q+8..]    B 16x8: [2q..][g] [2q+8..][g]    D 16x8: [g][2q..] [g+8][2q..]
#include <bit>

#include "emulated/block.h"
#include "emulated/ptx.h"
#include "emulated/sanitizer.h"

namespace selscan::emulator {
namespace {

template <int Matrices, bool Transposed>
void loadMatrices(uint32_t (&r)[Matrices], const void* row) {
  Thread& self = currentThread("ldmatrix");
  Warp& warp = *self.warp;
  if (self.lane < 8 * Matrices) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) report("ldmatrix: row at %p is misaligned; rows are 16-byte aligned", row);
    if (!inShared(row, 16)) report("ldmatrix: row at %p is outside the launch's shared memory", row);
    recordRead(row, 16);
    for (int i = 0; i < 4; i++) slotOf(self).words[i] = static_cast<const uint32_t*>(row)[i];
  }
  const unsigned phase = meetWarp(self, WarpOperation::LoadMatrix);
  const unsigned g = self.lane / 4, q = self.lane % 4;
  for (int m = 0; m < Matrices; m++) {
    const Slot* rows = warp.slots[phase] + 8 * m;
    const auto element = [&](unsigned y, unsigned x) { return rows[y].words[x / 2] >> (16 * (x % 2)) & 0xFFFF; };
    r[m] = Transposed ? element(2 * q, g) | element(2 * q + 1, g) << 16 : rows[g].words[q];
  }
}

float lower(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float upper(uint32_t pair) { return std::bit_cast<float>(pair & 0xFFFF0000); }

// Words 0..3 of a slot are A's registers, 4 and 5 B's, 6..9 the accumulators.
void multiply(Slot (&slots)[WarpSize]) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < WarpSize; lane++) {
    const unsigned g = lane / 4, q = lane % 4;
    const uint32_t* words = slots[lane].words;
    for (unsigned i = 0; i < 4; i++) {
      float* at = &a[g + 8 * (i % 2)][2 * q + 8 * (i / 2)];
      at[0] = lower(words[i]), at[1] = upper(words[i]);
    }
    for (unsigned i = 0; i < 2; i++) {
      b[2 * q + 8 * i][g] = lower(words[4 + i]);
      b[2 * q + 8 * i + 1][g] = upper(words[4 + i]);
    }
  }
  for (unsigned row = 0; row < 16; row++) {
    float sums[8] = {};
    for (unsigned k = 0; k < 16; k++)
      for (unsigned n = 0; n < 8; n++) sums[n] += a[row][k] * b[k][n];
    for (unsigned n = 0; n < 8; n++) {
      uint32_t& word = slots[row % 8 * 4 + n / 2].words[6 + row / 8 * 2 + n % 2];
      word = std::bit_cast<uint32_t>(std::bit_cast<float>(word) + sums[n]);
    }
  }
}

}  // namespace
}  // namespace selscan::emulator

namespace selscan::emulated {

using namespace emulator;

void loadMatrix4(uint32_t (&r)[4], const void* sharedRow) { loadMatrices<4, false>(r, sharedRow); }
void loadMatrix4Transposed(uint32_t (&r)[4], const void* sharedRow) { loadMatrices<4, true>(r, sharedRow); }
void loadMatrix2(uint32_t (&r)[2], const void* sharedRow) { loadMatrices<2, false>(r, sharedRow); }
void loadMatrix2Transposed(uint32_t (&r)[2], const void* sharedRow) { loadMatrices<2, true>(r, sharedRow); }

void multiplyAccumulate(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Thread& self = currentThread("mma");
  Warp& warp = *self.warp;
  uint32_t* words = slotOf(self).words;
  for (int i = 0; i < 4; i++) words[i] = a[i];
  for (int i = 0; i < 2; i++) words[4 + i] = b[i];
  for (int i = 0; i < 4; i++) words[6 + i] = std::bit_cast<uint32_t>(d[i]);
  const unsigned phase = meetWarp(self, WarpOperation::Multiply, multiply);
  for (int i = 0; i < 4; i++) d[i] = std::bit_cast<float>(warp.slots[phase][self.lane].words[6 + i]);
}

}  // namespace selscan::emulated
