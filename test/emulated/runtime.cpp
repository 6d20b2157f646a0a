// The runtime's contracts: limits of a launch, memory, capture and replay, lost devices, machines without one.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>

#include "support.h"

using namespace selscan::test;
using namespace selscan;

namespace {

__global__ void nothing() {}
__global__ void scale(float* data, float factor) { data[blockIdx.x * blockDim.x + threadIdx.x] *= factor; }
__global__ void fillShared(unsigned words) {
  SHARED(unsigned, shared);
  for (unsigned i = threadIdx.x; i < words; i += blockDim.x) shared[i] = i;
}

TEST("launches beyond the hardware's limits are refused") {
  const auto refused = [](dim3 grid, dim3 block) { return start(nothing, grid, block, 0) == cudaErrorInvalidConfiguration; };
  CHECK(refused(1, 0));
  CHECK(refused(1, 33));
  CHECK(refused(1, 1056));
  CHECK(refused(1, dim3(64, 32)));
  CHECK(refused(1, dim3(1, 1, 96)));
  CHECK(refused(0, 32));
  CHECK(refused(0x80000000u, 32));
  CHECK(refused(dim3(1, 65536), 32));
  CHECK(refused(dim3(1, 1, 65536), 32));
  CHECK(start(nothing, dim3(1, 65535), 32, 0) == cudaSuccess);
  CHECK(start(nothing, 2, 1024, 0) == cudaSuccess);
  CHECK(cudaGetLastError() == cudaErrorInvalidConfiguration);
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST("a kernel has 48 KB of shared memory until it asks for more, up to 227 KB") {
  CHECK(start(fillShared, 1, 32, 48 * 1024, 12288u) == cudaSuccess);
  CHECK(start(fillShared, 1, 32, 48 * 1024 + 4, 12289u) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(fillShared, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(fillShared, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448) == cudaSuccess);
  CHECK(start(fillShared, 1, 32, 232448, 58112u) == cudaSuccess);
  CHECK(start(fillShared, 1, 32, 232449, 58112u) == cudaErrorInvalidValue);
  CHECK(start(nothing, 1, 32, 48 * 1024 + 4) == cudaErrorInvalidValue);
}

TEST("copies and fills that leave their allocation, or name the wrong side, are refused") {
  OnDevice<float> a(8), b(8);
  float host[16] = {};
  CHECK(cudaMemcpyAsync(a.data(), host, 36, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(a.data() + 1, host, 32, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(a.data(), host, 32, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(host, host + 8, 32, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(b.data(), a.data(), 36, cudaMemcpyDeviceToDevice) == cudaErrorInvalidValue);
  CHECK(cudaMemsetAsync(a.data(), 0, 33) == cudaErrorInvalidValue);
  CHECK(cudaMemcpyAsync(b.data(), a.data(), 32, cudaMemcpyDefault) == cudaSuccess);
  CHECK(cudaMemcpyAsync(nullptr, nullptr, 0, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(cudaFree(a.data() + 1) == cudaErrorInvalidValue);
  CHECK(cudaFreeHost(host) == cudaErrorInvalidValue);
  CHECK(cudaFree(nullptr) == cudaSuccess);
}

TEST("new memory is full of ones, and memory ends at the limit") {
  size_t free = 0, total = 0;
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess);
  const size_t used = total - free;
  emulated::setMemoryLimit(used + 1000);
  void *first = nullptr, *second = nullptr;
  CHECK(cudaMalloc(&first, 600) == cudaSuccess);
  CHECK(cudaMemGetInfo(&free, &total) == cudaSuccess && free == 400 && total == used + 1000, free, total);
  CHECK(cudaMalloc(&second, 401) == cudaErrorMemoryAllocation && second == nullptr);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaMalloc(&second, 400) == cudaSuccess);
  uint32_t word = 0;
  CHECK(cudaMemcpyAsync(&word, second, 4, cudaMemcpyDeviceToHost) == cudaSuccess && word == ~0u);
  CHECK(cudaFree(first) == cudaSuccess && cudaFree(second) == cudaSuccess);
  CHECK(cudaFree(second) == cudaErrorInvalidValue);
  emulated::setMemoryLimit(total + (size_t{1} << 40));
}

struct Captured {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  Captured() {
    CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  }
  void end() {
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&executable, graph, 0) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
  }
  ~Captured() {
    if (executable) CHECK(cudaGraphExecDestroy(executable) == cudaSuccess);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  }
};

TEST("a replayed graph has its arguments of the capture and today's memory behind the pointers") {
  OnDevice<float> data(64, 1.0f);
  std::vector<float> result(64);
  Captured capture;
  float factor = 3;
  const cudaLaunchConfig_t config{1, 64, 0, capture.stream, nullptr, 0};
  CHECK(cudaLaunchKernelEx(&config, scale, data.data(), factor) == cudaSuccess);
  factor = 100;
  CHECK(cudaMemcpyAsync(result.data(), data.data(), 256, cudaMemcpyDeviceToHost, capture.stream) == cudaSuccess);
  capture.end();
  CHECK(result[0] == 0 && data.read()[0] == 1);
  CHECK(cudaGraphLaunch(capture.executable, capture.stream) == cudaSuccess);
  CHECK(cudaStreamSynchronize(capture.stream) == cudaSuccess);
  CHECK(result[0] == 3 && result[63] == 3, result[0]);
  data.write(std::vector<float>(64, 5.0f));
  CHECK(cudaGraphLaunch(capture.executable, nullptr) == cudaSuccess);
  CHECK(result[0] == 15 && result[63] == 15, result[0]);
}

TEST("written ranges are full of ones before each replay") {
  OnDevice<uint32_t> data(64, 1u);
  Captured capture;
  const emulated::Range ranges[] = {data.range(true), {nullptr, 0, true}};
  emulated::expose(ranges);
  capture.end();
  CHECK(data.read()[0] == 1);
  CHECK(cudaGraphLaunch(capture.executable, capture.stream) == cudaSuccess);
  CHECK(data.read()[0] == ~0u && data.read()[63] == ~0u);
  data.write(std::vector<uint32_t>(64, 2));
  emulated::expose(ranges);
  CHECK(data.read()[5] == ~0u);
  emulated::expose({});
}

TEST("a capture ends with the first call that it may not contain") {
  Captured capture;
  void* data = nullptr;
  CHECK(cudaMalloc(&data, 16) == cudaErrorStreamCaptureUnsupported);
  const cudaLaunchConfig_t config{1, 32, 0, capture.stream, nullptr, 0};
  CHECK(cudaLaunchKernelEx(&config, nothing) == cudaErrorStreamCaptureInvalidated);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(capture.stream, &graph) == cudaErrorStreamCaptureInvalidated && graph == nullptr);
  CHECK(cudaMalloc(&data, 16) == cudaSuccess && cudaFree(data) == cudaSuccess);
  CHECK(cudaStreamEndCapture(capture.stream, &graph) == cudaErrorIllegalState);
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal) == cudaErrorStreamCaptureUnsupported);
  CHECK(cudaGraphDestroy(nullptr) == cudaErrorInvalidResourceHandle);
}

TEST("events measure time and know when they were captured") {
  cudaEvent_t start = nullptr, end = nullptr;
  CHECK(cudaEventCreate(&start) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess);
  float milliseconds = -1;
  CHECK(cudaEventElapsedTime(&milliseconds, start, end) == cudaErrorInvalidResourceHandle);
  CHECK(cudaEventRecord(start) == cudaSuccess && cudaEventRecord(end) == cudaSuccess);
  CHECK(cudaEventSynchronize(end) == cudaSuccess);
  CHECK(cudaEventElapsedTime(&milliseconds, start, end) == cudaSuccess && milliseconds >= 0, milliseconds);
  CHECK(cudaEventDestroy(start) == cudaSuccess && cudaEventDestroy(end) == cudaSuccess);
  CHECK(cudaEventDestroy(end) == cudaErrorInvalidResourceHandle);
}

TEST("after a fault every call says so until the process ends") {
  OnDevice<float> data(32, 1.0f);
  emulated::failLaunch(2);
  CHECK(start(scale, 1, 32, 0, data.data(), 2.0f) == cudaSuccess);
  CHECK(start(scale, 1, 32, 0, data.data(), 2.0f) == cudaErrorIllegalAddress);
  CHECK(start(scale, 1, 32, 0, data.data(), 2.0f) == cudaErrorIllegalAddress);
  size_t free = 0, total = 0;
  CHECK(cudaMemGetInfo(&free, &total) == cudaErrorIllegalAddress);
  CHECK(cudaFree(data.data()) == cudaErrorIllegalAddress);
  CHECK(cudaGetLastError() == cudaErrorIllegalAddress && cudaGetLastError() == cudaErrorIllegalAddress);
  CHECK(std::string(cudaGetErrorName(cudaErrorIllegalAddress)) == "cudaErrorIllegalAddress");
  emulated::recover();
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(data.read()[0] == 2);
}

TEST("threads launch side by side, and what a thread made ends with it") {
  OnDevice<float> first(64, 1.0f), second(64, 1.0f);
  const auto work = [](const OnDevice<float>& data) {
    for (int i = 0; i < 5; i++) CHECK(start(scale, 2, 32, 0, data.data(), 2.0f) == cudaSuccess);
  };
  for (int round = 0; round < 2; round++) {
    std::thread one(work, std::cref(first)), two(work, std::cref(second));
    one.join();
    two.join();
  }
  CHECK(first.read()[63] == 1024 && second.read()[0] == 1024);
}

TEST("the environment takes the device or the driver away, or says what it expects") {
  const auto errorWith = [](const char* devices) {
    return outputOf([=] {
      setenv("SELSCAN_EMULATED_DEVICES", devices, 1);
      execl("/proc/self/exe", "devices", "devices", nullptr);
    });
  };
  CHECK(errorWith("0") == "0 devices: cudaErrorNoDevice, driver 13000\n", errorWith("0"));
  CHECK(errorWith("nodriver") == "0 devices: cudaErrorInsufficientDriver, driver 0\n", errorWith("nodriver"));
  CHECK(errorWith("2") == "2 devices: cudaSuccess, driver 13000\n", errorWith("2"));
  CHECK(errorWith("many").find("SELSCAN_EMULATED_DEVICES: a whole number is expected, got \"many\"") != std::string::npos);
}

TEST("the device describes itself as an H100 would") {
  cudaDeviceProp properties;
  int count = 0, device = -1;
  CHECK(cudaGetDeviceCount(&count) == cudaSuccess && count == 1);
  CHECK(cudaGetDeviceProperties(&properties, 0) == cudaSuccess);
  CHECK(properties.major == 9 && properties.multiProcessorCount == 132 && properties.sharedMemPerBlockOptin == 232448);
  CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice);
  CHECK(cudaSetDevice(0) == cudaSuccess && cudaGetDevice(&device) == cudaSuccess && device == 0);
  cudaGetLastError();
}

}  // namespace

int selscan::test::printDevices() {
  int count = -1, driver = -1;
  const cudaError_t error = cudaGetDeviceCount(&count);
  void* data = nullptr;
  if (cudaMalloc(&data, 16) != error || cudaDriverGetVersion(&driver) != cudaSuccess) return 1;
  std::fprintf(stderr, "%d devices: %s, driver %d\n", count, cudaGetErrorName(error), driver);
  return 0;
}
