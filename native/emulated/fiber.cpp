// Switching fibers: own assembly on x86-64, ucontext elsewhere, told to ASan and TSan. Compiled without -fsanitize=thread.
//
// Saved are what a call must keep: six registers, mxcsr and the x87 control word. It ends in a return, not in a jump: CUDA
// threads wait at the same depth of calls, so the processor's stack of return addresses fits the other fiber too (a shuffle takes
// 30 ns; 55 with a jump, which leaves that stack one entry off).
// Measured on an AMD EPYC, one core, -O3: 12 ns per switch, where swapcontext takes 175. 1000 blocks of 256 threads take 5 ms
// with no barrier, 45 ms with 4 barriers, 61 ms with 8 shuffles; under ASan 11, 67 and 133 ms; under TSan 39, 960 and 149 ms.
#include "emulated/fiber.h"

#include <cstdint>

#include "emulated/sanitizer.h"

namespace selscan::emulator {
namespace {

constinit thread_local Fiber* leaving = nullptr;

}  // namespace
}  // namespace selscan::emulator

#if defined(__x86_64__)
extern "C" [[gnu::visibility("hidden")]] void selscanSwitchStack(void** save, void* continueAt);
asm(R"(
.pushsection .text
.p2align 4
.hidden selscanSwitchStack
.globl selscanSwitchStack
.type selscanSwitchStack,@function
selscanSwitchStack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  subq $8, %rsp
  stmxcsr (%rsp)
  fnstcw 4(%rsp)
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  ldmxcsr (%rsp)
  fldcw 4(%rsp)
  addq $8, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size selscanSwitchStack, . - selscanSwitchStack
.popsection
)");
#endif

namespace selscan::emulator {

void adoptThread(Fiber& fiber) {
  fiber = Fiber();
  if (underTsan()) fiber.tsanFiber = __tsan_get_current_fiber();
}

void makeFiber(Fiber& fiber, std::byte* stack, size_t bytes, std::byte* top, void (*entry)()) {
  fiber.stack = stack;
  fiber.stackBytes = bytes;
  if (underTsan()) fiber.tsanFiber = __tsan_create_fiber(0);
#if defined(__x86_64__)
  // As if selscanSwitchStack had been called by entry's first instruction: control words, six registers, entry, no caller.
  auto words = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63}) - 9;
  for (int i = 0; i < 9; i++) words[i] = 0;
  words[0] = 0x037F'0000'1F80;  // x87 control word and mxcsr as at program start
  words[7] = reinterpret_cast<uint64_t>(entry);
  fiber.stackPointer = words;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = static_cast<size_t>(top - stack);
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

// On arrival ASan is given this stack's fake frames and says which stack was left: so the first stack of a thread becomes known.
static void arrive(void* fakeStack) {
  if (__sanitizer_finish_switch_fiber && !underTsan())
    __sanitizer_finish_switch_fiber(fakeStack, &leaving->stack, &leaving->stackBytes);
}

void fiberStarted() { arrive(nullptr); }

void switchFiber(Fiber& from, Fiber& to) {
  if (__sanitizer_start_switch_fiber && !underTsan()) __sanitizer_start_switch_fiber(&from.fakeStack, to.stack, to.stackBytes);
  constexpr unsigned NoSync = 1;
  if (underTsan()) __tsan_switch_to_fiber(to.tsanFiber, NoSync);
  leaving = &from;
#if defined(__x86_64__)
  selscanSwitchStack(&from.stackPointer, to.stackPointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  arrive(from.fakeStack);
}

}  // namespace selscan::emulator
