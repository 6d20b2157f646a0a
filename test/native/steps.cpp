// Several runs as one: what steps say is what runs say that are given each other's output. The kernels are those of executable.cpp.
#include <thread>

#include "toy.h"

namespace {

using namespace toy;

// y = x, a while later: this kernel's time is known from below.
constexpr std::chrono::microseconds Nap{2000};
void nap(const Call& call) {
  static_cast<Toy&>(call.device).submit([x = call.inputs[0].data, y = call.outputs[0].data, bytes = call.inputs[0].sizeBytes()] {
    std::this_thread::sleep_for(Nap);
    std::memmove(y, x, bytes);
  });
}
KERNEL(nap, toy, "x -> y", .run = nap)

// y = x·(3·w0 + 1), with factors of 1, 4, 7 and 1; where it updates, w0 grows by x before.
struct Stepping {
  Bench bench;
  Executable executable;
  explicit Stepping(bool updates) : executable(bench.store, program(updates)) {
    bench.store->write(bench.weight(0), 0, bytesOf({0, 1, 2, 0}));
  }
  static Program program(bool updates) {
    Maker maker("stepping");
    if (updates) maker.node("addTo", {0, 3});
    maker.program.outputs = {maker.node("product", {3, 0})};
    return maker.program;
  }
  // What so many steps say from One on, given nothing for all but the first.
  Bytes said(Steps steps) {
    Bytes x(steps.count * One.size());
    std::copy(One.begin(), One.end(), x.begin());
    steps.output = steps.input = 0;
    bench.toy.abort = false;
    return executable.run({x}, bench.toy.abort, steps)[0];
  }
  Bytes oneByOne(size_t count) {
    Bytes all, x = One;
    for (size_t i = 0; i < count; i++) {
      x = bench.run(executable, x)[0];
      all.insert(all.end(), x.begin(), x.end());
    }
    return all;
  }
};

}  // namespace

TEST("steps say what runs say that are given each other's output, also of weights that they update, node by node and replayed") {
  for (const bool updates : {false, true}) {
    Stepping plain(updates), steps(updates);
    const size_t count = updates ? 3 : 9;  // of an updated weight numbers soon are too large
    CHECK(steps.said({.count = count, .ends = {}}) == plain.oneByOne(count), updates);
    CHECK(steps.bench.stored(0) == plain.bench.stored(0), updates);
    CHECK(steps.said({.count = 1, .ends = {}}) == plain.oneByOne(1), "replayed from the first step on", updates);
  }
}

TEST("steps end at a word that ends them, at a negative number, at their time, and where others wait") {
  Stepping stepping(false);
  const auto count = [&](Steps steps) { return stepping.said(std::move(steps)).size() / One.size(); };
  const std::atomic<int> none = 0, some = 1;
  CHECK(count({.count = 9, .ends = {}, .waiting = &none}) == 9);
  CHECK(count({.count = 9, .ends = {5, 64}}) == 3, "4, 16, 64");
  CHECK(count({.count = 9, .ends = {4}}) == 1);
  CHECK(count({.count = 20, .ends = {}}) == 13, "of 7^13 modulo 2^32 the highest bit is set");
  CHECK(count({.count = 9, .ends = {}, .secondsMost = 1e-12}) == 1);
  CHECK(count({.count = 9, .ends = {}, .secondsMost = 1e6}) == 9);
  CHECK(count({.count = 9, .ends = {}, .waiting = &some}) == 1);
}

TEST("steps that are aborted or fail say so, and what cannot be handed on is refused") {
  Stepping stepping(false);
  const auto code = [&](Steps steps) -> std::string {
    try {
      stepping.said(std::move(steps));
      return "done";
    } catch (const Error& error) {
      return error.code;
    }
  };
  stepping.said({.count = 3, .ends = {}});
  stepping.bench.toy.abortIn = 3;
  CHECK(code({.count = 9, .ends = {}}) == "ABORTED");
  stepping.bench.toy.abortIn = 0;
  stepping.bench.toy.faultIn = 3;
  CHECK(code({.count = 9, .ends = {}}) == "NATIVE");
  stepping.bench.toy.faultIn = 0;
  CHECK(code({.count = 9, .ends = {}}) == "done");
  const auto refuses = [&](int output, int input, size_t bytes) {
    try {
      Steps steps{.count = 2, .output = output, .input = input, .ends = {}};
      stepping.executable.run({Bytes(bytes)}, stepping.bench.toy.abort, steps);
      return false;
    } catch (const Error& error) {
      return error.code == "BAD_INPUT";
    }
  };
  CHECK(refuses(0, 0, 16) && refuses(0, 0, 33) && refuses(1, 0, 32) && refuses(0, 1, 32) && refuses(Absent, 0, 32) && refuses(0, Absent, 32));
}

// A nap between two nodes that take no time: were a step's marks counted as one too many or too few, naps would fall to its neighbours.
TEST("times of nodes add up over steps and runs: each has its own, and all together no more than passed") {
  Bench bench;
  Maker maker("naps");
  maker.program.outputs = {maker.node("product", {maker.node("nap", {maker.node("product", {3, 0})}), 0})};
  Executable timed(bench.store, maker.program, true), untimed(bench.store, maker.program);
  using Seconds = std::chrono::duration<double>;
  double passed = 0;
  const auto run = [&](Executable& executable, size_t count, std::vector<int32_t> ends) {
    Bytes x(count * One.size());
    std::copy(One.begin(), One.end(), x.begin());
    const auto began = std::chrono::steady_clock::now();
    const Steps steps{.count = count, .output = 0, .input = 0, .ends = std::move(ends)};
    const size_t said = executable.run({x}, bench.toy.abort, steps)[0].size();
    passed += Seconds(std::chrono::steady_clock::now() - began).count();
    return said / One.size();
  };
  bench.store->write(bench.weight(0), 0, bytesOf({0, 1, 0, 0}));  // factors of 1, 4, 1 and 1, twice in a step
  size_t naps = 0;
  const auto addsUp = [&](const char* when) {
    const std::vector<double>& seconds = timed.seconds();
    const double all = seconds[0] + seconds[1] + seconds[2];
    CHECK(seconds.size() == 3 && seconds[0] >= 0 && seconds[2] >= 0, when, seconds[0], seconds[2]);
    CHECK(seconds[1] >= static_cast<double>(naps) * Seconds(Nap).count(), when, naps, seconds[1]);
    CHECK(all <= passed && seconds[0] + seconds[2] < seconds[1], when, all, passed, seconds[0], seconds[2]);
  };
  for (const auto& [count, ends, done] : {std::tuple<size_t, int32_t, size_t>{1, 5, 1}, {6, 5, 6}, {6, 256, 2}, {3, 5, 3}}) {
    CHECK(run(timed, count, {ends}) == done, count, ends);
    naps += done;
    addsUp("after a run");
  }
  // What a run did that fails counts neither for itself nor for the next.
  const std::vector<double> before = timed.seconds();
  bench.toy.faultIn = 5;
  try {
    run(timed, 4, {});
    CHECK(false, "a fault says so");
  } catch (const Error&) {
    CHECK(timed.seconds() == before);
  }
  bench.toy.faultIn = 0;
  naps += run(timed, 3, {});
  addsUp("after a run that failed");
  run(untimed, 3, {});
  CHECK(untimed.seconds() == std::vector<double>(3), "the device records, and nobody asked");
}
