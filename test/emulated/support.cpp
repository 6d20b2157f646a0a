#include "support.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <ctime>

#include "emulated/fiber.h"

// A process with fibers would sleep a second at its end, for threads that might still race.
extern "C" const char* __tsan_default_options() { return "atexit_sleep_ms=0"; }

namespace selscan::test {

bool withAsan() {
  if (!emulator::underAsan()) skipped() = "needs ASan";
  return emulator::underAsan();
}
bool withTsan() {
  if (!emulator::underTsan()) skipped() = "needs TSan";
  return emulator::underTsan();
}

std::string outputOf(const std::function<void()>& child) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("pipe failed");
  std::cout.flush();
  const pid_t id = fork();
  if (id < 0) throw std::runtime_error("fork failed");
  if (id == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    child();
    _exit(0);
  }
  close(ends[1]);
  std::string output;
  char part[4096];
  for (ssize_t bytes; (bytes = read(ends[0], part, sizeof part)) > 0;) output.append(part, static_cast<size_t>(bytes));
  close(ends[0]);
  waitpid(id, nullptr, 0);
  return output;
}

void dies(const char* file, int line, const std::function<void()>& child, const std::string& sentence) {
  const std::string output = outputOf(child);
  checkAt(file, line, "the child says so", output.find(sentence) != std::string::npos, "expected \"" + sentence + "\"",
          "got \"" + output.substr(0, 2000) + "\"");
}

namespace {

emulator::Fiber here, there;

void bounce() {
  emulator::fiberStarted();
  for (;;) emulator::switchFiber(there, here);
}

__global__ void fourBarriers(int* out) {
  for (int i = 0; i < 4; i++) __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
}
__global__ void noBarrier(int* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
}
__global__ void shuffles(float* out) {
  float sum = 1;
  for (int i = 0; i < 8; i++) sum += __shfl_xor_sync(~0u, sum, 16);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// Processor time, the least of seven: other processes share the machine.
template <class Body>
double seconds(Body body) {
  double least = 1e9;
  for (int i = 0; i < 7; i++) {
    const std::clock_t begin = std::clock();
    body();
    least = std::min(least, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  }
  return least;
}

}  // namespace

int measure(const std::string& what) {
  if (what == "fiber") {
    static std::byte stack[64 * 1024];
    emulator::adoptThread(here);
    emulator::makeFiber(there, stack, sizeof stack, stack + sizeof stack, bounce);
    constexpr int Rounds = 1000000;
    const double time = seconds([] {
      for (int i = 0; i < Rounds; i++) emulator::switchFiber(here, there);
    });
    std::printf("%.1f ns per fiber switch\n", time / Rounds / 2 * 1e9);
    return 0;
  }
  if (what != "block") {
    std::fprintf(stderr, "measure: fiber or block is expected, got %s\n", what.c_str());
    return 2;
  }
  OnDevice<int> out(1000);
  OnDevice<float> sums(1000);
  const auto time = [](const char* name, auto run) {
    std::printf("1000 blocks of 256 threads, %s: %.1f ms\n", name, seconds(run) * 1e3);
  };
  time("no barrier", [&] { CHECK(start(noBarrier, 1000, 256, 0, out.data()) == cudaSuccess); });
  time("4 barriers", [&] { CHECK(start(fourBarriers, 1000, 256, 0, out.data()) == cudaSuccess); });
  time("8 shuffles", [&] { CHECK(start(shuffles, 1000, 256, 0, sums.data()) == cudaSuccess); });
  return 0;
}

}  // namespace selscan::test
