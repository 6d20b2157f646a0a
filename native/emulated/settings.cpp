// Reading the environment. Compiled without -fsanitize=thread.
#include "emulated/settings.h"

#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace selscan::emulator {
namespace {

uint64_t number(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  char* end = nullptr;
  errno = 0;
  const uint64_t value = std::strtoull(text, &end, 10);
  if (std::isdigit(static_cast<unsigned char>(*text)) && *end == '\0' && errno == 0) return value;
  std::fprintf(stderr, "%s: a whole number is expected, got \"%s\"; correct or unset it\n", name, text);
  std::abort();
}

Settings read() {
  const char* devices = std::getenv("SELSCAN_EMULATED_DEVICES");
  const bool driver = devices == nullptr || std::strcmp(devices, "nodriver") != 0;
  const uint64_t hostBytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  return {.seed = number("SELSCAN_EMULATED_SEED", 1),
          .memoryBytes = number("SELSCAN_EMULATED_MEMORY", hostBytes / 2),
          .faultAt = number("SELSCAN_EMULATED_FAULT", 0),
          .devices = driver ? static_cast<int>(number("SELSCAN_EMULATED_DEVICES", 1)) : -1};
}

}  // namespace

const Settings& settings() {
  static const Settings once = read();
  return once;
}

}  // namespace selscan::emulator
