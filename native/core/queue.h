// One FIFO queue of jobs per device, run by its own thread, off every event loop.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace selscan {

class Queue {
 public:
  Queue() : thread_([this] { work(); }) {}
  ~Queue() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    ready_.notify_all();
    thread_.join();
  }
  void push(std::function<void()> job) {
    {
      std::lock_guard lock(mutex_);
      jobs_.push_back(std::move(job));
      waiting_++;
    }
    ready_.notify_one();
  }
  // Jobs behind the one that runs, for it to look at.
  const std::atomic<int>& waiting() const { return waiting_; }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ready_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      auto job = std::move(jobs_.front());
      jobs_.pop_front();
      waiting_--;
      lock.unlock();
      job();
      job = nullptr;  // what it holds is released outside the lock
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> jobs_;
  std::atomic<int> waiting_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace selscan
