// The device of the runtime (cuda/device.cu) on the emulated one: lost on one thread while another asks, and never had.
#include "cuda/device.h"

#include <atomic>
#include <thread>

#include "support.h"

using namespace selscan::test;
using namespace selscan;

namespace {

__global__ void nothing() {}

// Never destroyed, as in the runtime: what asks for it may outlive everything.
cuda::CudaDevice& made() { return *new cuda::CudaDevice(0); }

std::string messageOf(const std::function<void()>& work, const std::string& code) {
  try {
    work();
    return "";
  } catch (const Error& error) {
    CHECK(error.code == code, error.code);
    return error.what();
  }
}

TEST("a device that is lost on one thread says so, in the same words, to a thread that asks all the while") {
  static cuda::CudaDevice& device = made();
  std::atomic<bool> asking = false;
  std::string told;
  std::thread asker([&] {
    while (told.empty()) {
      told = messageOf([] { device.memory(); }, "DEVICE_LOST");
      asking = true;
    }
  });
  while (!asking) std::this_thread::yield();
  emulated::failLaunch(1);
  const std::string lost = messageOf([] { device.check(start(nothing, 1, 32, 0), "launch"); }, "DEVICE_LOST");
  asker.join();
  emulated::recover();
  CHECK(lost.starts_with("emulated:0: the device was lost by cudaErrorIllegalAddress (an illegal memory access was encountered) in "), lost);
  CHECK(told == lost, told);
  CHECK(messageOf([] { device.synchronize(); }, "DEVICE_LOST") == lost);
}

TEST("a device that cannot be opened is one that is not there, and none that was lost") {
  emulated::failLaunch(1);
  CHECK(start(nothing, 1, 32, 0) == cudaErrorIllegalAddress);
  const std::string refusal = messageOf([] { cuda::CudaDevice device(0); }, "NO_DEVICE");
  emulated::recover();
  CHECK(refusal == "device emulated:0: its properties could not be had, cudaErrorIllegalAddress (an illegal memory access was "
                   "encountered); look at nvidia-smi, or choose cpu",
        refusal);
}

}  // namespace
