// How many threads are worth starting here: the cores that this process may use.
#pragma once
#include <string>
#include <vector>

namespace selscan::cpu {

struct Cores {
  int processors = 1;  // as the system counts them, threads of one core each by itself; of those this process may run on
  int cores = 1;       // that they belong to
  double quota = 0;    // of a container: processors' worth of time; 0 where there is none

  // Cores, but no more than the quota pays for: a process that has used up its quota is stopped whole, its event loop too.
  int usable() const;
};

// What the files under `root` (normally "") say, of the processors with these numbers. A file that is missing or makes no sense counts
// for nothing: then every processor is a core, and there is no quota.
Cores coresUnder(const std::string& root, const std::vector<int>& processors);

// Of this process, read once.
const Cores& cores();
int usableCores();

}  // namespace selscan::cpu
