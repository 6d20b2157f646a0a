// Launches: their limits, what they may touch, the fault on request. Compiled without -fsanitize=thread.
#include <cstdlib>
#include <cstring>
#include <map>

#include "emulated/block.h"
#include "emulated/runtime.h"
#include "emulated/settings.h"

namespace selscan::emulator {
namespace {

constexpr size_t DefaultShared = 48 * 1024;
constexpr unsigned MaxGridX = 2147483647, MaxGridYz = 65535, MaxBlockZ = 64;

thread_local Exposure exposure;

struct Launches {
  uint64_t seed = settings().seed;
  uint64_t sinceSeed = 0;                   // launches, so that each has an order of its own
  uint64_t untilFault = settings().faultAt;  // launches to come, the last of which faults; 0: none does
  std::map<const void*, size_t> sharedLimits;  // what cudaFuncSetAttribute raised
};
Launches& launches() {
  static auto& instance = *new Launches;
  return instance;
}

bool within(unsigned value, unsigned most) { return value >= 1 && value <= most; }

cudaError_t checkConfiguration(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
  if (!within(grid.x, MaxGridX) || !within(grid.y, MaxGridYz) || !within(grid.z, MaxGridYz)) return cudaErrorInvalidConfiguration;
  if (!within(block.x, MaxThreads) || !within(block.y, MaxThreads) || !within(block.z, MaxBlockZ))
    return cudaErrorInvalidConfiguration;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads > MaxThreads || threads % WarpSize != 0) return cudaErrorInvalidConfiguration;
  const auto& limits = launches().sharedLimits;
  const auto raised = limits.find(kernel);
  if (config.dynamicSmemBytes > (raised == limits.end() ? DefaultShared : raised->second)) return cudaErrorInvalidValue;
  if (config.numAttrs > 0 && config.attrs == nullptr) return cudaErrorInvalidValue;
  for (unsigned i = 0; i < config.numAttrs; i++)
    if (config.attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization) return cudaErrorNotSupported;
  return cudaSuccess;
}

cudaError_t execute(const Launch& launch, const Exposure& ranges) {
  Launches& all = launches();
  all.sinceSeed++;
  if (all.untilFault > 0 && --all.untilFault == 0) {
    loseDevice(cudaErrorIllegalAddress);
    return cudaErrorIllegalAddress;
  }
  const Access access(ranges);
  Launch seeded = launch;
  seeded.seed = all.seed + all.sinceSeed * 0x9E3779B97F4A7C15;
  runBlocks(seeded);
  return cudaSuccess;
}

void fillWritten(const Exposure& ranges) {
  for (const Range& range : *ranges) {
    if (!range.written || range.bytes == 0 || !isAllocated(range.data, range.bytes)) continue;
    const Access access(range.data, range.bytes);
    std::memset(range.data, 0xFF, range.bytes);
  }
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body) {
  return call([&] {
    if (const cudaError_t error = checkConfiguration(config, kernel); error != cudaSuccess) return error;
    const Launch shape{config.gridDim, config.blockDim, config.dynamicSmemBytes, kernel, nullptr, 0};
    return submit(config.stream, [shape, body = std::move(body), ranges = exposure] {
      Launch launch = shape;
      launch.body = &body;
      return execute(launch, ranges);
    });
  });
}

}  // namespace selscan::emulator

namespace selscan::emulated {

using namespace emulator;

void expose(std::span<const Range> ranges) {
  std::lock_guard lock(deviceLock());
  if (deviceState() != cudaSuccess) return;
  for (const Range& range : ranges)
    if (range.bytes > 0 && !isAllocated(range.data, range.bytes))
      report("expose: %zu bytes at %p are not device memory", range.bytes, static_cast<void*>(range.data));
  emulator::exposure = std::make_shared<const std::vector<Range>>(ranges.begin(), ranges.end());
  remember(submitHere([kept = emulator::exposure] {
    fillWritten(kept);
    return cudaSuccess;
  }));
}

void setSeed(uint64_t seed) {
  std::lock_guard lock(deviceLock());
  launches().seed = seed;
  launches().sinceSeed = 0;
}

void setMemoryLimit(size_t bytes) {
  std::lock_guard lock(deviceLock());
  limitMemory(bytes);
}

void failLaunch(uint64_t launch) {
  std::lock_guard lock(deviceLock());
  launches().untilFault = launch;
}

void recover() {
  failLaunch(0);
  std::lock_guard lock(deviceLock());
  loseDevice(cudaSuccess);
  forgetError();
}

}  // namespace selscan::emulated

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  using namespace selscan::emulator;
  return call([&] {
    if (kernel == nullptr) return cudaErrorInvalidDeviceFunction;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
    if (value < 0 || static_cast<size_t>(value) > MaxShared) return cudaErrorInvalidValue;
    launches().sharedLimits[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
  });
}
