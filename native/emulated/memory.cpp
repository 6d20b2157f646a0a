// Allocations of the emulated device. Compiled without -fsanitize=thread.
#include "emulated/memory.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>

#include "emulated/sanitizer.h"
#include "emulated/settings.h"

namespace selscan::emulator {
namespace {

constexpr size_t Alignment = 256;  // cudaMalloc's
constexpr uintptr_t Granule = 8;   // ASan's

struct Pool {
  std::map<const std::byte*, size_t> sizes;
  size_t used = 0;
  size_t limit = settings().memoryBytes;
};
Pool& pool() {
  static Pool& instance = *new Pool;  // never destroyed: buffers are released by static destructors too
  return instance;
}

// The allocation that holds `data`, or the end.
auto find(const void* data) {
  auto& sizes = pool().sizes;
  auto at = sizes.upper_bound(static_cast<const std::byte*>(data));
  if (at == sizes.begin()) return sizes.end();
  --at;
  return static_cast<const std::byte*>(data) < at->first + at->second ? at : sizes.end();
}

}  // namespace

size_t memoryLimit() { return pool().limit; }
size_t memoryUsed() { return pool().used; }
void limitMemory(size_t bytes) { pool().limit = bytes; }

std::byte* allocateMemory(size_t bytes) {
  Pool& p = pool();
  if (p.used > p.limit || bytes > p.limit - p.used) return nullptr;
  void* data = nullptr;
  if (posix_memalign(&data, Alignment, bytes) != 0) return nullptr;
  std::memset(data, 0xFF, bytes);
  forbid(data, bytes);
  p.sizes.emplace(static_cast<std::byte*>(data), bytes);
  p.used += bytes;
  return static_cast<std::byte*>(data);
}

bool releaseMemory(void* data) {
  Pool& p = pool();
  const auto at = p.sizes.find(static_cast<std::byte*>(data));
  if (at == p.sizes.end()) return false;
  permit(data, at->second);
  p.used -= at->second;
  p.sizes.erase(at);
  std::free(data);
  return true;
}

bool isAllocated(const void* data, size_t bytes) {
  const auto at = find(data);
  if (at == pool().sizes.end()) return false;
  return bytes <= at->second - static_cast<size_t>(static_cast<const std::byte*>(data) - at->first);
}

bool isDeviceMemory(const void* data) { return find(data) != pool().sizes.end(); }

Access::Access(const Exposure& exposure) {
  if (!underAsan()) return;
  if (exposure == nullptr || exposure->empty())
    for (const auto& [data, bytes] : pool().sizes) open(data, bytes);
  else
    for (const Range& range : *exposure)
      if (range.bytes > 0 && isAllocated(range.data, range.bytes)) open(range.data, range.bytes);
}

Access::Access(const void* data, size_t bytes) {
  if (underAsan() && bytes > 0 && isAllocated(data, bytes)) open(data, bytes);
}

void Access::open(const void* data, size_t bytes) {
  permit(data, bytes);
  opened_.push_back({static_cast<std::byte*>(const_cast<void*>(data)), bytes, false});
}

// Whole granules: forbidding part of one would leave its other bytes open.
Access::~Access() {
  for (const Range& range : opened_) {
    const auto begin = reinterpret_cast<uintptr_t>(range.data) / Granule * Granule;
    const auto end = (reinterpret_cast<uintptr_t>(range.data) + range.bytes + Granule - 1) / Granule * Granule;
    forbid(reinterpret_cast<const void*>(begin), end - begin);
  }
}

}  // namespace selscan::emulator
