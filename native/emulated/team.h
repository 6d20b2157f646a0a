// Teams: the fibers, warps and shared memory that blocks run with, made once per operating-system thread and used again.
#pragma once
#include "emulated/block.h"

namespace selscan::emulator {

struct Team {
  unsigned size = 0;  // threads of the block
  unsigned finished = 0, arrived = 0;
  int votes[2] = {0, 0};
  bool first = true;         // whether the block is the team's first of the launch
  char tags[2], start, end;  // TSan's sync objects: barriers in turn, the launch's begin, a block's end
  unsigned readyCount = 0;
  Thread* ready[MaxThreads];
  Thread* threads = nullptr;
  Warp* warps = nullptr;
  std::byte* shared = nullptr;

  Team();
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  // Makes fibers until there are `count`, each of which begins at `entry`.
  void grow(unsigned count, void (*entry)());

 private:
  unsigned made_ = 0;
  std::byte* stacks_ = nullptr;
};

constexpr unsigned MaxTeams = 8;

class Teams {
 public:
  ~Teams();
  Team& at(unsigned i);

 private:
  Team* teams_[MaxTeams] = {};
};

// How many teams blocks of this many threads use in turn.
unsigned teamsFor(unsigned threads);
Teams& teamsOfThread();

}  // namespace selscan::emulator
