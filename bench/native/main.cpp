// selscan-bench: measurements that no script in between may blur. Prints one JSON object; bench/*.bench.ts read it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "bench/native/limits.h"
#include "bench/native/linear.h"
#include "bench/native/sample.h"
#include "bench/native/scan.h"
#include "bench/native/threads.h"
#include "core/check.h"
#include "cpu/cores.h"
#include "cpu/isa.h"
#include "cpu/threads.h"

namespace selscan::bench {
namespace {

constexpr const char* Usage =
    "usage: selscan-bench limits [--threads N]\n"
    "       selscan-bench scan [--rounds N] [--rows N] [--inner N] [--state N]\n"
    "       selscan-bench linear [--rounds N] [--rows N] [--in N] [--out N] [--threads N]\n"
    "       selscan-bench sample [--rounds N] [--samples N] [--vocab N] [--threads N]\n"
    "       selscan-bench threads [--threads N] [--busy N] [--rounds N]\n\n"
    "limits   read bandwidth and peaks of f32, bf16 and int8 multiply-adds, the best of several passes\n"
    "scan     selective scan: plain loop, kernel on one thread and on two, forward and backward on one, in turns\n"
    "linear   products of a linear layer and its gradients, and sgemm of OpenBLAS, in turns; then the peaks\n"
    "sample   choosing the next token, in µs, by settings and by how flat the distribution is, in turns\n"
    "threads  what a section of the pool costs after pauses, in µs, and the same work on one thread and on all, in turns and ms;\n"
    "         beside --busy processes that compute without end\n"
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

void printList(const char* name, const std::vector<double>& values, const char* before = ",") {
  std::printf("%s\"%s\":[", before, name);
  for (size_t i = 0; i < values.size(); i++) std::printf("%s%.6g", i > 0 ? "," : "", values[i]);
  std::printf("]");
}

void printThreads(int threads, int busy, int rounds) {
  const ThreadTimes times = timeThreads(threads, busy, rounds);
  std::vector<double> pauses, medians, p99s;
  for (const auto& [pause, median, p99] : times.empty) pauses.push_back(pause), medians.push_back(median), p99s.push_back(p99);
  std::printf("{\"threads\":%d,\"usableCores\":%d,\"busy\":%d", threads, cpu::usableCores(), busy);
  printList("pauses", pauses);
  printList("medians", medians);
  printList("p99s", p99s);
  printList("smallOne", times.small.one);
  printList("smallAll", times.small.all);
  printList("largeOne", times.large.one);
  printList("largeAll", times.large.all);
  std::printf("}\n");
}

void runLinear(int argc, char** argv) {
  const auto size = [&](const char* name, int64_t otherwise) { return option(argc, argv, name, 1, otherwise); };
  const LinearShape shape{size("--rows", 512), size("--in", 1024), size("--out", 1024), static_cast<int>(size("--threads", 1))};
  const LinearOutcome outcome = timeLinear(shape, static_cast<int>(size("--rounds", 15)));
  const Limits limits = measureLimits(shape.threads);
  std::printf("{\"instructionSet\":\"%s\",\"threads\":%d,\"fmaGFlops\":%.6g,\"halfGFlops\":%.6g,\"int8GOps\":%.6g,",
              cpu::name(cpu::isa()), cpu::threadCount(), limits.fmaGFlops, limits.halfGFlops, limits.int8GOps);
  std::printf("\"difference\":%.3g,\"kernels\":\"%s\",\"missing\":\"%s\",\"milliseconds\":{", outcome.difference, outcome.kernels.c_str(),
              outcome.missing.c_str());
  const char* before = "";
  for (const LinearTimes& one : outcome.times) {
    printList(one.name.c_str(), one.milliseconds, before);
    before = ",";
  }
  std::printf("}}\n");
}

void runSample(int argc, char** argv) {
  const auto size = [&](const char* name, int64_t otherwise) { return option(argc, argv, name, 1, otherwise); };
  const int64_t threads = size("--threads", 1), samples = size("--samples", 1);
  check(threads <= 1024 && samples <= 1024, "BAD_OPTION", "--threads, --samples: at most 1024 are expected, got ", std::max(threads, samples));
  const SampleShape shape{samples, size("--vocab", 50280), static_cast<int>(threads)};
  const std::vector<SampleTimes> times = timeSample(shape, static_cast<int>(size("--rounds", 15)));
  std::printf("{\"instructionSet\":\"%s\",\"threads\":%d,\"microseconds\":{", cpu::name(cpu::isa()), cpu::threadCount());
  for (size_t i = 0; i < times.size(); i++) printList(times[i].name.c_str(), times[i].microseconds, i > 0 ? "," : "");
  std::printf("}}\n");
}

void run(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "limits") {
    checkNames(argc, argv, {"--threads"});
    const Limits limits = measureLimits(static_cast<int>(option(argc, argv, "--threads", 0, 0)));
    std::printf("{\"instructionSet\":\"%s\",\"threads\":%d,\"readGBps\":%.6g,", cpu::name(cpu::isa()), cpu::threadCount(), limits.readGBps);
    std::printf("\"fmaGFlops\":%.6g,\"halfGFlops\":%.6g,\"int8GOps\":%.6g}\n", limits.fmaGFlops, limits.halfGFlops, limits.int8GOps);
  } else if (what == "scan") {
    checkNames(argc, argv, {"--rounds", "--rows", "--inner", "--state"});
    const ScanShape shape{option(argc, argv, "--rows", 1, 512), option(argc, argv, "--inner", 1, 1024), option(argc, argv, "--state", 1, 16)};
    const ScanTimes times = timeScan(shape, static_cast<int>(option(argc, argv, "--rounds", 1, 15)));
    std::printf("{\"instructionSet\":\"%s\",\"usableCores\":%d,\"difference\":%.3g", cpu::name(cpu::isa()), cpu::usableCores(), times.difference);
    printList("plain", times.plain);
    printList("one", times.one);
    printList("two", times.two);
    printList("training", times.training);
    std::printf("}\n");
  } else if (what == "linear") {
    checkNames(argc, argv, {"--rounds", "--rows", "--in", "--out", "--threads"});
    runLinear(argc, argv);
  } else if (what == "sample") {
    checkNames(argc, argv, {"--rounds", "--samples", "--vocab", "--threads"});
    runSample(argc, argv);
  } else if (what == "threads") {
    checkNames(argc, argv, {"--threads", "--busy", "--rounds"});
    const int64_t threads = option(argc, argv, "--threads", 1, cpu::usableCores()), busy = option(argc, argv, "--busy", 0, 0);
    check(threads <= 1024 && busy <= 1024, "BAD_OPTION", "--threads, --busy: at most 1024 are expected, got ", std::max(threads, busy));
    printThreads(static_cast<int>(threads), static_cast<int>(busy), static_cast<int>(option(argc, argv, "--rounds", 1, 7)));
  } else {
    check(what == "--help", "BAD_OPTION", "limits, scan, linear, sample or threads is expected\n", Usage);
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
