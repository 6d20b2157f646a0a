// What only a sanitizer can see: memory that was not given to a launch (ASan), missing order between threads (TSan). Every kernel
// here is wrong on purpose, but for the twin of each that shows the right way and must stay silent.
#include <unistd.h>

#include "support.h"

using namespace selscan::test;
using namespace selscan;
using namespace selscan::emulated;

namespace {

__global__ void store(float* data, size_t at) {
  if (threadIdx.x == 0) data[at] = 1;
}
__global__ void load(const float* data, float* out) { out[threadIdx.x] = data[threadIdx.x]; }
__global__ void storeShared(unsigned at) {
  SHARED(unsigned, shared);
  shared[at + threadIdx.x] = 1;
}
__global__ void loadEarly(const uint4* from, uint4* out) {
  SHARED(uint4, shared);
  copyAsync16(shared + threadIdx.x, from + threadIdx.x, true);
  commitCopies();
  out[threadIdx.x] = shared[threadIdx.x];
  waitCopies<0>();
}
__global__ void copyBeyondSource(const uint4* from) {
  SHARED(uint4, shared);
  copyAsync16(shared + threadIdx.x, from + threadIdx.x, true);
  waitCopies<0>();
}
__global__ void misaligned(const float* data, float4* out) { out[threadIdx.x] = *reinterpret_cast<const float4*>(data + 1); }

TEST("a store out of range, an unexposed range and host eyes on device memory are reported") {
  if (!withAsan()) return;
  OnDevice<float> a(32), b(32);
  DIES("AddressSanitizer: heap-buffer-overflow", start(store, 1, 32, 0, a.data(), size_t{32}));
  DIES("in store", start(store, 1, 32, 0, a.data(), size_t{32}));
  const Range both[] = {a.range(false), b.range(true)}, outputOnly[] = {b.range(true)};
  expose(both);
  CHECK(start(load, 1, 32, 0, a.data(), b.data()) == cudaSuccess);
  expose(outputOnly);
  DIES("AddressSanitizer: use-after-poison", start(load, 1, 32, 0, a.data(), b.data()));
  expose({});
  CHECK(start(load, 1, 32, 0, a.data(), b.data()) == cudaSuccess);
  DIES("AddressSanitizer: use-after-poison", static_cast<void>(*static_cast<volatile float*>(a.data())));
  char* fresh = nullptr;
  CHECK(cudaMalloc(&fresh, 64) == cudaSuccess);
  DIES("AddressSanitizer: use-after-poison", static_cast<void>(*static_cast<volatile char*>(fresh)));
  CHECK(cudaFree(fresh) == cudaSuccess);
  std::byte host[128];
  const Range wrong[] = {{host, sizeof host, false}};
  DIES("expose: 128 bytes at", expose(wrong));
}

TEST("shared memory ends where the launch says") {
  if (!withAsan()) return;
  CHECK(start(storeShared, 2, 32, 256, 32u) == cudaSuccess);
  DIES("AddressSanitizer: use-after-poison", start(storeShared, 1, 32, 256, 33u));
}

TEST("a copy's destination is nobody's until the wait, and its source is checked") {
  if (!withAsan()) return;
  OnDevice<uint4> from(32), out(32), few(31);
  DIES("AddressSanitizer: use-after-poison", start(loadEarly, 1, 32, 512, from.data(), out.data()));
  DIES("copyAsync16", start(copyBeyondSource, 1, 32, 512, few.data()));
  CHECK(start(copyBeyondSource, 1, 32, 512, from.data()) == cudaSuccess);
}

TEST("a misaligned vector load is reported") {
  if (!withAsan()) return;
  OnDevice<float> data(8);
  OnDevice<float4> out(32);
  DIES("misaligned address", start(misaligned, 1, 32, 0, data.data(), out.data()));
}

// Every race with the line that prevents it.
unsigned everywhere() { return blockIdx.x * blockDim.x + threadIdx.x; }
__global__ void neighbours(int* out, bool right) {
  SHARED(int, shared);
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (right) __syncthreads();
  out[everywhere()] = shared[threadIdx.x ^ 33];
}
__global__ void lanes(int* out, bool right) {
  SHARED(int, shared);
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  __shfl_xor_sync(~0u, 1, 1);  // orders no memory
  if (right) __syncwarp();
  out[everywhere()] = shared[threadIdx.x ^ 1];
}
__global__ void blocks(int* out, bool right) { out[right ? everywhere() : threadIdx.x] = 1; }
__global__ void blocksAfterBarrier(int* out, bool right) {
  __syncthreads();
  if (threadIdx.x == blockIdx.x) out[right ? blockIdx.x : 0] = 1;
  __syncthreads();
}
__global__ void copied(const uint4* from, uint4* out, bool right) {
  SHARED(uint4, shared);
  copyAsync16(shared + threadIdx.x, from + threadIdx.x, true);
  commitCopies();
  if (right) waitCopies<0>();
  __syncthreads();
  out[everywhere()] = shared[threadIdx.x ^ 1];
  if (!right) waitCopies<0>();
}
__global__ void bufferAgain(const uint4* from, uint4* out, bool right) {
  SHARED(uint4, shared);
  shared[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  out[everywhere()] = shared[threadIdx.x ^ 1];
  if (right) __syncthreads();
  copyAsync16(shared + threadIdx.x, from + threadIdx.x, true);
  commitCopies();
  waitCopies<0>();
}
__global__ void rows(uint32_t* out, bool right) {
  SHARED(uint32_t, shared);
  for (unsigned i = threadIdx.x; i < 128; i += 32) shared[i] = i;
  if (right) __syncwarp();
  uint32_t r[4];
  loadMatrix4(r, shared + threadIdx.x * 4);
  out[threadIdx.x] = r[0];
}

// In a process of its own: TSan orders nothing any more in the child of a process that had fibers.
struct Race {
  const char* name;
  void (*run)(bool right);
};
const OnDevice<int>& ints() {
  static const OnDevice<int> memory(4096);
  return memory;
}
const OnDevice<uint4>& vectors(int which) {
  static const OnDevice<uint4> memory[] = {OnDevice<uint4>(128), OnDevice<uint4>(128)};
  return memory[which];
}
constexpr Race Races[] = {
    {"__syncthreads", [](bool right) { start(neighbours, 3, 64, 256, ints().data(), right); }},
    {"__syncwarp", [](bool right) { start(lanes, 3, 64, 256, ints().data(), right); }},
    {"two blocks", [](bool right) { start(blocks, 4, 64, 0, ints().data(), right); }},
    {"two large blocks", [](bool right) { start(blocks, 4, 1024, 0, ints().data(), right); }},
    {"two blocks with barriers", [](bool right) { start(blocksAfterBarrier, 8, 64, 0, ints().data(), right); }},
    {"cp.async without wait",
     [](bool right) { start(copied, 2, 64, 1024, vectors(0).data(), vectors(1).data(), right); }},
    {"a buffer copied to too early",
     [](bool right) { start(bufferAgain, 2, 64, 1024, vectors(0).data(), vectors(1).data(), right); }},
    {"ldmatrix", [](bool right) { start(rows, 1, 32, 512, reinterpret_cast<uint32_t*>(ints().data()), right); }},
};

TEST("a missing barrier is a race, and the kernel that has it is silent") {
  if (!withTsan()) return;
  const auto outputOfRace = [](const char* name, const char* how) {
    return outputOf([=] { execl("/proc/self/exe", "race", "race", name, how, nullptr); });
  };
  for (const Race& race : Races) {
    const std::string wrong = outputOfRace(race.name, "wrong");
    CHECK(wrong.find("ThreadSanitizer: data race") != std::string::npos, race.name, wrong);
  }
  const std::string right = outputOfRace("all", "right");
  CHECK(right.empty(), right.substr(0, 4000));
}

TEST("launches follow one another, and the host follows them") {
  OnDevice<int> out(64, 0);
  for (int i = 0; i < 3; i++) CHECK(start(blocks, 1, 64, 0, out.data(), false) == cudaSuccess);
  CHECK(out.read()[63] == 1);
}

}  // namespace

int selscan::test::runRace(const std::string& name, bool right) {
  bool found = false;
  for (const Race& race : Races)
    if (name == "all" || race.name == name) race.run(right), found = true;
  return found ? 0 : 2;
}
