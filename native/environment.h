// What one JavaScript environment (the main thread or a worker) owns here: handles, running jobs, and the way back to its
// event loop. Nothing JavaScript lives in a static; the queue of each device is process-wide.
#pragma once
#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "core/executable.h"

namespace selscan {

using Handle = uint32_t;
using AbortFlag = std::shared_ptr<std::atomic<bool>>;
using Settle = std::function<Napi::Value(Napi::Env)>;  // makes the promise's value, back on the event loop
// What a job may look at while it is under way: whether it is to stop, and how many others wait for its device.
struct Turn {
  const std::atomic<bool>& abort;
  const std::atomic<int>& waiting;
};
using Work = std::function<Settle(const Turn&)>;

class Environment {
 public:
  explicit Environment(Napi::Env env);

  // Runs work on the device's queue; the promise resolves with what the returned function makes, or rejects with the Error's
  // code and message. `runId` finds the job's abort flag while it is under way; 0 for jobs that cannot be aborted.
  Napi::Promise submit(Napi::Env env, Device& device, Handle runId, Work work);
  void abort(Handle runId);

  template <class T>
  Handle add(std::map<Handle, std::shared_ptr<T>>& map, std::shared_ptr<T> item) {
    map[next_] = std::move(item);
    return next_++;
  }
  // Handles are used from this environment's thread alone.
  std::map<Handle, std::shared_ptr<Store>> stores;
  std::map<Handle, std::shared_ptr<Executable>> programs;

 private:
  struct Completion;
  static void deliver(napi_env env, napi_value, void* context, void* data);
  static void settle(Napi::Env env, Completion& completion);
  static void cleanUp(void* self);
  static void perform(Completion& completion, Work& work, const Turn& turn);
  void countQueued(int change);

  napi_threadsafe_function toLoop_ = nullptr;
  Handle next_ = 1;
  int pending_ = 0;  // promises not yet settled; on the environment's thread
  std::map<uint64_t, std::pair<Handle, AbortFlag>> flags_;
  uint64_t nextJob_ = 1;
  std::mutex mutex_;
  std::condition_variable idle_;
  int queued_ = 0;  // jobs that the queues still hold
};

}  // namespace selscan
