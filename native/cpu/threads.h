// The process's pool of worker threads. Work is cut into tasks by shape, never by the number of threads, so results do not
// depend on it. Waiting threads spin at most 50 µs, then sleep.
#pragma once
#include <cstdint>
#include <type_traits>

namespace selscan::cpu {

int threadCount();
// Sets how many threads a run uses, the calling one included; 0 restores the default: the cores this process may use
// (affinity and cgroup quota).
void setThreadCount(int count);
int usableCores();

void parallelTasks(int64_t count, void (*task)(void* context, int64_t index), void* context);

// Calls body(i) for every i in [0, count), in any order, on any thread of the pool; returns when all are done.
// body must not throw.
template <class Body>
void parallel(int64_t count, Body&& body) {
  using B = std::remove_reference_t<Body>;
  parallelTasks(count, [](void* context, int64_t index) { (*static_cast<B*>(context))(index); },
                const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace selscan::cpu
