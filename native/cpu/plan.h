// What the layouts of workspaces share. Sizes are the same on all instruction sets and for any number of threads.
#pragma once
#include <cstdint>

namespace selscan::cpu {

constexpr int64_t Width = 16;       // lanes of the widest instruction set
constexpr int64_t WorkersMax = 32;  // bounds the copies of a task's room

inline int64_t padded(int64_t n) { return (n + Width - 1) / Width * Width; }

}  // namespace selscan::cpu
