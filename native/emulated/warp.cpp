// Warp operations on values: shuffles, ballots, the warp's barrier. Compiled without -fsanitize=thread. Only the barrier orders
// memory; a shuffle hands over its value and nothing else, as on the device.
#include "emulated/block.h"
#include "emulated/sanitizer.h"

namespace selscan::emulator {
namespace {

Thread& enter(const char* what, unsigned mask) {
  Thread& self = currentThread(what);
  if (mask != ~0u) report("%s with mask %#x; kernels here use whole warps, mask 0xffffffff", what, mask);
  return self;
}

}  // namespace

int laneIndex() { return static_cast<int>(currentThread("a shuffle").lane); }

void warpBarrier(unsigned mask) {
  Thread& self = enter("__syncwarp", mask);
  Warp& warp = *self.warp;
  release(&warp.tags[self.warpPhase & 1]);
  const unsigned phase = meetWarp(self, WarpOperation::Barrier);
  acquire(&warp.tags[phase]);
}

uint64_t exchange(unsigned mask, uint64_t bits, int source) {
  Thread& self = enter("a shuffle", mask);
  Warp& warp = *self.warp;
  slotOf(self).bits = bits;
  const unsigned phase = meetWarp(self, WarpOperation::Exchange);
  return warp.slots[phase][source & 31].bits;
}

unsigned ballot(unsigned mask, bool condition) {
  Thread& self = enter("a ballot", mask);
  Warp& warp = *self.warp;
  slotOf(self).bits = condition;
  const unsigned phase = meetWarp(self, WarpOperation::Ballot, [](Slot(&slots)[WarpSize]) {
    uint64_t votes = 0;
    for (unsigned lane = 0; lane < WarpSize; lane++) votes |= slots[lane].bits << lane;
    slots[0].bits = votes;
  });
  return static_cast<unsigned>(warp.slots[phase][0].bits);
}

void trap() {
  currentThread("__trap");
  report("__trap");
}

}  // namespace selscan::emulator
