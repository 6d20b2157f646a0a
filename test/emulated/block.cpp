// Barriers, warp operations, the order of threads and blocks, shared memory; and what ends a process whose kernel gets them
// wrong.
#include <algorithm>
#include <set>

#include "support.h"

using namespace selscan::test;
using namespace selscan;

namespace {

__global__ void reverseThrice(int* data) {
  SHARED(int, shared);
  const int n = static_cast<int>(blockDim.x), t = static_cast<int>(threadIdx.x);
  int value = data[blockIdx.x * n + t];
  for (int round = 0; round < 3; round++) {
    shared[t] = value;
    __syncthreads();
    value = shared[n - 1 - t];
    __syncthreads();
  }
  data[blockIdx.x * n + t] = value;
}

TEST("a barrier shows every thread what the others wrote before it") {
  std::vector<int> values(10 * 96), expected(values.size());
  for (size_t i = 0; i < values.size(); i++) {
    values[i] = static_cast<int>(i * 7);
    expected[i / 96 * 96 + 95 - i % 96] = values[i];
  }
  OnDevice<int> data(values);
  CHECK(start(reverseThrice, 10, 96, 96 * sizeof(int), data.data()) == cudaSuccess);
  CHECK(data.read() == expected);
}

__global__ void vote(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  const int count = __syncthreads_count(t % 3 == 0), any = __syncthreads_or(t == 63), none = __syncthreads_or(t > 99);
  const int all = __syncthreads_and(t < 64), some = __syncthreads_and(t < 63);
  out[t] = count * 10000 + any * 1000 + none * 100 + all * 10 + some;
}

TEST("barriers count the threads for which a condition holds") {
  OnDevice<int> out(64);
  CHECK(start(vote, 1, 64, 0, out.data()) == cudaSuccess);
  for (int value : out.read()) CHECK(value == 221010, value);
}

struct Shuffled {
  int from, up, down, across, group;
  double wide;
  unsigned ballot;
  int any, all;
};
__global__ void shuffleAll(Shuffled* out) {
  const unsigned t = threadIdx.y * blockDim.x + threadIdx.x;
  const int lane = static_cast<int>(t % 32), value = static_cast<int>(t);
  Shuffled s;
  s.from = __shfl_sync(~0u, value, lane + 5);
  s.up = __shfl_up_sync(~0u, value, 3u);
  s.down = __shfl_down_sync(~0u, value, 3u);
  s.across = __shfl_xor_sync(~0u, value, 9);
  s.group = __shfl_sync(~0u, value, 1, 8);
  s.wide = __shfl_xor_sync(~0u, value + 0.25, 31);
  s.ballot = __ballot_sync(~0u, lane % 4 == 1);
  s.any = __any_sync(~0u, t == 40);
  s.all = __all_sync(~0u, t >= 32);
  out[t] = s;
}

TEST("shuffles, ballots and votes stay within their warp") {
  OnDevice<Shuffled> out(64);
  CHECK(start(shuffleAll, 1, dim3(16, 4), 0, out.data()) == cudaSuccess);
  const auto values = out.read();
  for (int t = 0; t < 64; t++) {
    const int lane = t % 32, warp = t - lane;
    const Shuffled& s = values[static_cast<size_t>(t)];
    CHECK(s.from == warp + (lane + 5) % 32, t, s.from);
    CHECK(s.up == (lane < 3 ? t : t - 3), t, s.up);
    CHECK(s.down == (lane > 28 ? t : t + 3), t, s.down);
    CHECK(s.across == warp + (lane ^ 9), t, s.across);
    CHECK(s.group == t / 8 * 8 + 1, t, s.group);
    CHECK(s.wide == warp + 31 - lane + 0.25, t, s.wide);
    CHECK(s.ballot == 0x22222222u, t, s.ballot);
    CHECK(s.any == (warp == 32) && s.all == (warp == 32), t);
  }
}

__global__ void logOrder(int* log, int* next) { log[(*next)++] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

std::vector<int> orderOf(uint64_t seed) {
  OnDevice<int> log(8 * 64), next(1);
  emulated::setSeed(seed);
  CHECK(start(logOrder, 8, 64, 0, log.data(), next.data()) == cudaSuccess);
  return log.read();
}

TEST("blocks and threads run in an order of the seed, each once") {
  if (emulator::underTsan()) {
    skipped() = "its kernel races on purpose";
    return;
  }
  const auto first = orderOf(1), again = orderOf(1), other = orderOf(2);
  CHECK(first == again);
  CHECK(first != other);
  CHECK(!std::is_sorted(first.begin(), first.end()));
  CHECK(std::set<int>(first.begin(), first.end()).size() == first.size());
  std::set<int> starts;
  for (uint64_t seed = 1; seed < 20; seed++) starts.insert(orderOf(seed)[0] / 64);
  CHECK(starts.size() > 3, starts.size());
}

__global__ void readShared(unsigned* out, unsigned value) {
  SHARED(unsigned, shared);
  out[blockIdx.x * blockDim.x + threadIdx.x] = shared[threadIdx.x];
  shared[threadIdx.x] = value;
}

TEST("every block finds shared memory full of ones") {
  OnDevice<unsigned> out(5 * 32);
  CHECK(start(readShared, 5, 32, 32 * sizeof(unsigned), out.data(), 7u) == cudaSuccess);
  for (unsigned value : out.read()) CHECK(value == ~0u, value);
}

__global__ void coordinates(dim3* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * 64 + thread] = dim3(block, thread, blockDim.x * 100 + blockDim.y * 10 + blockDim.z);
}

TEST("grids and blocks have three dimensions") {
  OnDevice<dim3> out(2 * 3 * 4 * 64);
  CHECK(start(coordinates, dim3(2, 3, 4), dim3(8, 4, 2), 0, out.data()) == cudaSuccess);
  const auto values = out.read();
  for (unsigned i = 0; i < values.size(); i++) CHECK(values[i].x == i / 64 && values[i].y == i % 64 && values[i].z == 842, i);
}

__global__ void halfBarrier() {
  if (threadIdx.x < 32) __syncthreads();
  else __syncwarp();
  if (threadIdx.x >= 32) __syncthreads(), __syncthreads();
}
__global__ void exitEarly() {
  if (threadIdx.x >= 40) return;
  __syncthreads();
}
__global__ void halfWarp() {
  if (threadIdx.x % 32 < 20) __shfl_sync(~0u, 1, 0);
}
__global__ void mixedWarp() { threadIdx.x < 16 ? __syncwarp() : void(__ballot_sync(~0u, 1)); }
__global__ void halfMask() { __shfl_sync(0xFFFFu, 1, 0); }
__global__ void trapped() {
  if (threadIdx.x == 3) __trap();
}

TEST("a barrier or warp operation that some threads miss ends the process and says where") {
  DIES("__syncthreads reached by 32 of 64 threads, 32 exited before", start(halfBarrier, 3, 64, 0));
  DIES("__syncthreads reached by 40 of 64 threads, 24 exited before", start(exitEarly, 1, 64, 0));
  DIES("a shuffle reached by 20 of 32 lanes of warp", start(halfWarp, 1, 64, 0));
  DIES("all lanes must come to one operation", start(mixedWarp, 1, 32, 0));
  DIES("mask 0xffff", start(halfMask, 1, 32, 0));
  DIES("thread (3, 0, 0): __trap", start(trapped, 1, 32, 0));
  DIES("block (0, 0, 0)", start(exitEarly, 1, 64, 0));
  DIES("__syncthreads outside a kernel", __syncthreads());
}

}  // namespace
