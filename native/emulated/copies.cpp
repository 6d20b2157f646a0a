// cp.async. Compiled without -fsanitize=thread.
//
// A copy may happen at any time between its issue and the wait for it, so it happens at one of the two, at random. TSan is shown
// a write of the destination and a read of the source at both: deferring alone would hide a buffer that is used again too early.
// ASan forbids the destination in between, even to the thread that issued the copy (copies of 8 and 16 bytes).
#include <cstdlib>

#include "emulated/block.h"
#include "emulated/ptx.h"
#include "emulated/sanitizer.h"

namespace selscan::emulator {
namespace {

// In words of 4 bytes, so that ASan checks the source under the name of this function.
void transfer(const Copy& copy) {
  auto to = reinterpret_cast<uint32_t*>(copy.to);
  auto from = reinterpret_cast<const uint32_t*>(copy.from);
  for (unsigned i = 0; i < copy.bytes / 4; i++) to[i] = copy.valid ? from[i] : 0;
}

void record(const Copy& copy) {
  if (copy.valid) recordRead(copy.from, copy.bytes);
  recordWrite(copy.to, copy.bytes);
}

// Reads the source for ASan to check, when the copy itself comes later.
void touch(const Copy& copy) {
  for (unsigned i = 0; i < copy.bytes / 4; i++) static_cast<void>(reinterpret_cast<const volatile uint32_t*>(copy.from)[i]);
}

void append(Thread& self, const Copy& copy) {
  if (self.copyCount == self.copyCapacity) {
    const size_t capacity = self.copyCapacity == 0 ? 64 : 2 * self.copyCapacity;
    auto grown = static_cast<Copy*>(std::realloc(self.copies, capacity * sizeof(Copy)));
    if (grown == nullptr) report("cp.async: no host memory for %zu copies on their way", capacity);
    self.copies = grown;
    self.copyCapacity = capacity;
  }
  self.copies[self.copyCount++] = copy;
}

void issue(void* shared, const void* global, unsigned bytes, bool valid) {
  Thread& self = currentThread("cp.async");
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0)
    report("cp.async: shared address %p is misaligned; %u bytes are copied to a multiple of %u", shared, bytes, bytes);
  if (valid && reinterpret_cast<uintptr_t>(global) % bytes != 0)
    report("cp.async: global address %p is misaligned; %u bytes are copied from a multiple of %u", global, bytes, bytes);
  if (!inShared(shared, bytes)) report("cp.async: destination %p is outside the launch's shared memory", shared);
  Copy copy{static_cast<std::byte*>(shared), static_cast<const std::byte*>(global), bytes, valid, random(2) == 0, self.group};
  record(copy);
  permit(copy.to, bytes);  // it may be on its way from an earlier copy, of zeros for instance
  if (copy.early) transfer(copy);
  else if (valid) touch(copy);
  if (bytes >= 8) forbid(copy.to, bytes);
  append(self, copy);
}

}  // namespace
}  // namespace selscan::emulator

void selscan::emulated::copyAsync16(void* shared, const void* global, bool valid) { emulator::issue(shared, global, 16, valid); }
void selscan::emulated::copyAsync8(void* shared, const void* global, bool valid) { emulator::issue(shared, global, 8, valid); }
void selscan::emulated::copyAsync4(void* shared, const void* global, bool valid) { emulator::issue(shared, global, 4, valid); }

void selscan::emulated::commitCopies() { emulator::currentThread("cp.async.commit_group").group++; }

void selscan::emulator::waitForCopies(int pending) {
  Thread& self = currentThread("cp.async.wait_group");
  size_t kept = 0;
  for (size_t i = 0; i < self.copyCount; i++) {
    const Copy copy = self.copies[i];
    if (copy.group + static_cast<uint32_t>(pending) >= self.group) {
      self.copies[kept++] = copy;
      continue;
    }
    permit(copy.to, copy.bytes);
    record(copy);
    if (!copy.early) transfer(copy);
  }
  self.copyCount = kept;
}
