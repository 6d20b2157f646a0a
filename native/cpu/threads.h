// The process's pool of worker threads. Work is cut into tasks by shape, never by the number of threads, so results do not
// depend on it, nor on who takes part in a section.
#pragma once
#include <cstdint>
#include <type_traits>

namespace selscan::cpu {

constexpr int ThreadsMax = 1024;

int threadCount();
// Sets how many threads a run uses, the calling one included; 0 takes all usable cores (cpu/cores.h). Throws OUT_OF_MEMORY where
// the system has no more threads to give: those that began stay. Not inside a task.
void setThreadCount(int count);
// SELSCAN_THREADS, the number that a process begins with in place of all usable cores. Throws BAD_OPTION for what is none.
int threadsAsked();

void parallelTasks(int64_t count, void (*task)(void* context, int64_t index), void* context);

// Calls body(i) for every i in [0, count), in any order, on any thread of the pool; returns when all are done. Callers take turns in
// the order in which they came; a call inside a task is done by that task's thread alone. body must not throw.
template <class Body>
void parallel(int64_t count, Body&& body) {
  using B = std::remove_reference_t<Body>;
  parallelTasks(count, [](void* context, int64_t index) { (*static_cast<B*>(context))(index); },
                const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace selscan::cpu
