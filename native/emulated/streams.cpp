// Streams, events and graphs. Compiled without -fsanitize=thread.
//
// Work is a closure; a graph is a list of them. A capture follows CUDA's thread-local mode: calls that no capture may contain
// fail and invalidate it.
#include <chrono>
#include <set>
#include <vector>

#include "emulated/runtime.h"
#include "emulated/sanitizer.h"

using Work = std::vector<std::function<cudaError_t()>>;
using Clock = std::chrono::steady_clock;

struct CUgraph_st {
  std::shared_ptr<Work> work = std::make_shared<Work>();
};
struct CUgraphExec_st {
  std::shared_ptr<const Work> work;
};
struct CUstream_st {
  std::unique_ptr<CUgraph_st> captured;  // while it captures
  bool invalidated = false;
};
struct CUevent_st {
  Clock::time_point time{};
  enum { Empty, Recorded, Captured } state = Empty;
};

namespace selscan::emulator {
namespace {

constinit thread_local cudaStream_t capturing = nullptr;  // the stream that this thread captures
constinit char order = 0;                                 // TSan's tag: everything submitted so far

// Live handles, so that a stale one is an error and not a crash.
template <class Handle>
std::set<Handle>& live() {
  static auto& handles = *new std::set<Handle>;
  return handles;
}
template <class Handle>
bool isLive(Handle handle) {
  return live<Handle>().count(handle) != 0;
}
template <class Handle, class... Parts>
Handle make(Parts&&... parts) {
  auto handle = new std::remove_pointer_t<Handle>{std::forward<Parts>(parts)...};
  live<Handle>().insert(handle);
  return handle;
}
template <class Handle>
cudaError_t destroy(Handle handle) {
  if (live<Handle>().erase(handle) == 0) return cudaErrorInvalidResourceHandle;
  delete handle;
  return cudaSuccess;
}

bool isStream(cudaStream_t stream) { return stream == nullptr || isLive(stream); }

cudaError_t runNow(const std::function<cudaError_t()>& work) {
  acquire(&order);
  const cudaError_t error = work();
  release(&order);
  return error;
}

}  // namespace

cudaError_t submit(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (!isStream(stream)) return cudaErrorInvalidResourceHandle;
  if (stream == nullptr || !stream->captured) return runNow(work);
  if (stream->invalidated) return cudaErrorStreamCaptureInvalidated;
  stream->captured->work->push_back(std::move(work));
  return cudaSuccess;
}

cudaError_t submitHere(std::function<cudaError_t()> work) { return submit(capturing, std::move(work)); }

cudaError_t refuseDuringCapture() {
  if (capturing == nullptr) return cudaSuccess;
  capturing->invalidated = true;
  return cudaErrorStreamCaptureUnsupported;
}

void synchronize() { acquire(&order); }

}  // namespace selscan::emulator

using namespace selscan::emulator;

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int flags) {
  return call([&] {
    if (stream == nullptr || (flags != cudaStreamDefault && flags != cudaStreamNonBlocking)) return cudaErrorInvalidValue;
    *stream = make<cudaStream_t>();
    return cudaSuccess;
  });
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call([&] {
    if (capturing != nullptr && capturing == stream) capturing = nullptr;
    return destroy(stream);
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&] {
    if (!isStream(stream)) return cudaErrorInvalidResourceHandle;
    if (stream != nullptr && stream->captured) {
      stream->invalidated = true;
      return cudaErrorStreamCaptureUnsupported;
    }
    synchronize();
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceSynchronize() {
  return call([&] {
    const cudaError_t error = refuseDuringCapture();
    if (error == cudaSuccess) synchronize();
    return error;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return call([&] {
    if (event == nullptr) return cudaErrorInvalidValue;
    *event = make<cudaEvent_t>();
    return cudaSuccess;
  });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call([&] {
    if (!isLive(event) || !isStream(stream)) return cudaErrorInvalidResourceHandle;
    const bool captured = stream != nullptr && stream->captured;
    event->state = captured ? CUevent_st::Captured : CUevent_st::Recorded;
    event->time = Clock::now();
    return cudaSuccess;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&] {
    if (!isLive(event)) return cudaErrorInvalidResourceHandle;
    if (event->state == CUevent_st::Captured) return cudaErrorCapturedEvent;
    synchronize();
    return cudaSuccess;
  });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return call([&] {
    if (milliseconds == nullptr) return cudaErrorInvalidValue;
    if (!isLive(start) || !isLive(end)) return cudaErrorInvalidResourceHandle;
    if (start->state != CUevent_st::Recorded || end->state != CUevent_st::Recorded) return cudaErrorInvalidResourceHandle;
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return cudaSuccess;
  });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call([&] { return destroy(event); });
}

// One capture per thread, of a stream that was made: the emulator's limits. The default stream can never capture.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call([&] {
    if (stream == nullptr || mode != cudaStreamCaptureModeThreadLocal) return cudaErrorStreamCaptureUnsupported;
    if (!isLive(stream)) return cudaErrorInvalidResourceHandle;
    if (stream->captured) return cudaErrorIllegalState;
    if (capturing != nullptr) return cudaErrorStreamCaptureUnsupported;
    stream->captured = std::make_unique<CUgraph_st>();
    stream->invalidated = false;
    capturing = stream;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call([&] {
    if (graph == nullptr) return cudaErrorInvalidValue;
    *graph = nullptr;
    if (stream == nullptr || !isLive(stream)) return cudaErrorInvalidResourceHandle;
    if (!stream->captured) return cudaErrorIllegalState;
    if (capturing != stream) return cudaErrorStreamCaptureWrongThread;
    capturing = nullptr;
    const auto captured = std::move(stream->captured);
    if (stream->invalidated) return cudaErrorStreamCaptureInvalidated;
    *graph = make<cudaGraph_t>(std::move(*captured));
    return cudaSuccess;
  });
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
  return call([&] {
    if (executable == nullptr || flags != 0) return cudaErrorInvalidValue;
    if (!isLive(graph)) return cudaErrorInvalidResourceHandle;
    *executable = make<cudaGraphExec_t>(graph->work);
    return cudaSuccess;
  });
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return call([&] {
    if (!isLive(executable)) return cudaErrorInvalidResourceHandle;
    return submit(stream, [work = executable->work] {
      for (const auto& node : *work)
        if (const cudaError_t error = node(); error != cudaSuccess) return error;
      return cudaSuccess;
    });
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call([&] { return destroy(graph); });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return call([&] { return destroy(executable); });
}
