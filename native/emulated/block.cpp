// Scheduling the threads of a block. Compiled without -fsanitize=thread: TSan sees what kernels access, not the emulator.
//
// A thread runs until it must wait; then it continues another, chosen at random among those that can run (choosing mostly among
// the latest, for their stacks are in the cache, is no faster). Threads that never wait run to their end one after the other.
// Under TSan every CUDA thread is a TSan fiber, and only barriers order memory.
//
// Teams. A team is the fibers, stacks and shared memory of a block; blocks take teams in turn. Under TSan several teams exist
// (2 for blocks of 256 threads and more, 8 for 64), for the fibers of a team are ordered from block to block, those of two
// teams never: with T teams a conflict between two blocks is seen unless their distance in the (random) order divides by T.
#include "emulated/block.h"

#include <cstdlib>
#include <cstring>

#include "emulated/ptx.h"
#include "emulated/report.h"
#include "emulated/sanitizer.h"
#include "emulated/team.h"

constinit thread_local uint3 threadIdx{0, 0, 0};
constinit thread_local uint3 blockIdx{0, 0, 0};
constinit thread_local dim3 blockDim;
constinit thread_local dim3 gridDim;

namespace selscan::emulator {
namespace {

// One variable, for in a shared library every access to a thread's variable is a call.
struct Scheduler {
  Thread* current;
  Team* team;
  const Launch* launching;
  uint64_t randomState;
  Fiber launcher;  // the operating-system thread itself
};
constinit thread_local Scheduler scheduler{};

uint64_t mixed(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

[[noreturn]] void reportStuck(const Team& team) {
  scheduler.current = nullptr;  // the report is about the block
  for (unsigned w = 0; w < team.size / WarpSize; w++)
    if (const Warp& warp = team.warps[w]; warp.arrived > 0)
      report("%s reached by %u of 32 lanes of warp %u; every lane must take part", nameOf(warp.operation), warp.arrived, w);
  report("__syncthreads reached by %u of %u threads, %u exited before; every thread must take part", team.arrived, team.size,
         team.finished);
}

uint32_t random(Scheduler& s, uint32_t bound) {  // xorshift64*, upper bits
  uint64_t x = s.randomState;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  s.randomState = x;
  return static_cast<uint32_t>(((x * 0x2545F4914F6CDD1D >> 32) * bound) >> 32);
}

void readyAll(Team& team) {
  for (unsigned i = 0; i < team.size; i++) team.ready[i] = &team.threads[i];
  team.readyCount = team.size;
}

// The fiber to continue, taken from the ready ones; the launcher's when all threads are done.
Fiber& next(Scheduler& s) {
  Team& team = *s.team;
  if (team.readyCount == 0) {
    if (team.finished == team.size) return s.launcher;
    reportStuck(team);
  }
  const uint32_t at = random(s, team.readyCount);
  Thread* thread = team.ready[at];
  team.ready[at] = team.ready[--team.readyCount];
  s.current = thread;
  return thread->fiber;
}

void giveWay(Scheduler& s, Thread& self) {
  Fiber& to = next(s);
  if (&to != &self.fiber) switchFiber(self.fiber, to);
  s.current = &self;
  threadIdx = self.index;
}

// What every fiber runs: one CUDA thread per block, for ever.
void threadMain() {
  fiberStarted();
  Scheduler& s = scheduler;
  for (;;) {
    Thread& self = *s.current;
    threadIdx = self.index;
    // After the launch, and after the team's last block: a real block's shared memory is its own, this one's was another's.
    acquire(s.team->first ? &s.team->start : &s.team->end);
    (*s.launching->body)();
    release(&s.team->end);
    s.team->finished++;
    switchFiber(self.fiber, next(s));
  }
}

// Stores that neither TSan nor an optimiser takes for a memset: the launcher's, unordered with the threads of the last block.
[[gnu::no_sanitize_address]] void fillUnseen(std::byte* data, size_t bytes) {
  auto words = reinterpret_cast<uint64_t*>(data);
  for (size_t i = 0; i < (bytes + 7) / 8; i++) {
    words[i] = ~uint64_t{0};
    asm volatile("" ::: "memory");
  }
}

void begin(Team& chosen, const Launch& launch) {
  chosen.size = launch.block.x * launch.block.y * launch.block.z;
  chosen.grow(chosen.size, threadMain);
  for (unsigned i = 0; i < chosen.size; i++) {
    const unsigned row = i / launch.block.x;
    chosen.threads[i].index = {i % launch.block.x, row % launch.block.y, row / launch.block.y};
  }
  forbid(chosen.shared, MaxShared);
  permit(chosen.shared, launch.sharedBytes);
  release(&chosen.start);
}

void runBlock(Team& chosen, const Launch& launch) {
  scheduler.team = &chosen;
  permit(chosen.shared, launch.sharedBytes);  // copies that no thread waited for left it forbidden
  fillUnseen(chosen.shared, launch.sharedBytes);
  permit(chosen.shared, launch.sharedBytes);
  chosen.finished = chosen.arrived = 0;
  for (unsigned i = 0; i < chosen.size; i++) {
    Thread& thread = chosen.threads[i];
    thread.phase = thread.warpPhase = 0;
    thread.copyCount = thread.group = 0;
  }
  for (unsigned w = 0; w < chosen.size / WarpSize; w++) chosen.warps[w].arrived = 0;
  chosen.votes[0] = chosen.votes[1] = 0;
  readyAll(chosen);
  Fiber& first = next(scheduler);
  switchFiber(scheduler.launcher, first);
  scheduler.current = nullptr;
}

// A stride that visits every block once: random, with no divisor in common with their number.
uint64_t strideFor(uint64_t blocks) {
  for (;;) {
    const uint64_t stride = 1 + mixed(scheduler.randomState++) % blocks;
    uint64_t a = stride, b = blocks;
    while (b != 0) std::swap(a, b), b %= a;
    if (a == 1) return stride;
  }
}

}  // namespace

uint32_t random(uint32_t bound) { return random(scheduler, bound); }

void runBlocks(const Launch& launch) {
  scheduler.launching = &launch;
  scheduler.randomState = mixed(launch.seed) | 1;
  adoptThread(scheduler.launcher);
  blockDim = launch.block;
  gridDim = launch.grid;
  Teams& teams = teamsOfThread();
  const unsigned count = teamsFor(launch.block.x * launch.block.y * launch.block.z);
  for (unsigned i = 0; i < count; i++) begin(teams.at(i), launch);
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const uint64_t stride = strideFor(blocks);
  uint64_t block = mixed(scheduler.randomState) % blocks;
  for (uint64_t i = 0; i < blocks; i++) {
    const uint64_t row = block / launch.grid.x;
    blockIdx = {static_cast<unsigned>(block % launch.grid.x), static_cast<unsigned>(row % launch.grid.y),
                static_cast<unsigned>(row / launch.grid.y)};
    Team& team = teams.at(static_cast<unsigned>(i % count));
    team.first = i < count;
    runBlock(team, launch);
    block = (block + stride) % blocks;
  }
  for (unsigned i = 0; i < count; i++) acquire(&teams.at(i).end);
  scheduler.launching = nullptr;
  scheduler.team = nullptr;
  threadIdx = blockIdx = {0, 0, 0};
}

Thread& currentThread(const char* what) {
  Thread* current = scheduler.current;
  if (current == nullptr) report("%s outside a kernel; only kernels can call it", what);
  return *current;
}

int barrier(bool condition) {
  Thread& self = currentThread("__syncthreads");
  Scheduler& s = scheduler;
  Team& team = *s.team;
  const unsigned phase = self.phase++ & 1;
  release(&team.tags[phase]);
  team.votes[phase] += condition;
  if (++team.arrived == team.size) {
    team.arrived = 0;
    team.votes[phase ^ 1] = 0;
    readyAll(team);
  }
  giveWay(s, self);
  acquire(&team.tags[phase]);
  return team.votes[phase];
}

unsigned meetWarp(Thread& self, WarpOperation operation, void (*finish)(Slot (&slots)[WarpSize])) {
  Warp& warp = *self.warp;
  if (warp.arrived > 0 && warp.operation != operation)
    report("%s while other lanes of the warp are in %s; all lanes must come to one operation", nameOf(operation),
           nameOf(warp.operation));
  warp.operation = operation;
  Scheduler& s = scheduler;
  const unsigned phase = self.warpPhase++ & 1;
  if (++warp.arrived < WarpSize) {
    giveWay(s, self);
    return phase;
  }
  warp.arrived = 0;
  if (finish) finish(warp.slots[phase]);
  Team& team = *s.team;
  const unsigned first = self.ordinal - self.lane;
  for (unsigned lane = 0; lane < WarpSize; lane++)
    if (lane != self.lane) team.ready[team.readyCount++] = &team.threads[first + lane];
  return phase;
}

std::byte* sharedMemory() {
  currentThread("SHARED");
  return scheduler.team->shared;
}

bool inShared(const void* data, size_t bytes) {
  const auto offset = static_cast<const std::byte*>(data) - scheduler.team->shared;
  return offset >= 0 && static_cast<size_t>(offset) + bytes <= scheduler.launching->sharedBytes;
}

const void* runningKernel() { return scheduler.launching ? scheduler.launching->kernel : nullptr; }
const Thread* runningThread() { return scheduler.current; }

}  // namespace selscan::emulator
