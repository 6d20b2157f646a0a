// A CUDA device as the runtime sees it: one stream, pinned staging for copies, recordings as captured graphs. Kernels enqueue
// on the stream and return; nothing in a kernel's .run may wait, allocate, or read device memory.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <mutex>

#include "core/device.h"

namespace selscan::cuda {

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int ordinal);

  const char* name() const override;
  std::byte* allocate(size_t bytes) override;
  void release(std::byte* data) override;
  void toDevice(std::byte* to, const std::byte* from, size_t bytes) override;
  void toHost(std::byte* to, const std::byte* from, size_t bytes) override;
  void copy(std::byte* to, const std::byte* from, size_t bytes) override;
  void synchronize() override;
  std::string describe() const override;
  DeviceMemory memory() override;
  // Blocks of a launch are counted in 31 bits: with sizes below that, no tensor that fits a memory needs more.
  int64_t sizeMax() const override { return std::numeric_limits<int32_t>::max(); }
  bool storesBf16Activations() const override { return true; }
  bool records() const override { return true; }
  std::unique_ptr<Recording> record(const std::function<void()>& work) override;
  std::unique_ptr<Stopwatch> stopwatch() override;
  void enter(std::span<const selscan::Range> ranges) override;
  bool watches() const override;

  cudaStream_t stream() const { return stream_; }
  int multiprocessors() const { return properties_.multiProcessorCount; }
  size_t sharedBytesMax() const { return properties_.sharedMemPerBlockOptin; }
  size_t totalBytes() const { return properties_.totalGlobalMem; }

  // Throws unless the call succeeded: OUT_OF_MEMORY with sizes, DEVICE_LOST for errors after which the context answers
  // nothing any more, NATIVE otherwise.
  void check(cudaError_t status, const char* what, size_t bytes = 0);
  // Makes this the current device of the calling thread.
  void activate();

 private:
  std::byte* stage(size_t bytes);

  int ordinal_;
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  std::atomic<bool> isLost_ = false;
  std::mutex mutex_;  // of lost_: devices() asks from other threads than the queue's
  std::string lost_;  // the first error that ended the context
  std::byte* staging_ = nullptr;  // this and what follows is the queue's thread's alone
  size_t staged_ = 0;
  struct Arrival {
    std::byte *to, *from;
    size_t bytes;
  };
  std::vector<Arrival> arrivals_;  // copies to the host that are under way, in staging
};

inline CudaDevice& deviceOf(const Call& call) { return static_cast<CudaDevice&>(call.device); }

}  // namespace selscan::cuda
