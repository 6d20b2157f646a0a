#include "environment.h"

#include "core/queue.h"

namespace selscan {

// One queue per device; never destroyed, since its thread outlives every environment.
static Queue& queueOf(Device& device) {
  static auto* mutex = new std::mutex;
  static auto* queues = new std::map<Device*, Queue>;
  std::lock_guard lock(*mutex);
  return (*queues)[&device];
}

struct Environment::Completion {
  Environment* environment;
  Napi::Promise::Deferred deferred;
  uint64_t job;
  Settle settle;
  std::string code, message;
  void fail(const std::exception& thrown) {
    const Error error = asError(thrown);
    code = error.code;
    message = error.what();
  }
};

Environment::Environment(Napi::Env env) {
  const auto name = Napi::String::New(env, "selscan");
  const napi_status made =
      napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, deliver, &toLoop_);
  if (made != napi_ok) throw Napi::Error::New(env);
  napi_unref_threadsafe_function(env, toLoop_);
  // Hooks run last-added first, so this one finds the thread-safe function still alive.
  napi_add_env_cleanup_hook(env, cleanUp, this);
}

Napi::Promise Environment::submit(Napi::Env env, Device& device, Handle runId, Work work) {
  auto flag = std::make_shared<std::atomic<bool>>(false);
  std::unique_ptr<Completion> owned(new Completion{this, Napi::Promise::Deferred::New(env), nextJob_++, nullptr, "", ""});
  Completion* const completion = owned.get();
  const auto promise = completion->deferred.Promise();
  flags_[completion->job] = {runId, flag};
  countQueued(1);
  try {
    Queue& queue = queueOf(device);
    queue.push([this, completion, flag, &queue, work = std::move(work)]() mutable {
      perform(*completion, work, {*flag, queue.waiting()});
      napi_call_threadsafe_function(toLoop_, completion, napi_tsfn_nonblocking);
      countQueued(-1);
    });
  } catch (...) {  // no thread or memory for it: nothing must wait for a job that never was
    flags_.erase(completion->job);
    countQueued(-1);
    throw;
  }
  owned.release();  // the job's, until deliver() takes it on this thread
  if (pending_++ == 0) napi_ref_threadsafe_function(env, toLoop_);
  return promise;
}

void Environment::perform(Completion& completion, Work& work, const Turn& turn) {
  try {
    completion.settle = work(turn);
  } catch (const std::exception& thrown) {
    completion.fail(thrown);
  }
  work = nullptr;  // what the job held is released on this thread, before anybody waits for it to be gone
}

void Environment::countQueued(int change) {
  std::lock_guard lock(mutex_);
  queued_ += change;
  idle_.notify_all();
}

void Environment::deliver(napi_env rawEnv, napi_value, void*, void* data) {
  const std::unique_ptr<Completion> completion(static_cast<Completion*>(data));
  if (rawEnv == nullptr) return;  // the environment is going away: nobody is left to tell
  const Napi::Env env(rawEnv);
  Environment& self = *completion->environment;
  self.flags_.erase(completion->job);
  if (--self.pending_ == 0) napi_unref_threadsafe_function(env, self.toLoop_);
  try {
    Napi::HandleScope scope(env);
    settle(env, *completion);
  } catch (const std::exception&) {
    // A terminating environment runs no more JavaScript: nobody is left to tell.
  }
}

void Environment::settle(Napi::Env env, Completion& completion) {
  try {
    try {
      if (completion.settle) return completion.deferred.Resolve(completion.settle(env));
    } catch (const Napi::Error&) {
      throw;
    } catch (const std::exception& thrown) {
      completion.fail(thrown);
    }
    auto error = Napi::Error::New(env, completion.message);
    error.Set("code", completion.code);
    completion.deferred.Reject(error.Value());
  } catch (const Napi::Error& error) {  // the value could not be made: out of JavaScript memory, or terminating
    completion.deferred.Reject(error.Value());
  }
}

void Environment::abort(Handle runId) {
  for (auto& [job, entry] : flags_)
    if (entry.first == runId) *entry.second = true;
}

// The environment ends: its jobs are told to stop, and waited for, since they use memory that goes with it.
void Environment::cleanUp(void* raw) {
  auto* self = static_cast<Environment*>(raw);
  for (auto& [job, entry] : self->flags_) *entry.second = true;
  std::unique_lock lock(self->mutex_);
  self->idle_.wait(lock, [&] { return self->queued_ == 0; });
  lock.unlock();
  napi_release_threadsafe_function(self->toLoop_, napi_tsfn_abort);
  self->programs.clear();
  self->stores.clear();
}

}  // namespace selscan
