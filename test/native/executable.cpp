// Programs that share a store, in any order, replayed, aborted and failing half-way: each run gives what it would give in a
// new store that holds the same weights, where nothing was kept. On a device of its own that records, with four kernels.
#include <random>

#include "toy.h"

namespace {

using namespace toy;

Toy& toyOf(const Call& call) { return static_cast<Toy&>(call.device); }
uint32_t* words(std::byte* data) { return reinterpret_cast<uint32_t*>(data); }

// y = x·(3·w + 1), elementwise, modulo 2^32; what is in brackets is prepared.
constexpr Preparation Tripled{"tripled", [](const Tensor& w) { return w.sizeBytes(); },
                              [](const Tensor& w, std::byte* prepared, Device& device) {
                                static_cast<Toy&>(device).submit([from = words(w.data), to = words(prepared)] {
                                  for (int i = 0; i < Elements; i++) to[i] = 3 * from[i] + 1;
                                });
                              }};
void product(const Call& call) {
  toyOf(call).submit([x = words(call.inputs[0].data), w = words(call.prepared[1]), y = words(call.outputs[0].data)] {
    for (int i = 0; i < Elements; i++) y[i] = x[i] * w[i];
  });
}
// y = x·w, elementwise, modulo 2^32; of w all bits are turned, and it may be kept so alone.
constexpr Preparation Turned{.name = "turned",
                             .bytes = [](const Tensor& w) { return w.sizeBytes(); },
                             .run =
                                 [](const Tensor& w, std::byte* prepared, Device& device) {
                                   static_cast<Toy&>(device).submit([count = w.elements(), from = words(w.data), to = words(prepared)] {
                                     for (int i = 0; i < count; i++) to[i] = ~from[i];
                                   });
                                 },
                             .blockRows = 2,
                             .holds = [](const Tensor&) { return true; },
                             .restore =
                                 [](const std::byte* prepared, const Tensor& w) {
                                   const auto* from = reinterpret_cast<const uint32_t*>(prepared);
                                   for (int i = 0; i < w.elements(); i++) words(w.data)[i] = ~from[i];
                                 }};
void packedProduct(const Call& call) {
  toyOf(call).submit([x = words(call.inputs[0].data), w = words(call.prepared[1]), y = words(call.outputs[0].data)] {
    for (int i = 0; i < Elements; i++) y[i] = x[i] * ~w[i];
  });
}
// y = 5·w + 2: kept, where w is a weight.
void affine(const Call& call) {
  toyOf(call).submit([w = words(call.inputs[0].data), y = words(call.outputs[0].data)] {
    for (int i = 0; i < Elements; i++) y[i] = 5 * w[i] + 2;
  });
}
// total ← total + x, of several totals at once.
void addAll(std::span<const Call> calls) {
  for (const Call& call : calls)
    toyOf(call).submit([total = words(call.inputs[0].data), x = words(call.inputs[1].data)] {
      for (int i = 0; i < Elements; i++) total[i] += x[i];
    });
}
KERNEL(product, toy, "x w -> y", .run = product,
       .prepare = [](const Call&, int input) { return input == 1 ? &Tripled : nullptr; })
KERNEL(packedProduct, toy, "x w -> y", .run = packedProduct,
       .prepare = [](const Call&, int input) { return input == 1 ? &Turned : nullptr; })
KERNEL(affine, toy, "w -> y", .run = affine)
KERNEL(addTo, toy, "total* x ->", .run = [](const Call& call) { addAll({&call, 1}); }, .runAll = addAll)

Program random(std::mt19937& random, int number) {
  Maker maker("program " + std::to_string(number));
  Ids known{0, 1, 2, 3};
  const auto any = [&] { return known[random() % known.size()]; };
  for (uint32_t left = 1 + random() % 10; left > 0; left--) {
    const uint32_t kind = random() % 5;
    if (kind > 2) maker.node("addTo", {static_cast<int>(random() % Weights), any()});
    else if (kind > 0) known.push_back(maker.node(kind == 1 ? "product" : "packedProduct", {any(), any()}));
    else known.push_back(maker.node("affine", {any()}));
  }
  for (uint32_t left = 1 + random() % 3; left > 0; left--) maker.program.outputs.push_back(any());
  return maker.program;
}

// y = x·(3·w0 + 1), which keeps what it prepares of w0; packedProduct keeps w0 in that form alone.
Program reader(const std::string& op = "product") {
  Maker maker("reader of " + op);
  maker.program.outputs = {maker.node(op, {3, 0})};
  return maker.program;
}

}  // namespace

TEST("whatever programs of a store ran before, failed or were aborted, a run gives what it gives alone") {
  std::mt19937 seeds(11);
  int failed = 0, done = 0;
  for (int round = 0; round < 300; round++) {
    Bench bench;
    std::vector<std::unique_ptr<Executable>> programs;
    const auto word = [&] { return static_cast<uint32_t>(seeds()); };
    for (int step = 0; step < 40; step++) {
      if (programs.size() == 4 && seeds() % 8 == 0) programs.erase(programs.begin() + seeds() % 4);
      if (programs.size() < 4 && step % 4 == 0) programs.push_back(std::make_unique<Executable>(bench.store, random(seeds, step)));
      Executable& executable = *programs[seeds() % programs.size()];
      const Bytes x = bytesOf({word(), word(), word(), word()});
      if (seeds() % 8 == 0) bench.store->write(bench.weight(static_cast<int>(seeds() % Weights)), 4, bytesOf({word(), word()}));
      if (seeds() % 4 > 0) {
        bench.agrees(executable, x);
        done++;
        continue;
      }
      (seeds() % 2 ? bench.toy.faultIn : bench.toy.abortIn) = 1 + static_cast<int>(seeds() % 12);
      failed += bench.outcome(executable, x) != "done";
      bench.toy.faultIn = bench.toy.abortIn = 0;
    }
  }
  CHECK(failed > 500 && done > 5000, failed, done);
}

TEST("a group that ran before its run was aborted has changed its weights") {
  Bench bench;
  Maker maker("group");
  maker.node("addTo", {1, 3});
  maker.node("addTo", {0, 3});
  maker.program.outputs = {3};
  Executable group(bench.store, maker.program), read(bench.store, reader());
  bench.agrees(read, Two);
  bench.toy.abortIn = 1;
  CHECK(bench.outcome(group, One) == "ABORTED group: aborted at node 1 of 2");
  CHECK(bench.stored(0) == One);
  bench.agrees(read, Two);
}

TEST("a recording that fails leaves no kept form that calls itself new") {
  Bench bench;
  Maker maker("updater");
  maker.node("addTo", {0, 3});
  maker.program.outputs = {maker.node("product", {3, 0})};
  Executable updater(bench.store, maker.program), read(bench.store, reader());
  bench.agrees(updater, One);
  bench.store->write(bench.weight(0), 0, Two);
  bench.toy.faultIn = 3;  // the sum, the prepared form and the product: the product is not recorded
  CHECK(bench.outcome(updater, One) == "NATIVE layers.7: product: toy: a fault");
  bench.agrees(read, Two);
}

TEST("a weight that was updated since it was packed is not given up for what it was") {
  Bench bench;
  bench.store->write(bench.weight(0), 0, Two);
  Executable packs(bench.store, reader("packedProduct")), reads(bench.store, reader());
  bench.run(packs, One);
  CHECK(!bench.weight(0).buffer.data(), "kept in that form alone");
  {
    Maker maker("updater");
    maker.node("addTo", {0, 3});
    maker.program.outputs = {3};
    Executable updater(bench.store, maker.program);
    bench.run(updater, One);
  }
  const Bytes updated = bytesOf({3, 4, 6, 8});
  for (int run = 0; run < 2; run++) bench.agrees(reads, One);
  CHECK(bench.stored(0) == updated);
  for (int run = 0; run < 2; run++) bench.agrees(packs, Two);
  CHECK(!bench.weight(0).buffer.data() && bench.stored(0) == updated);
}

TEST("two forms of a weight leave none of it as it lies, from the first run on") {
  Bench bench;
  bench.store->write(bench.weight(0), 0, Two);
  Maker maker("both");
  maker.program.outputs = {maker.node("packedProduct", {3, 0}), maker.node("product", {3, 0})};
  Executable both(bench.store, maker.program);
  bench.agrees(both, One);
  CHECK(!bench.weight(0).buffer.data() && bench.stored(0) == Two);
  CHECK(bench.store->derivedBytes() == 16, bench.store->derivedBytes());
}

TEST("a program without the memory to be compiled leaves weights as others keep them") {
  Bench bench;
  Maker packing("packs");
  packing.program.outputs = {packing.node("packedProduct", {3, 0}), packing.node("packedProduct", {3, 1})};
  Maker updating("updater");
  updating.node("addTo", {0, 3});
  updating.node("addTo", {1, 3});
  for (int i = 0; i < 2; i++) bench.store->write(bench.weight(i), 0, i ? One : Two);
  Executable packs(bench.store, packing.program);
  bench.agrees(packs, One);
  for (int left = 0; left < 2; left++) {
    bench.toy.allocationsLeft = left;
    std::string code;
    try {
      Executable updater(bench.store, updating.program);
    } catch (const Error& error) {
      code = error.code;
    }
    bench.toy.allocationsLeft = -1;
    CHECK(code == "OUT_OF_MEMORY", left);
    bench.agrees(packs, Two);
    CHECK(!bench.weight(0).buffer.data() && !bench.weight(1).buffer.data() && bench.stored(0) == Two && bench.stored(1) == One, left);
  }
  Executable updater(bench.store, updating.program);
  bench.agrees(updater, One);
  bench.agrees(packs, One);
}

TEST("an error while weights are prepared names the node, and an abort the program") {
  Bench bench;
  Maker maker("constants");
  maker.program.outputs = {maker.node("product", {3, maker.node("affine", {0})})};
  Executable executable(bench.store, maker.program);
  bench.toy.faultIn = 1;
  CHECK(bench.outcome(executable, One) == "NATIVE layers.7: affine: toy: a fault");
  bench.toy.faultIn = 2;
  CHECK(bench.outcome(executable, One) == "NATIVE layers.7: product: toy: a fault");
  bench.toy.faultIn = 0;
  bench.store->write(bench.weight(0), 0, Two);
  bench.toy.abortIn = 1;
  CHECK(bench.outcome(executable, One) == "ABORTED constants: aborted while its weights were prepared");
  bench.agrees(executable, Two);
}
