// SELSCAN_EMULATED_*: what the environment asks of the emulated device, read once.
#pragma once
#include <cstddef>
#include <cstdint>

namespace selscan::emulator {

struct Settings {
  uint64_t seed;
  size_t memoryBytes;
  uint64_t faultAt;  // 0: never
  int devices;       // 0: a driver and no GPU; -1: no driver
};

// A variable that is no number ends the process with a sentence.
const Settings& settings();

}  // namespace selscan::emulator
