// What the emulated device can do that a GPU cannot: keep kernels to the memory they were given, and fail on request. Plain C++,
// for the runtime device that launches kernels and for native tests.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace selscan::emulated {

// Device memory that a kernel may touch. Written: an output, which the kernel must fill.
struct Range {
  std::byte* data;
  size_t bytes;
  bool written;
};

// What launches on this thread may touch until the next call; each captured launch keeps the ranges of its capture. No ranges:
// everything allocated. Written ranges are filled with 0xFF, a NaN in every float type, so that an element which no kernel fills
// shows: at once, or as a graph node while a stream of this thread captures. Ranges with no bytes are absent tensors. A touch
// outside is reported under ASan only; the filling happens in every build. A range outside device memory ends the process.
void expose(std::span<const Range> ranges);

// The order of blocks and threads from now on; SELSCAN_EMULATED_SEED sets it at start. Every launch has an order of its own.
void setSeed(uint64_t seed);

// The device's memory in bytes; SELSCAN_EMULATED_MEMORY sets it at start. Half of the host's memory unless told.
void setMemoryLimit(size_t bytes);

// The launch-th launch from now (1 is the next) faults: it and every later call return cudaErrorIllegalAddress, as on a lost
// context. 0: none. SELSCAN_EMULATED_FAULT sets it at start.
void failLaunch(uint64_t launch);

// A device that is not lost, with no fault to come: what a new process would find. Allocations stay.
void recover();

}  // namespace selscan::emulated
