// One block at a time: its CUDA threads as fibers, its warps, its barriers.
//
// Everything a fiber touches here is a plain array of a type of this room: a standard container that kernels use too could be
// linked to their TSan-instrumented copy, and the emulator would be reported as racy.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

#include "emulated/fiber.h"
#include "emulated/language.h"

namespace selscan::emulator {

constexpr unsigned WarpSize = 32;
constexpr unsigned MaxThreads = 1024;
constexpr size_t MaxShared = 232448;  // 227 KB, the opt-in limit of sm_90

// A cp.async on its way.
struct Copy {
  std::byte* to;
  const std::byte* from;
  unsigned bytes;
  bool valid;
  bool early;  // has copied at issue already
  uint32_t group;
};

// What a lane gives to a warp operation.
struct Slot {
  union {
    uint64_t bits;
    uint32_t words[12];
  };
};

enum class WarpOperation : unsigned char { Barrier, Exchange, Ballot, LoadMatrix, Multiply };

// Two sets of slots and tags in turn: a lane can be one operation ahead of another, never two.
struct Warp {
  unsigned arrived;
  WarpOperation operation;
  Slot slots[2][WarpSize];
  char tags[2];
};

struct Thread {
  Fiber fiber;
  Warp* warp;
  unsigned ordinal;  // within the block
  unsigned lane;
  uint3 index;
  unsigned phase;      // barriers passed
  unsigned warpPhase;  // warp operations passed
  Copy* copies;
  size_t copyCount, copyCapacity;
  uint32_t group;  // copy groups committed
};

struct Launch {
  dim3 grid, block;
  size_t sharedBytes;
  const void* kernel;
  const std::function<void()>* body;
  uint64_t seed;
};

// Runs all blocks of a launch in random order.
void runBlocks(const Launch& launch);

// The thread that runs; ends the process when none does.
Thread& currentThread(const char* what);

// Waits for all lanes of this thread's warp to come to the same operation. The last lane to arrive calls `finish`, if given, for
// all. Returns which slots the operation used.
unsigned meetWarp(Thread& self, WarpOperation operation, void (*finish)(Slot (&slots)[WarpSize]) = nullptr);

// The slot of this thread for the operation it is about to enter.
inline Slot& slotOf(const Thread& self) { return self.warp->slots[self.warpPhase & 1][self.lane]; }

// Whether the bytes lie in the shared memory that the launch asked for.
bool inShared(const void* data, size_t bytes);

// A number below `bound`, from the order's generator.
uint32_t random(uint32_t bound);

// Prints one line that names kernel, block and thread, and aborts.
[[noreturn, gnu::format(printf, 1, 2)]] void report(const char* format, ...);

}  // namespace selscan::emulator
