// Matrix fragments and products against plain loops, asynchronous copies, and bfloat16.
#include <cuda_bf16.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "support.h"

using namespace selscan::test;
using namespace selscan;
using namespace selscan::emulated;

namespace {

std::vector<uint16_t> randomHalves(size_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) value = __bfloat16_as_ushort(__float2bfloat16_rn(normal(generator)));
  return values;
}
float valueOf(uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }

// C += A B with A 16x16 row-major, B given as 8 columns of 16 (x2) or as 16 rows of 8 (x2 transposed), C 16x8.
__global__ void product(const uint16_t* a, const uint16_t* b, bool rowsOfB, float* c) {
  SHARED(uint16_t, shared);
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) shared[i] = a[i];
  for (unsigned i = lane; i < 128; i += 32) shared[256 + i] = b[i];
  __syncthreads();
  uint32_t left[4], right[2];
  loadMatrix4(left, shared + (lane % 16) * 16 + lane / 16 * 8);
  if (rowsOfB) loadMatrix2Transposed(right, shared + 256 + (lane % 16) * 8);
  else loadMatrix2(right, shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
  const unsigned row = lane / 4, column = lane % 4 * 2;
  float d[4];
  for (unsigned i = 0; i < 4; i++) d[i] = c[(row + i / 2 * 8) * 8 + column + i % 2];
  multiplyAccumulate(d, left, right);
  for (unsigned i = 0; i < 4; i++) c[(row + i / 2 * 8) * 8 + column + i % 2] = d[i];
}

TEST("ldmatrix and mma multiply bf16 matrices as plain loops do") {
  for (uint32_t seed = 0; seed < 20; seed++) {
    const bool rows = seed % 2 == 1;
    const auto a = randomHalves(256, seed), b = randomHalves(128, seed + 100);
    std::vector<float> c(128);
    for (size_t i = 0; i < c.size(); i++) c[i] = static_cast<float>(i) * 0.125f;
    OnDevice<uint16_t> left(a), right(b);
    OnDevice<float> sums(c);
    CHECK(start(product, 1, 32, 384 * sizeof(uint16_t), left.data(), right.data(), rows, sums.data()) == cudaSuccess);
    const auto got = sums.read();
    for (size_t m = 0; m < 16; m++)
      for (size_t n = 0; n < 8; n++) {
        double sum = c[m * 8 + n];
        for (size_t k = 0; k < 16; k++) sum += double{valueOf(a[m * 16 + k])} * valueOf(b[rows ? k * 8 + n : n * 16 + k]);
        CHECK(std::abs(got[m * 8 + n] - sum) <= 2e-5, seed, m, n, got[m * 8 + n], sum);
      }
  }
}

__global__ void fragments(uint32_t* plain, uint32_t* transposed) {
  SHARED(uint16_t, shared);
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) shared[i] = static_cast<uint16_t>(i);
  __syncthreads();
  uint32_t r[4], t[4];
  loadMatrix4(r, shared + lane * 8);
  loadMatrix4Transposed(t, shared + lane * 8);
  for (unsigned m = 0; m < 4; m++) plain[m * 32 + lane] = r[m], transposed[m * 32 + lane] = t[m];
}

TEST("ldmatrix gives lane 4g + q the pair [g][2q], transposed [2q][g]") {
  OnDevice<uint32_t> plain(128), transposed(128);
  CHECK(start(fragments, 1, 32, 512, plain.data(), transposed.data()) == cudaSuccess);
  const auto straight = plain.read(), turned = transposed.read();
  for (uint32_t m = 0; m < 4; m++)
    for (uint32_t lane = 0; lane < 32; lane++) {
      const uint32_t g = lane / 4, q = lane % 4;
      const auto at = [&](uint32_t row, uint32_t column) { return m * 64 + row * 8 + column; };
      CHECK(straight[m * 32 + lane] == (at(g, 2 * q) | at(g, 2 * q + 1) << 16), m, lane);
      CHECK(turned[m * 32 + lane] == (at(2 * q, g) | at(2 * q + 1, g) << 16), m, lane);
    }
}

// Two groups of copies by every thread, read by its neighbour after wait and barrier.
__global__ void copyGroups(const uint4* from, const uint2* pairs, const uint32_t* words, uint4* out, unsigned count) {
  SHARED(uint4, shared);
  const unsigned t = threadIdx.x, n = blockDim.x, other = (t + 1) % n;
  auto small = reinterpret_cast<uint2*>(shared + n);
  auto single = reinterpret_cast<uint32_t*>(small + n);
  copyAsync16(shared + t, from + t, t < count);
  commitCopies();
  copyAsync8(small + t, pairs + t, t < count);
  copyAsync4(single + t, words + t, t < count);
  commitCopies();
  waitCopies<1>();
  __syncthreads();
  uint4 result = shared[other];
  waitCopies<0>();
  __syncthreads();
  result.x += small[other].x + single[other];
  out[t] = result;
}

TEST("copies arrive with the wait for their group, and those not valid bring zeros and read nothing") {
  constexpr unsigned Count = 50;
  std::vector<uint4> values(Count);
  std::vector<uint2> pairs(Count);
  std::vector<uint32_t> words(Count);
  for (unsigned i = 0; i < Count; i++) values[i] = {i, i + 1, i + 2, i + 3}, pairs[i] = {i * 10, 0}, words[i] = i * 100;
  OnDevice<uint4> from(values), out(64);
  OnDevice<uint2> two(pairs);
  OnDevice<uint32_t> one(words);
  for (uint64_t seed = 0; seed < 10; seed++) {
    emulated::setSeed(seed);
    CHECK(start(copyGroups, 1, 64, 64 * 28, from.data(), two.data(), one.data(), out.data(), Count) == cudaSuccess);
    const auto got = out.read();
    for (unsigned t = 0; t < 64; t++) {
      const unsigned other = (t + 1) % 64;
      const uint4 expected = other < Count ? uint4{other * 111, other + 1, other + 2, other + 3} : uint4{0, 0, 0, 0};
      CHECK(std::memcmp(&got[t], &expected, sizeof expected) == 0, seed, t, got[t].x);
    }
  }
}

__global__ void copyAndLook(const uint32_t* from, unsigned* early) {
  SHARED(uint32_t, shared);
  copyAsync4(shared + threadIdx.x, from + threadIdx.x, true);
  commitCopies();
  early[threadIdx.x] = shared[threadIdx.x];
  waitCopies<0>();
}

TEST("a copy may or may not have arrived before the wait") {
  OnDevice<uint32_t> from(32, 5u), early(32);
  CHECK(start(copyAndLook, 1, 32, 128, from.data(), early.data()) == cudaSuccess);
  size_t arrived = 0;
  for (uint32_t value : early.read()) {
    CHECK(value == 5u || value == ~0u, value);
    arrived += value == 5u;
  }
  CHECK(arrived > 0 && arrived < 32, arrived);
}

__global__ void copyMisaligned(const std::byte* from) {
  SHARED(std::byte, shared);
  if (threadIdx.x == 2) copyAsync16(shared, from + 8, true);
}
__global__ void copyToMisaligned(const std::byte* from) {
  SHARED(std::byte, shared);
  copyAsync8(shared + 4, from, true);
}
__global__ void copyBeyond(const std::byte* from) {
  SHARED(std::byte, shared);
  copyAsync16(shared + 1024, from, true);
}
__global__ void loadMisaligned() {
  SHARED(std::byte, shared);
  uint32_t r[2];
  loadMatrix2(r, shared + 8);
}

TEST("misaligned copies and matrix rows end the process and say where") {
  OnDevice<std::byte> from(64);
  DIES("thread (2, 0, 0): cp.async: global address", start(copyMisaligned, 1, 32, 1024, from.data()));
  DIES("cp.async: shared address", start(copyToMisaligned, 1, 32, 1024, from.data()));
  DIES("outside the launch's shared memory", start(copyBeyond, 1, 32, 1024, from.data()));
  DIES("ldmatrix: row at", start(loadMisaligned, 1, 32, 1024));
}

TEST("floats round to the nearest bfloat16, ties to even, every NaN to 0x7FFF") {
  const auto rounded = [](uint32_t bits) { return __bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(bits))); };
  CHECK(rounded(0x3F808000) == 0x3F80);
  CHECK(rounded(0x3F818000) == 0x3F82);
  CHECK(rounded(0x3F808001) == 0x3F81);
  CHECK(rounded(0xBF807FFF) == 0xBF80);
  CHECK(rounded(0x7F7FFFFF) == 0x7F80);
  CHECK(rounded(0xFF800000) == 0xFF80);
  CHECK(rounded(0x80000000) == 0x8000);
  CHECK(rounded(0x00018000) == 0x0002);
  CHECK(rounded(0xFF800001) == 0x7FFF);
  CHECK(rounded(0x7FC00000) == 0x7FFF);
  const float2 both = __bfloat1622float2(__floats2bfloat162_rn(1.5f, -2.0f));
  CHECK(both.x == 1.5f && both.y == -2.0f);
}

TEST("integer intrinsics and min, max of a NaN do as the device's") {
  CHECK(__ffs(0) == 0 && __ffs(8) == 4 && __clz(1) == 31 && __clz(0) == 32 && __popc(0xF0F0u) == 8);
  CHECK(__umulhi(0x80000000u, 6u) == 3u && __umul64hi(1ull << 63, 6ull) == 3ull);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(max(nan, 1.0f) == 1.0f && min(1.0f, nan) == 1.0f && max(2, 3) == 3 && min(2u, 3u) == 2u);
}

}  // namespace
