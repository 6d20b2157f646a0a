// Times the kernels of linear as the runtime would call them. OpenBLAS is opened at run time, through the few functions
// that are needed, declared here: no header, no dependency.
#include "bench/native/linear.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "bench/native/values.h"
#include "cpu/isa.h"
#include "cpu/threads.h"

namespace selscan::bench {
namespace {

// CBLAS: the layout and transpositions are enums of C, so ints; 101 is row-major, 111 as it lies, 112 transposed.
using Sgemm = void (*)(int layout, int turnA, int turnB, int m, int n, int k, float alpha, const float* a, int lda, const float* b, int ldb,
                       float beta, float* c, int ldc);

// sgemm on that many threads; null with what is missing. A release older than the processor takes kernels for AVX2, half as fast on one
// with AVX-512; OPENBLAS_CORETYPE=SkylakeX in the environment that the process begins with chooses the others.
struct OpenBlas {
  Sgemm sgemm = nullptr;
  std::string kernels, missing;
};
OpenBlas openBlas(int threads) {
  void* library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
  if (!library) return {nullptr, "", "libopenblas.so.0 is not installed (Debian: libopenblas0-pthread)"};
  const auto sgemm = reinterpret_cast<Sgemm>(dlsym(library, "cblas_sgemm"));
  const auto setThreads = reinterpret_cast<void (*)(int)>(dlsym(library, "openblas_set_num_threads"));
  const auto name = reinterpret_cast<const char* (*)()>(dlsym(library, "openblas_get_corename"));
  if (!sgemm || !setThreads || !name) return {nullptr, "", "libopenblas.so.0 lacks one of the three functions that are asked for"};
  setThreads(threads);
  return {sgemm, name(), ""};
}

struct Matrix : Values {
  Matrix(int64_t rows, int64_t columns, double step) : Values(Dtype::f32, {rows, columns}) {
    for (int64_t i = 0; i < rows * columns; i++) tensor.f32()[i] = static_cast<float>(std::sin(step * static_cast<double>(i)));
  }
};

// A weight in 8 bits, a scale for every 32 k of a row.
struct Weight8 {
  Values whole, scales;
  Weight8(int64_t out, int64_t in) : whole(Dtype::i8, {out, in}), scales(Dtype::bf16, {out, (in + 31) / 32}) {
    for (int64_t i = 0; i < out * in; i++) whole.tensor.data[i] = static_cast<std::byte>(i * 37 % 255 - 127);
    std::fill_n(scales.tensor.half(), scales.tensor.elements(), toBf16(0x1p-7f));
  }
};

// A call of one kernel with what the runtime would have prepared for it.
struct Prepared {
  const Kernel* kernel;
  std::vector<Tensor> inputs, outputs;
  Attributes attributes;
  std::vector<Buffer> forms;
  std::vector<std::byte*> prepared;
  Buffer workspace;

  Prepared(const char* name, const std::vector<Tensor>& in, const std::vector<Tensor>& out, Attributes attributes)
      : kernel(findKernel("cpu", name)), inputs(in), outputs(out), attributes(std::move(attributes)), prepared(in.size()) {
    check(kernel != nullptr, "NO_KERNEL", "bench: the kernel of ", name, " is not linked in");
    const std::string limit = kernel->info.limit(call());
    check(limit.empty(), "BAD_SHAPE", "bench: ", name, ": ", limit);
    if (kernel->info.workspaceBytes) workspace = Buffer(device("cpu"), kernel->info.workspaceBytes(call()));
    for (size_t i = 0; i < inputs.size(); i++) {
      const Preparation* form = kernel->info.prepare ? kernel->info.prepare(call(), static_cast<int>(i)) : nullptr;
      if (!form) continue;
      forms.emplace_back(device("cpu"), form->bytes(inputs[i]));
      form->run(inputs[i], prepared[i] = forms.back().data(), device("cpu"));
    }
  }
  Call call() { return {inputs, outputs, attributes, device("cpu"), workspace.data(), prepared}; }
  void run() { kernel->info.run(call()); }
};

template <class Body>
double milliseconds(Body&& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

// Median of several runs, after one that fills caches and wakes threads.
template <class Body>
double median(Body&& body) {
  body();
  double times[7];
  for (double& time : times) time = milliseconds(body);
  std::nth_element(times, times + 3, times + 7);
  return times[3];
}

double largestDifference(const Tensor& ours, const Tensor& theirs) {
  double largest = 0, difference = 0;
  for (int64_t i = 0; i < ours.elements(); i++) {
    largest = std::max(largest, std::abs(static_cast<double>(theirs.f32()[i])));
    difference = std::max(difference, std::abs(static_cast<double>(ours.f32()[i]) - theirs.f32()[i]));
  }
  return difference / largest;
}

Attributes forward(const char* precision) {
  return {{{"activation", std::string("none")}, {"precision", std::string(precision)}, {"dtype", std::string("same")}}};
}

}  // namespace

LinearOutcome timeLinear(const LinearShape& shape, int rounds) {
  const auto [rows, in, out, threads] = shape;
  cpu::setThreadCount(threads);
  const Matrix x(rows, in, 0.7), weight(out, in, 1.3), dy(rows, out, 1.9);
  const Matrix y(rows, out, 0), split(rows, out, 0), exact(rows, out, 0), theirs(rows, out, 0), dx(rows, in, 0), dweight(out, in, 0);
  const Weight8 weight8(out, in);
  const Matrix whole(rows, out, 0);
  const Attributes half{{{"precision", std::string("bf16")}, {"dtype", std::string("same")}}};

  std::vector<std::pair<const char*, std::unique_ptr<Prepared>>> calls;
  using Tensors = std::vector<Tensor>;
  const auto add = [&](const char* name, const char* kernel, const Tensors& from, const Tensors& to, Attributes attributes) {
    calls.emplace_back(name, std::make_unique<Prepared>(kernel, from, to, std::move(attributes)));
  };
  add("bf16", "linear", {x.tensor, weight.tensor, {}, {}, {}}, {y.tensor, {}}, forward("bf16"));
  add("int8", "linear", {x.tensor, weight8.whole.tensor, {}, {}, weight8.scales.tensor}, {whole.tensor, {}}, forward("bf16"));
  add("f32", "linear", {x.tensor, weight.tensor, {}, {}, {}}, {exact.tensor, {}}, forward("f32"));
  if (cpu::isa() >= cpu::Isa::amx)
    add("bf16x3", "linear", {x.tensor, weight.tensor, {}, {}, {}}, {split.tensor, {}}, forward("bf16x3"));
  add("inputGrad bf16", "linearInputGrad", {dy.tensor, weight.tensor}, {dx.tensor}, half);
  add("weightGrad bf16", "linearWeightGrad", {dy.tensor, x.tensor}, {dweight.tensor}, half);

  LinearOutcome outcome{};
  for (const auto& [name, call] : calls) outcome.times.push_back({name, {}});
  const auto [sgemm, kernels, missing] = openBlas(threads);
  outcome.kernels = kernels;
  outcome.missing = missing;
  if (sgemm) outcome.times.push_back({"sgemm", {}});
  const auto size = [](int64_t n) { return static_cast<int>(n); };
  for (int round = 0; round < rounds; round++) {
    for (size_t i = 0; i < calls.size(); i++) outcome.times[i].milliseconds.push_back(median([&] { calls[i].second->run(); }));
    if (!sgemm) continue;
    outcome.times.back().milliseconds.push_back(median([&] {
      sgemm(101, 111, 112, size(rows), size(out), size(in), 1.0f, x.tensor.f32(), size(in), weight.tensor.f32(), size(in), 0.0f,
            theirs.tensor.f32(), size(out));
    }));
  }
  outcome.difference = sgemm ? largestDifference(exact.tensor, theirs.tensor) : 0;
  return outcome;
}

}  // namespace selscan::bench
