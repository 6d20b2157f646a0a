// What a device is to the runtime: memory, copies, and the order of execution. cpu/device.cpp and cuda/device.cu implement it.
#pragma once
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/kernel.h"

namespace selscan {

// Work that a device has recorded and can do again, on the same addresses.
struct Recording {
  virtual ~Recording() = default;
  virtual void replay() = 0;
};

// Marks points of the device's order of execution and tells the seconds between them.
struct Stopwatch {
  virtual ~Stopwatch() = default;
  virtual void mark() = 0;
  virtual std::vector<double> seconds() = 0;  // from each mark to the next; after synchronize()
};

// Of the whole device, whoever uses it; zeros where the device has no memory of its own.
struct DeviceMemory {
  size_t freeBytes = 0, totalBytes = 0;
};

// Memory that a node may touch; `written` where it must fill all of it.
struct Range {
  std::byte* data;
  size_t bytes;
  bool written;
};

// Calls may return before the work is done, and do it in the order of the calls; synchronize() waits.
struct Device {
  virtual ~Device() = default;
  virtual const char* name() const = 0;
  virtual std::byte* allocate(size_t bytes) = 0;  // 64-byte aligned, zeroed; throws OUT_OF_MEMORY with the size
  virtual void release(std::byte*) = 0;
  virtual void toDevice(std::byte* to, const std::byte* from, size_t bytes) = 0;  // `from` may change on return
  virtual void toHost(std::byte* to, const std::byte* from, size_t bytes) = 0;    // `to` is there after synchronize()
  virtual void copy(std::byte* to, const std::byte* from, size_t bytes) = 0;
  virtual void synchronize() = 0;
  virtual std::string describe() const = 0;  // one line for people: instruction set or GPU, threads, memory

  virtual DeviceMemory memory() { return {}; }
  // The largest size of a dimension that kernels take.
  virtual int64_t sizeMax() const { return std::numeric_limits<int64_t>::max(); }
  // Whether kernels take activations (see core/dims.h) stored as bf16.
  virtual bool storesBf16Activations() const { return false; }
  // Whether linears, the head and the embedding take weights of i8 with scales.
  virtual bool multipliesInt8() const { return false; }
  // Whether record() is there: it notes down what `work` asks of the device instead of doing it.
  virtual bool records() const { return false; }
  virtual std::unique_ptr<Recording> record(const std::function<void()>&) { return nullptr; }
  virtual std::unique_ptr<Stopwatch> stopwatch();
  // Told before each node: what it may touch. The emulated device holds the kernels to it.
  virtual void enter(std::span<const Range>) {}
  virtual bool watches() const { return false; }  // whether enter() is to be called
};

// A kind of device, such as "cpu" or "cuda", made known by a static registrar like a kernel.
struct DeviceKind {
  std::string name;
  int (*count)();                // how many there are; 0 when the kind cannot be used
  std::string (*missing)();      // in words, what is missing when count() is 0
  Device& (*open)(int ordinal);  // process-wide, made on first use; lives as long as the process
};
const std::vector<DeviceKind>& deviceKinds();
struct RegisterDevice {
  explicit RegisterDevice(DeviceKind kind);
};

// The device of that name: "cpu", or "cuda" and "cuda:1". Throws NO_DEVICE with what is missing.
Device& device(const std::string& name);
// Why no device of that kind can be had, in words; empty when one can.
std::string missingDevice(const std::string& kind);

// Memory of a device, released with its owner.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, size_t bytes) : device_(&device), data_(device.allocate(bytes)), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer() {
    if (data_) device_->release(data_);
  }
  std::byte* data() const { return data_; }
  size_t sizeBytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace selscan
