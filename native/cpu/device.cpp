// The processor as a device: its memory is the host's.
#include "core/device.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <sstream>

#include "cpu/cores.h"
#include "cpu/isa.h"
#include "cpu/threads.h"

namespace selscan {
namespace {

struct CpuDevice final : Device {
  const char* name() const override { return "cpu"; }

  std::byte* allocate(size_t bytes) override {
    // calloc: large blocks arrive as untouched zero pages, so memory counts only when it is used.
    constexpr size_t Alignment = 64;
    void* raw = bytes < SIZE_MAX / 2 ? std::calloc(1, bytes + Alignment + sizeof(void*)) : nullptr;
    check(raw != nullptr, "OUT_OF_MEMORY", "cpu: ", bytes, " bytes could not be had; use a smaller model, batch or length");
    auto address = (reinterpret_cast<uintptr_t>(raw) + sizeof(void*) + Alignment - 1) / Alignment * Alignment;
    reinterpret_cast<void**>(address)[-1] = raw;
    return reinterpret_cast<std::byte*>(address);
  }
  void release(std::byte* data) override { std::free(reinterpret_cast<void**>(data)[-1]); }

  void toDevice(std::byte* to, const std::byte* from, size_t bytes) override { copy(to, from, bytes); }
  void toHost(std::byte* to, const std::byte* from, size_t bytes) override { copy(to, from, bytes); }
  void copy(std::byte* to, const std::byte* from, size_t bytes) override {
    if (bytes > 0) std::memmove(to, from, bytes);
  }
  void synchronize() override {}
  bool multipliesInt8() const override { return true; }

  std::string describe() const override {
    const cpu::Cores& found = cpu::cores();
    std::ostringstream text;
    text << cpu::name(cpu::isa()) << ", " << cpu::threadCount() << " threads of " << found.usable() << " usable cores";
    if (found.processors != found.cores) text << ", " << found.processors << " processors";
    if (found.quota > 0) text << ", a quota of " << found.quota;
    if (cpu::threadsAsked() > 0) text << ", SELSCAN_THREADS=" << cpu::threadsAsked();
    return text.str();
  }
};

// A misspelt SELSCAN_ISA or SELSCAN_VNNI must not silently mean the best set.
void checkSets() {
  const char* vnni = std::getenv("SELSCAN_VNNI");
  check(vnni == nullptr || std::strcmp(vnni, "off") == 0, "BAD_OPTION", "SELSCAN_VNNI: off is expected, got ", vnni ? vnni : "",
        "; unset it for the best");
  const char* asked = std::getenv("SELSCAN_ISA");
  bool known = asked == nullptr;
  for (int i = 0; i <= static_cast<int>(cpu::Isa::amx) && !known; i++)
    known = std::strcmp(asked, cpu::name(static_cast<cpu::Isa>(i))) == 0;
  check(known, "BAD_OPTION", "SELSCAN_ISA: portable, avx2, avx512, avx512bf16 or amx is expected, got ", asked ? asked : "",
        "; unset it for the best");
}

Device& open(int) {
  static auto* cpu = new CpuDevice;  // never destroyed: models may outlive static destructors at exit
  checkSets();
  cpu::threadsAsked();
  return *cpu;
}

const RegisterDevice registerCpu({"cpu", [] { return 1; }, [] { return std::string(); }, open});

}  // namespace
}  // namespace selscan
