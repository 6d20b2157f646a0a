// What a device is to the runtime: memory, copies, and the order of execution. cpu/device.cpp implements it; cuda/ will.
#pragma once
#include <memory>
#include <string>

#include "core/kernel.h"

namespace selscan {

struct Device {
  virtual ~Device() = default;
  virtual const char* name() const = 0;
  virtual std::byte* allocate(size_t bytes) = 0;  // 64-byte aligned, zeroed; throws OUT_OF_MEMORY with the size
  virtual void release(std::byte*) = 0;
  virtual void toDevice(std::byte* to, const std::byte* from, size_t bytes) = 0;
  virtual void toHost(std::byte* to, const std::byte* from, size_t bytes) = 0;
  virtual void copy(std::byte* to, const std::byte* from, size_t bytes) = 0;
  virtual void synchronize() = 0;
  virtual std::string describe() const = 0;  // one line for people: instruction set, threads, memory
};

// Devices by name ("cpu"); process-wide, made on first use. Throws NO_DEVICE with what is missing.
Device& device(const std::string& name);

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
