// selscan-bench: measurements that no script in between may blur. Prints one JSON object; bench/*.bench.ts read it.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "bench/native/limits.h"
#include "bench/native/scan.h"
#include "core/check.h"
#include "cpu/isa.h"
#include "cpu/threads.h"

namespace selscan::bench {
namespace {

constexpr const char* Usage =
    "usage: selscan-bench limits [--threads N]\n"
    "       selscan-bench scan [--rounds N] [--rows N] [--inner N] [--state N]\n\n"
    "limits   read bandwidth and peak of f32 multiply-adds, the best of several passes\n"
    "scan     selective scan, forward: plain loop, kernel on one thread and on two, in turns\n"
    "SELSCAN_ISA lowers the instruction set, as everywhere.\n";

int64_t option(int argc, char** argv, const char* name, int64_t low, int64_t otherwise) {
  for (int i = 2; i < argc; i++) {
    if (std::strcmp(argv[i], name) != 0) continue;
    char* end = nullptr;
    const int64_t value = i + 1 < argc ? std::strtoll(argv[i + 1], &end, 10) : -1;
    check(end && end != argv[i + 1] && *end == 0 && value >= low && value <= 1'000'000, "BAD_OPTION", name, ": a whole number from ", low,
          " to 1000000 is expected, got ", i + 1 < argc ? argv[i + 1] : "none");
    return value;
  }
  return otherwise;
}

void checkNames(int argc, char** argv, std::initializer_list<const char*> known) {
  for (int i = 2; i < argc; i += 2) {
    bool found = false;
    for (const char* name : known) found |= std::strcmp(argv[i], name) == 0;
    check(found, "BAD_OPTION", argv[i], ": is not understood\n", Usage);
  }
}

void printList(const char* name, const std::vector<double>& values) {
  std::printf(",\"%s\":[", name);
  for (size_t i = 0; i < values.size(); i++) std::printf("%s%.6g", i > 0 ? "," : "", values[i]);
  std::printf("]");
}

void run(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "limits") {
    checkNames(argc, argv, {"--threads"});
    const Limits limits = measureLimits(static_cast<int>(option(argc, argv, "--threads", 0, 0)));
    std::printf("{\"instructionSet\":\"%s\",\"threads\":%d,\"readGBps\":%.6g,\"fmaGFlops\":%.6g}\n", cpu::name(cpu::isa()), cpu::threadCount(),
                limits.readGBps, limits.fmaGFlops);
  } else if (what == "scan") {
    checkNames(argc, argv, {"--rounds", "--rows", "--inner", "--state"});
    const ScanShape shape{option(argc, argv, "--rows", 1, 512), option(argc, argv, "--inner", 1, 1024), option(argc, argv, "--state", 1, 16)};
    const ScanTimes times = timeScan(shape, static_cast<int>(option(argc, argv, "--rounds", 1, 15)));
    std::printf("{\"instructionSet\":\"%s\",\"usableCores\":%d,\"difference\":%.3g", cpu::name(cpu::isa()), cpu::usableCores(), times.difference);
    printList("plain", times.plain);
    printList("one", times.one);
    printList("two", times.two);
    std::printf("}\n");
  } else {
    check(what == "--help", "BAD_OPTION", "limits or scan is expected\n", Usage);
    std::printf("%s", Usage);
  }
}

}  // namespace
}  // namespace selscan::bench

int main(int argc, char** argv) {
  try {
    selscan::bench::run(argc, argv);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "selscan-bench: %s\n", error.what());
    return 2;
  }
}
