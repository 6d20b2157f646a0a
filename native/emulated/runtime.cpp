// The runtime's errors, device and memory. Compiled without -fsanitize=thread.
#include "emulated/runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include "emulated/block.h"
#include "emulated/settings.h"

namespace selscan::emulator {
namespace {

constinit thread_local cudaError_t lastError = cudaSuccess;
constinit thread_local int currentDevice = 0;

cudaError_t& lost() {
  static cudaError_t error = cudaSuccess;
  return error;
}

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* sentence;
};
constexpr ErrorText Errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources", "too many resources requested for launch"},
    {cudaErrorMisalignedAddress, "cudaErrorMisalignedAddress", "misaligned address"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched", "capture was not initiated in this stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent", "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};
const ErrorText* textOf(cudaError_t error) {
  for (const ErrorText& text : Errors)
    if (text.error == error) return &text;
  return nullptr;
}

std::set<void*>& hostAllocations() {
  static auto& instance = *new std::set<void*>;
  return instance;
}

// An H100 with the memory that the emulator may use.
cudaDeviceProp describe() {
  cudaDeviceProp properties{};
  std::snprintf(properties.name, sizeof properties.name, "selscan emulated device");
  properties.totalGlobalMem = memoryLimit();
  properties.sharedMemPerBlock = 48 * 1024;
  properties.regsPerBlock = 65536;
  properties.warpSize = 32;
  properties.maxThreadsPerBlock = MaxThreads;
  const int threads[] = {1024, 1024, 64}, grid[] = {2147483647, 65535, 65535};
  for (int i = 0; i < 3; i++) properties.maxThreadsDim[i] = threads[i], properties.maxGridSize[i] = grid[i];
  properties.major = 9;
  properties.minor = 0;
  properties.multiProcessorCount = 132;
  properties.l2CacheSize = 50 * 1024 * 1024;
  properties.maxThreadsPerMultiProcessor = 2048;
  properties.sharedMemPerMultiprocessor = 233472;
  properties.sharedMemPerBlockOptin = MaxShared;
  return properties;
}

}  // namespace

cudaError_t deviceState() {
  const int devices = settings().devices;
  if (devices < 0) return cudaErrorInsufficientDriver;
  return devices == 0 ? cudaErrorNoDevice : lost();
}

void loseDevice(cudaError_t error) { lost() = error; }

std::mutex& deviceLock() {
  static auto& lock = *new std::mutex;
  return lock;
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) lastError = error;
  return error;
}
void forgetError() { lastError = cudaSuccess; }

}  // namespace selscan::emulator

using namespace selscan::emulator;

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* text = textOf(error);
  return text ? text->name : "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* text = textOf(error);
  return text ? text->sentence : "unrecognized error code";
}

// A lost device stays lost; every other error is told once.
cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  lastError = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  std::lock_guard guard(deviceLock());
  const cudaError_t state = deviceState();
  return state != cudaSuccess ? state : lastError;
}

cudaError_t cudaGetDeviceCount(int* count) {
  if (count) *count = settings().devices > 0 ? settings().devices : 0;
  return call([&] { return count ? cudaSuccess : cudaErrorInvalidValue; });
}
cudaError_t cudaSetDevice(int device) {
  return call([&] {
    if (device < 0 || device >= settings().devices) return cudaErrorInvalidDevice;
    currentDevice = device;
    return cudaSuccess;
  });
}
cudaError_t cudaGetDevice(int* device) {
  return call([&] {
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = currentDevice;
    return cudaSuccess;
  });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call([&] {
    if (properties == nullptr) return cudaErrorInvalidValue;
    if (device < 0 || device >= settings().devices) return cudaErrorInvalidDevice;
    *properties = describe();
    return cudaSuccess;
  });
}
// The versions are known without a device; the driver's is 0 without a driver.
cudaError_t cudaDriverGetVersion(int* version) {
  if (version == nullptr) return remember(cudaErrorInvalidValue);
  *version = settings().devices < 0 ? 0 : 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  if (version == nullptr) return remember(cudaErrorInvalidValue);
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return call([&] {
    if (free == nullptr || total == nullptr) return cudaErrorInvalidValue;
    *total = memoryLimit();
    *free = memoryLimit() - std::min(memoryUsed(), memoryLimit());
    return cudaSuccess;
  });
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  return call([&] {
    if (data == nullptr) return cudaErrorInvalidValue;
    *data = nullptr;
    if (const cudaError_t error = refuseDuringCapture(); error != cudaSuccess) return error;
    if (bytes == 0) return cudaSuccess;
    *data = allocateMemory(bytes);
    return *data ? cudaSuccess : cudaErrorMemoryAllocation;
  });
}
cudaError_t cudaFree(void* data) {
  return call([&] {
    if (const cudaError_t error = refuseDuringCapture(); error != cudaSuccess) return error;
    return data == nullptr || releaseMemory(data) ? cudaSuccess : cudaErrorInvalidValue;
  });
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  return call([&] {
    if (data == nullptr) return cudaErrorInvalidValue;
    *data = nullptr;
    if (const cudaError_t error = refuseDuringCapture(); error != cudaSuccess) return error;
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(data, 4096, bytes) != 0) return cudaErrorMemoryAllocation;
    hostAllocations().insert(*data);
    return cudaSuccess;
  });
}
cudaError_t cudaFreeHost(void* data) {
  return call([&] {
    if (const cudaError_t error = refuseDuringCapture(); error != cudaSuccess) return error;
    if (data == nullptr) return cudaSuccess;
    if (hostAllocations().erase(data) == 0) return cudaErrorInvalidValue;
    std::free(data);
    return cudaSuccess;
  });
}

// Device sides lie whole in one allocation; host sides in none.
static bool sidesAgree(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const bool toDevice = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool fromDevice = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const auto agrees = [&](const void* side, bool device) { return device ? isAllocated(side, bytes) : !isDeviceMemory(side); };
  return to != nullptr && from != nullptr && agrees(to, toDevice) && agrees(from, fromDevice);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return call([&] {
    if (bytes == 0) return cudaSuccess;
    if (kind == cudaMemcpyDefault) {
      constexpr cudaMemcpyKind Kinds[2][2] = {{cudaMemcpyHostToHost, cudaMemcpyHostToDevice},
                                              {cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice}};
      kind = Kinds[isDeviceMemory(from)][isDeviceMemory(to)];
    }
    if (!sidesAgree(to, from, bytes, kind)) return cudaErrorInvalidValue;
    return submit(stream, [=] {
      if (!sidesAgree(to, from, bytes, kind)) {  // a replay after the memory was freed
        loseDevice(cudaErrorIllegalAddress);
        return cudaErrorIllegalAddress;
      }
      const Access read(from, bytes), written(to, bytes);
      std::memmove(to, from, bytes);
      return cudaSuccess;
    });
  });
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  return call([&] {
    if (bytes == 0) return cudaSuccess;
    if (!isAllocated(data, bytes)) return cudaErrorInvalidValue;
    return submit(stream, [=] {
      if (!isAllocated(data, bytes)) {
        loseDevice(cudaErrorIllegalAddress);
        return cudaErrorIllegalAddress;
      }
      const Access written(data, bytes);
      std::memset(data, value, bytes);
      return cudaSuccess;
    });
  });
}
