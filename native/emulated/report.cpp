// Reports and their names. Compiled without -fsanitize=thread.
#include "emulated/report.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "emulated/sanitizer.h"

namespace selscan::emulator {
namespace {

// The kernel's name where a symbol has it: the sanitizers read debug information, the loader knows exported names only.
void nameKernel(const void* kernel, char* text, size_t bytes) {
  std::snprintf(text, bytes, "%p", kernel);
  if (__sanitizer_symbolize_pc) {
    __sanitizer_symbolize_pc(const_cast<void*>(kernel), "%f", text, bytes);
    return;
  }
  Dl_info info;
  if (dladdr(kernel, &info) == 0) return;
  if (info.dli_sname == nullptr || info.dli_saddr != kernel) {
    const auto offset = static_cast<const char*>(kernel) - static_cast<const char*>(info.dli_fbase);
    std::snprintf(text, bytes, "at %#tx of %s", offset, info.dli_fname);
    return;
  }
  int status = 0;
  char* name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
  std::snprintf(text, bytes, "%s", status == 0 ? name : info.dli_sname);
  std::free(name);
}

}  // namespace

const char* nameOf(WarpOperation operation) {
  switch (operation) {
    case WarpOperation::Barrier: return "__syncwarp";
    case WarpOperation::Exchange: return "a shuffle";
    case WarpOperation::Ballot: return "a ballot";
    case WarpOperation::LoadMatrix: return "ldmatrix";
    case WarpOperation::Multiply: return "mma";
  }
  return "a warp operation";
}

void report(const char* format, ...) {
  std::fputs("emulated device: ", stderr);
  if (const void* kernel = runningKernel()) {
    char name[512];
    nameKernel(kernel, name, sizeof name);
    std::fprintf(stderr, "kernel %s: block (%u, %u, %u)", name, blockIdx.x, blockIdx.y, blockIdx.z);
    if (const Thread* thread = runningThread())
      std::fprintf(stderr, ", thread (%u, %u, %u)", thread->index.x, thread->index.y, thread->index.z);
    std::fputs(": ", stderr);
  }
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  std::abort();
}

}  // namespace selscan::emulator
