#include "cuda/device.h"

#include <algorithm>
#include <map>

#ifndef __CUDACC__
#include "emulated/emulator.h"
#endif

#define TEXT_OF(word) #word
#define TEXT(word) TEXT_OF(word)

namespace selscan::cuda {
namespace {

constexpr size_t StagingBytes = size_t{4} << 20;  // pinned: copies from it need no copy of the driver's

// Errors that leave the context as it was; after all others it answers nothing any more.
bool isHarmless(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDevice:
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorStreamCaptureUnsupported:
#ifdef __CUDACC__
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorNotSupported:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorStreamCaptureWrongThread:
    case cudaErrorCapturedEvent:
    case cudaErrorDevicesUnavailable:
    case cudaErrorInvalidKernelImage:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
#endif
      return true;
    default:
      return false;
  }
}

std::string mebibytes(size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

struct Graph final : Recording {
  CudaDevice& device;
  cudaGraphExec_t executable = nullptr;
  explicit Graph(CudaDevice& device) : device(device) {}
  ~Graph() override {
    device.activate();
    if (executable) cudaGraphExecDestroy(executable);
  }
  void replay() override {
    device.activate();
    device.check(cudaGraphLaunch(executable, device.stream()), "replay of a recorded program");
  }
};

struct EventStopwatch final : Stopwatch {
  CudaDevice& device;
  std::vector<cudaEvent_t> events;
  explicit EventStopwatch(CudaDevice& device) : device(device) {}
  ~EventStopwatch() override {
    device.activate();
    for (const cudaEvent_t event : events) cudaEventDestroy(event);
  }
  void mark() override {
    cudaEvent_t event = nullptr;
    device.check(cudaEventCreate(&event), "timing");
    events.push_back(event);
    device.check(cudaEventRecord(event, device.stream()), "timing");
  }
  std::vector<double> seconds() override {
    std::vector<double> out;
    for (size_t i = 1; i < events.size(); i++) {
      float milliseconds = 0;
      device.check(cudaEventElapsedTime(&milliseconds, events[i - 1], events[i]), "timing");
      out.push_back(milliseconds * 1e-3);
    }
    return out;
  }
};

}  // namespace

CudaDevice::CudaDevice(int ordinal) : ordinal_(ordinal) {
  // What fails here was never there to be lost, such as a GPU that another process has for itself.
  const auto open = [&](cudaError_t status, const char* what, size_t bytes = 0) {
    if (status == cudaErrorMemoryAllocation) check(status, what, bytes);
    selscan::check(status == cudaSuccess, "NO_DEVICE", "device ", name(), ":", ordinal, ": its ", what, " could not be had, ",
                   cudaGetErrorName(status), " (", cudaGetErrorString(status), "); look at nvidia-smi, or choose cpu");
  };
  activate();
  open(cudaGetDeviceProperties(&properties_, ordinal), "properties");
  selscan::check(properties_.major >= 8, "NO_DEVICE", "device ", name(), ":", ordinal, ": ", properties_.name, " has compute capability ",
                 properties_.major, ".", properties_.minor, "; 8.0 or newer is needed (bf16 products)");
  void* pinned = nullptr;
  open(cudaMallocHost(&pinned, StagingBytes), "pinned staging memory", StagingBytes);
  staging_ = static_cast<std::byte*>(pinned);
  try {
    open(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  } catch (...) {
    cudaFreeHost(staging_);
    throw;
  }
}

const char* CudaDevice::name() const { return TEXT(cuda); }

void CudaDevice::activate() { cudaSetDevice(ordinal_); }

void CudaDevice::check(cudaError_t status, const char* what, size_t bytes) {
  if (status == cudaSuccess && !isLost_) return;
  const std::string where = std::string(name()) + ":" + std::to_string(ordinal_);
  const std::lock_guard lock(mutex_);
  if (!isLost_) {
    const std::string error = std::string(cudaGetErrorName(status)) + " (" + cudaGetErrorString(status) + ")";
    cudaGetLastError();  // a harmless error would be reported again by the next launch
    if (status == cudaErrorMemoryAllocation) {
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      cudaGetLastError();
      throw Error("OUT_OF_MEMORY", where + ": " + (bytes ? mebibytes(bytes) + " (" + std::to_string(bytes) + " bytes)" : "memory for a " + std::string(what)) +
                                       " could not be had, " + mebibytes(free) + " of " + mebibytes(total) +
                                       " are free; use a smaller model, batch or length");
    }
    if (isHarmless(status)) throw Error("NATIVE", where + ": " + what + " failed with " + error);
    lost_ = error + " in " + what;
    isLost_ = true;
  }
  throw Error("DEVICE_LOST", where + ": the device was lost by " + lost_ + "; nothing on it can be used any more, start the process again");
}

std::byte* CudaDevice::allocate(size_t bytes) {
  activate();
  void* data = nullptr;
  selscan::check(bytes < SIZE_MAX / 2, "OUT_OF_MEMORY", name(), ": ", bytes, " bytes could not be had; use a smaller model, batch or length");
  const size_t padded = std::max<size_t>(64, (bytes + 63) / 64 * 64);
  check(cudaMalloc(&data, padded), "allocation", padded);
  try {
    check(cudaMemsetAsync(data, 0, padded, stream_), "clearing of new memory");
  } catch (...) {
    cudaFree(data);
    throw;
  }
  return static_cast<std::byte*>(data);
}

void CudaDevice::release(std::byte* data) {
  activate();
  cudaFree(data);  // waits for what uses it; of a lost device nothing is left to free
}

// Room in the staging memory; waits for earlier copies when it is full.
std::byte* CudaDevice::stage(size_t bytes) {
  if (staged_ + bytes > StagingBytes) synchronize();
  std::byte* at = staging_ + staged_;
  staged_ += (bytes + 63) / 64 * 64;
  return at;
}

void CudaDevice::toDevice(std::byte* to, const std::byte* from, size_t bytes) {
  activate();
  for (size_t done = 0; done < bytes;) {
    const size_t part = std::min(bytes - done, StagingBytes);
    std::byte* staged = stage(part);
    std::copy_n(from + done, part, staged);
    check(cudaMemcpyAsync(to + done, staged, part, cudaMemcpyHostToDevice, stream_), "copy to the device");
    done += part;
  }
}

void CudaDevice::toHost(std::byte* to, const std::byte* from, size_t bytes) {
  activate();
  try {
    for (size_t done = 0; done < bytes;) {
      const size_t part = std::min(bytes - done, StagingBytes);
      std::byte* staged = stage(part);
      check(cudaMemcpyAsync(staged, from + done, part, cudaMemcpyDeviceToHost, stream_), "copy from the device");
      arrivals_.push_back({to + done, staged, part});
      done += part;
    }
  } catch (...) {
    arrivals_.clear();  // the caller's memory may be gone by the next synchronize()
    throw;
  }
}

void CudaDevice::copy(std::byte* to, const std::byte* from, size_t bytes) {
  if (bytes == 0) return;
  activate();
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy on the device");
}

void CudaDevice::synchronize() {
  activate();
  const std::vector<Arrival> arrivals = std::exchange(arrivals_, {});
  check(cudaStreamSynchronize(stream_), "work of the stream");
  staged_ = 0;
  for (const Arrival& arrival : arrivals) std::copy_n(arrival.from, arrival.bytes, arrival.to);
}

std::string CudaDevice::describe() const {
  int driver = 0;
  cudaDriverGetVersion(&driver);
  return std::string(properties_.name) + ", " + std::to_string(properties_.multiProcessorCount) + " multiprocessors, compute capability " +
         std::to_string(properties_.major) + "." + std::to_string(properties_.minor) + ", " + mebibytes(properties_.totalGlobalMem) +
         ", driver for CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10);
}

DeviceMemory CudaDevice::memory() {
  activate();
  DeviceMemory memory;
  check(cudaMemGetInfo(&memory.freeBytes, &memory.totalBytes), "memory query");
  return memory;
}

std::unique_ptr<Recording> CudaDevice::record(const std::function<void()>& work) {
  activate();
  auto recording = std::make_unique<Graph>(*this);
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording");
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream_, &graph), "recording");
  const cudaError_t status = cudaGraphInstantiate(&recording->executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "recording");
  return recording;
}

std::unique_ptr<Stopwatch> CudaDevice::stopwatch() { return std::make_unique<EventStopwatch>(*this); }

#ifdef __CUDACC__
void CudaDevice::enter(std::span<const selscan::Range>) {}
bool CudaDevice::watches() const { return false; }
#else
void CudaDevice::enter(std::span<const selscan::Range> ranges) {
  std::vector<emulated::Range> exposed;
  for (const selscan::Range& range : ranges) exposed.push_back({range.data, range.bytes, range.written});
  emulated::expose(exposed);
}
bool CudaDevice::watches() const { return true; }
#endif

namespace {

cudaError_t countDevices(int& count) {
  static int found = 0;
  static const cudaError_t status = cudaGetDeviceCount(&found);
  count = status == cudaSuccess ? found : 0;
  return status;
}

std::string missing() {
  int count = 0, driver = 0, runtime = 0;
  const cudaError_t status = countDevices(count);
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  if (status == cudaErrorInsufficientDriver && driver == 0) return "no NVIDIA driver was found (libcuda.so.1); install one, or choose cpu";
  if (status == cudaErrorInsufficientDriver)
    return "the NVIDIA driver supports CUDA " + version(driver) + ", this build needs " + version(runtime) + "; update the driver, or choose cpu";
  if (status == cudaErrorNoDevice || status == cudaSuccess) return "the NVIDIA driver reports no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES, or choose cpu";
  return std::string("the NVIDIA driver answers ") + cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + "); choose cpu";
}

Device& open(int ordinal) {
  static auto* mutex = new std::mutex;
  static auto* devices = new std::map<int, std::unique_ptr<CudaDevice>>;  // never destroyed: models may outlive static destructors
  std::lock_guard lock(*mutex);
  auto& slot = (*devices)[ordinal];
  if (!slot) slot = std::make_unique<CudaDevice>(ordinal);
  return *slot;
}

int count() {
  int found = 0;
  countDevices(found);
  return found;
}

const RegisterDevice registerDevice({TEXT(cuda), count, missing, open});

}  // namespace
}  // namespace selscan::cuda
