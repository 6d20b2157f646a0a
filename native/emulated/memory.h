// The device's memory: which ranges are allocated, and who may touch them. Callers hold the device's lock.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "emulated/emulator.h"

namespace selscan::emulator {

using emulated::Range;

// Ranges that a launch may touch; none: everything allocated.
using Exposure = std::shared_ptr<const std::vector<Range>>;

size_t memoryLimit();
void limitMemory(size_t bytes);
size_t memoryUsed();

// Null when the limit or the host has no more.
std::byte* allocateMemory(size_t bytes);
// False when nothing was allocated there.
bool releaseMemory(void* data);
// Whether the whole range lies in one allocation.
bool isAllocated(const void* data, size_t bytes);
// Whether any byte at all of an allocation is at `data`.
bool isDeviceMemory(const void* data);

// Permits ranges for as long as it lives. Ranges that are allocated no more stay forbidden.
class Access {
 public:
  explicit Access(const Exposure& exposure);
  Access(const void* data, size_t bytes);  // nothing when it is not device memory
  ~Access();
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;

 private:
  void open(const void* data, size_t bytes);
  std::vector<Range> opened_;
};

}  // namespace selscan::emulator
