// Times the scan's kernel as the runtime would call it, and a plain scalar loop with expf, compiled by the same compiler with
// the same flags (-O3, no fast-math).
#include "bench/native/scan.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "bench/native/values.h"
#include "cpu/threads.h"

namespace selscan::bench {
namespace {

struct Noise : Values {
  using Values::Values;
  // Uniform in [low, high): bits of a multiplicative congruential generator (Park & Miller).
  Noise& fill(uint64_t seed, float low, float high) {
    uint64_t word = seed * 16807 % 2147483647;
    for (int64_t i = 0; i < tensor.elements(); i++) {
      word = word * 16807 % 2147483647;
      tensor.f32()[i] = low + (high - low) * static_cast<float>(word) / 2147483647.0f;
    }
    return *this;
  }
};

struct Inputs {
  Noise x, delta, A, B, C, D, z, bias, segments;

  explicit Inputs(const ScanShape& s)
      : x(Dtype::f32, {s.rows, s.inner}), delta(Dtype::f32, {s.rows, s.inner}), A(Dtype::f32, {s.inner, s.state}),
        B(Dtype::f32, {s.rows, s.state}), C(Dtype::f32, {s.rows, s.state}), D(Dtype::f32, {s.inner}), z(Dtype::f32, {s.rows, s.inner}),
        bias(Dtype::f32, {s.inner}), segments(Dtype::i32, {1, 5}) {
    x.fill(1, -2, 2), delta.fill(2, -2, 2), A.fill(3, -4, -0.2f), B.fill(4, -2, 2), C.fill(5, -2, 2);
    D.fill(6, -1, 1), z.fill(7, -2, 2), bias.fill(8, -2, 1);
    segments.tensor.i32()[1] = static_cast<int32_t>(s.rows);
  }
};

// As one would write it down, tokens outermost so that memory is read in order; with channels outermost it is no faster.
void plainLoop(const ScanShape& shape, const Inputs& in, std::vector<float>& h, float* y) {
  const float *x = in.x.tensor.f32(), *delta = in.delta.tensor.f32(), *A = in.A.tensor.f32(), *B = in.B.tensor.f32();
  const float *C = in.C.tensor.f32(), *D = in.D.tensor.f32(), *z = in.z.tensor.f32(), *bias = in.bias.tensor.f32();
  const int64_t inner = shape.inner, state = shape.state;
  std::fill(h.begin(), h.end(), 0.0f);
  for (int64_t t = 0; t < shape.rows; t++)
    for (int64_t d = 0; d < inner; d++) {
      const int64_t at = t * inner + d;
      const float raw = delta[at] + bias[d];
      const float step = raw > 20 ? raw : log1pf(expf(raw));
      float sum = D[d] * x[at];
      for (int64_t n = 0; n < state; n++) {
        float& one = h[d * state + n];
        one = expf(step * A[d * state + n]) * one + step * B[t * state + n] * x[at];
        sum += C[t * state + n] * one;
      }
      y[at] = sum * z[at] / (1 + expf(-z[at]));
    }
}

template <class Body>
double seconds(Body&& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Median of several runs, after one that fills caches and wakes threads.
template <class Body>
double medianSeconds(int runs, Body&& body) {
  body();
  std::vector<double> times(runs);
  for (double& time : times) time = seconds(body);
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[runs / 2];
}

}  // namespace

namespace {

// The forward pass that saves states, and the gradient of all inputs, one after the other as in a training step.
class Training {
 public:
  Training(const ScanShape& s, const Inputs& in)
      : dy_(Dtype::f32, {s.rows, s.inner}), saved_(Dtype::f32, {(s.rows + 63) / 64 + 1, s.inner, s.state}), y_(Dtype::f32, {s.rows, s.inner}),
        dx_(Dtype::f32, {s.rows, s.inner}), ddelta_(Dtype::f32, {s.rows, s.inner}), dz_(Dtype::f32, {s.rows, s.inner}),
        dA_(Dtype::f32, {s.inner, s.state}), dB_(Dtype::f32, {s.rows, s.state}), dC_(Dtype::f32, {s.rows, s.state}),
        dD_(Dtype::f32, {s.inner}), dbias_(Dtype::f32, {s.inner}),
        forwardInputs_{in.x.tensor, in.delta.tensor, in.A.tensor, in.B.tensor, in.C.tensor, in.D.tensor,
                       in.z.tensor, in.bias.tensor, in.segments.tensor, {}, {}},
        forwardOutputs_{y_.tensor, {}, saved_.tensor},
        inputs_{dy_.tensor, {}, in.x.tensor, in.delta.tensor, in.A.tensor, in.B.tensor, in.C.tensor, in.D.tensor,
                in.z.tensor, in.bias.tensor, in.segments.tensor, saved_.tensor},
        outputs_{dx_.tensor, ddelta_.tensor, dA_.tensor, dB_.tensor, dC_.tensor, dD_.tensor, dz_.tensor, dbias_.tensor, {}},
        forward_(findKernel("cpu", "selectiveScan")), backward_(findKernel("cpu", "selectiveScanGrad")) {
    check(forward_ && backward_, "NO_KERNEL", "bench: the scan's kernels are not linked in");
    dy_.fill(9, -2, 2);
    workspace_ = Buffer(device("cpu"), backward_->info.workspaceBytes(call(inputs_, outputs_)));
  }
  void run() const {
    forward_->info.run(call(forwardInputs_, forwardOutputs_));
    backward_->info.run(call(inputs_, outputs_));
  }

 private:
  Call call(const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) const {
    return {inputs, outputs, attributes_, device("cpu"), workspace_.data()};
  }

  Noise dy_;
  Values saved_, y_, dx_, ddelta_, dz_, dA_, dB_, dC_, dD_, dbias_;
  std::vector<Tensor> forwardInputs_, forwardOutputs_, inputs_, outputs_;
  Attributes attributes_{{{"softplus", true}}};
  Buffer workspace_;
  const Kernel *forward_, *backward_;
};

}  // namespace

ScanTimes timeScan(const ScanShape& shape, int rounds) {
  const Inputs in(shape);
  Values y(Dtype::f32, {shape.rows, shape.inner});
  std::vector<float> h(shape.inner * shape.state), plain(shape.rows * shape.inner);

  const Kernel* kernel = findKernel("cpu", "selectiveScan");
  check(kernel != nullptr, "NO_KERNEL", "bench: the scan's kernel is not linked in");
  const Tensor inputs[] = {in.x.tensor, in.delta.tensor, in.A.tensor, in.B.tensor, in.C.tensor, in.D.tensor,
                           in.z.tensor, in.bias.tensor, in.segments.tensor, {}, {}};
  const Tensor outputs[] = {y.tensor, {}, {}};
  const Attributes attributes{{{"softplus", true}}};
  const Call call{inputs, outputs, attributes, device("cpu")};
  const std::string limit = kernel->info.limit(call);
  check(limit.empty(), "BAD_SHAPE", "bench: ", limit);

  const Training training(shape, in);

  ScanTimes times;
  const double scale = 1e9 / static_cast<double>(shape.rows * shape.inner);
  for (int round = 0; round < rounds; round++) {
    times.plain.push_back(scale * seconds([&] { plainLoop(shape, in, h, plain.data()); }));
    cpu::setThreadCount(1);
    times.one.push_back(scale * medianSeconds(9, [&] { kernel->info.run(call); }));
    times.training.push_back(scale * medianSeconds(5, [&] { training.run(); }));
    cpu::setThreadCount(2);
    times.two.push_back(scale * medianSeconds(9, [&] { kernel->info.run(call); }));
  }

  float largest = 0, difference = 0;
  for (size_t i = 0; i < plain.size(); i++) {
    largest = std::max(largest, std::abs(plain[i]));
    difference = std::max(difference, std::abs(plain[i] - y.tensor.f32()[i]));
  }
  times.difference = difference / largest;
  return times;
}

}  // namespace selscan::bench
