// What the runtime's files share: the device's state, its lock, and work that runs now or becomes a graph.
#pragma once
#include <functional>
#include <mutex>

#include "emulated/cuda_runtime.h"
#include "emulated/memory.h"

namespace selscan::emulator {

// Why the device cannot be used: no driver, no GPU, a lost context; cudaSuccess when it can.
cudaError_t deviceState();
void loseDevice(cudaError_t error);
std::mutex& deviceLock();

// Keeps the error for cudaGetLastError and returns it.
cudaError_t remember(cudaError_t error);
void forgetError();

// One call of the runtime: under the lock, refused on a device that cannot be used.
template <class Body>
cudaError_t call(Body body) {
  std::lock_guard lock(deviceLock());
  const cudaError_t state = deviceState();
  return remember(state == cudaSuccess ? body() : state);
}

// The rest is called under the lock.

// Runs the work, or adds it to the graph that the stream captures.
cudaError_t submit(cudaStream_t stream, std::function<cudaError_t()> work);
// The same for the stream that this thread captures, if any.
cudaError_t submitHere(std::function<cudaError_t()> work);
// A call that no capture may contain: an error, and the end of this thread's capture, while there is one.
cudaError_t refuseDuringCapture();
// Orders all streams' work before what this thread does next.
void synchronize();

}  // namespace selscan::emulator
