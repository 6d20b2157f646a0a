// What tests of the emulated device share: launches, buffers, and children that are expected to die.
#pragma once
#include <cuda_runtime.h>

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "emulated/emulator.h"
#include "emulated/ptx.h"
#include "emulated/sanitizer.h"
#include "native/check.h"

namespace selscan::test {

// Why part of a test was not run, for its line of output.
inline std::string& skipped() {
  static std::string why;
  return why;
}
// Whether the sanitizer is compiled in; notes it as skipped otherwise.
bool withAsan();
bool withTsan();

// What a child process that runs this writes to stderr.
std::string outputOf(const std::function<void()>& child);
// Checks that the child's output contains the sentence.
void dies(const char* file, int line, const std::function<void()>& child, const std::string& sentence);
#define DIES(sentence, ...) ::selscan::test::dies(__FILE__, __LINE__, [&] { __VA_ARGS__; }, sentence)

int measure(const std::string& what);
// A kernel that races, or its twin that does not, or all of them; 2 when there is none of that name.
int runRace(const std::string& name, bool right);
// What the runtime says of the machine.
int printDevices();

template <class Kernel, class... Arguments>
cudaError_t start(Kernel kernel, dim3 grid, dim3 block, size_t sharedBytes, Arguments... arguments) {
  const cudaLaunchConfig_t config{grid, block, sharedBytes, nullptr, nullptr, 0};
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// Device memory with the contents of a vector.
template <class T>
class OnDevice {
 public:
  explicit OnDevice(size_t count, T value = T()) : OnDevice(std::vector<T>(count, value)) {}
  explicit OnDevice(const std::vector<T>& values) : count_(values.size()) {
    CHECK(cudaMalloc(&data_, count_ * sizeof(T)) == cudaSuccess);
    write(values);
  }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() { cudaFree(data_); }
  T* data() const { return data_; }
  void write(const std::vector<T>& values) {
    CHECK(cudaMemcpyAsync(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess);
  }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    CHECK(cudaMemcpyAsync(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return values;
  }
  emulated::Range range(bool written) const { return {reinterpret_cast<std::byte*>(data_), count_ * sizeof(T), written}; }

 private:
  T* data_ = nullptr;
  size_t count_;
};

}  // namespace selscan::test
