// Making teams. Compiled without -fsanitize=thread. Stacks are mapped once, 128 KB each with a guard page below, touched lazily.
#include "emulated/team.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <string>

#include "emulated/sanitizer.h"

namespace selscan::emulator {
namespace {

constexpr size_t StackBytes = 128 * 1024;
constexpr size_t GuardBytes = 4096;
// A barrier costs TSan the square of the fibers: 1 us per thread with these, 4.5 us with 2048.
constexpr unsigned TsanFibers = 512;

void* allocated(size_t alignment, size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, alignment, bytes) != 0) throw std::bad_alloc();
  return data;
}

}  // namespace

Team::Team() {
  threads = static_cast<Thread*>(allocated(64, MaxThreads * sizeof(Thread)));
  warps = static_cast<Warp*>(allocated(64, MaxThreads / WarpSize * sizeof(Warp)));
  shared = static_cast<std::byte*>(allocated(128, MaxShared));
  constexpr int Flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* stacks = mmap(nullptr, MaxThreads * StackBytes, PROT_READ | PROT_WRITE, Flags, -1, 0);
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  stacks_ = static_cast<std::byte*>(stacks);
}

Team::~Team() {
  for (unsigned i = 0; i < made_; i++) {
    if (threads[i].fiber.tsanFiber) __tsan_destroy_fiber(threads[i].fiber.tsanFiber);
    std::free(threads[i].copies);
  }
  permit(stacks_, MaxThreads * StackBytes);  // frames that fibers are still in: they wait for a next block
  munmap(stacks_, MaxThreads * StackBytes);
  permit(shared, MaxShared);
  std::free(shared);
  std::free(warps);
  std::free(threads);
}

void Team::grow(unsigned count, void (*entry)()) {
  for (; made_ < count; made_++) {
    Thread& thread = *new (&threads[made_]) Thread();
    thread.warp = &warps[made_ / WarpSize];
    thread.ordinal = made_;
    thread.lane = made_ % WarpSize;
    std::byte* stack = stacks_ + made_ * StackBytes;
    if (mprotect(stack, GuardBytes, PROT_NONE) != 0) throw std::bad_alloc();
    // Tops at different offsets: at equal ones all stacks would share the same few sets of the first-level cache.
    std::byte* top = stack + StackBytes - made_ % 32 * 320;
    makeFiber(thread.fiber, stack + GuardBytes, StackBytes - GuardBytes, top, entry);
    if (thread.fiber.tsanFiber && __tsan_set_fiber_name)
      __tsan_set_fiber_name(thread.fiber.tsanFiber, ("CUDA thread " + std::to_string(made_)).c_str());
  }
}

Teams::~Teams() {
  for (Team* team : teams_) delete team;
}

Team& Teams::at(unsigned i) {
  if (teams_[i] == nullptr) teams_[i] = new Team();
  return *teams_[i];
}

unsigned teamsFor(unsigned threads) {
  if (!underTsan()) return 1;
  const unsigned teams = TsanFibers / threads;
  return teams < 2 ? 2 : teams > MaxTeams ? MaxTeams : teams;
}

Teams& teamsOfThread() {
  static thread_local Teams teams;
  return teams;
}

}  // namespace selscan::emulator
