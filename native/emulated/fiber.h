// A fiber: a stack and the place where it continues. Fibers stay on the operating-system thread that made them.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace selscan::emulator {

struct Fiber {
  const void* stack = nullptr;  // lowest byte
  size_t stackBytes = 0;
  void* fakeStack = nullptr;  // ASan's
  void* tsanFiber = nullptr;
#if defined(__x86_64__)
  void* stackPointer = nullptr;
#else
  ucontext_t context;
#endif
};

// The fiber that this thread runs on by itself; its stack becomes known with the first switch away from it.
void adoptThread(Fiber& fiber);

// Makes a fiber that calls entry on its first turn; entry must begin with fiberStarted() and never return. `top` is at most
// stack + bytes.
void makeFiber(Fiber& fiber, std::byte* stack, size_t bytes, std::byte* top, void (*entry)());
void fiberStarted();

// Continues `to`; returns when somebody continues `from`. Orders no memory under TSan.
void switchFiber(Fiber& from, Fiber& to);

}  // namespace selscan::emulator
