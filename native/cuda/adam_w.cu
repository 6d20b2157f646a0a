// AdamW steps of any number of parameters, and the factor that clips gradients. See lib/ops/adam-w.ts for the equations.
//
// One launch for up to 512 parameters: their table is the kernel's argument, each block of 4096 elements finds its parameter by
// the table's prefix of blocks. Two warps make the factors of the step in f64, as the cpu does, while the block's first loads
// are under way elsewhere on the multiprocessor.
// Bound by memory: 16 bytes read and 12 written per element. Not measured on a GPU yet.
#include <cmath>

#include "core/dims.h"
#include "cuda/launch.cuh"

namespace selscan::cuda {
namespace {

constexpr int Threads = 256, N = 4, Capacity = 512;
constexpr int64_t Block = 4096;

struct Parameter {
  float* param;
  const float* grad;
  float *m, *v;
  int64_t count;
  double decay;
};
// Rate, step and clip are read on the device: they change between replays of one recording.
struct Step {
  const float *rate, *step, *clip;
  double beta1, beta2, eps;
  bool operator==(const Step&) const = default;
};
struct Table {
  Step step;
  int64_t entries;
  int64_t firstBlock[Capacity + 1];
  Parameter parameters[Capacity];
};
static_assert(sizeof(Table) <= 32764, "what a kernel's arguments may take");

struct Factors {
  float clip, keep, rate1, rate2, beta2, rootCorrection, eps, stepSize;
};

__device__ __forceinline__ void makeFactors(const Step& step, double decay, Factors* factors) {
  if (threadIdx.x == 0) {
    const double rate = *step.rate;
    factors->clip = *step.clip;
    factors->keep = static_cast<float>(1 - rate * decay);
    factors->rate1 = static_cast<float>(1 - step.beta1);
    factors->stepSize = static_cast<float>(-rate / (1 - pow(step.beta1, static_cast<double>(*step.step))));
  }
  if (threadIdx.x == 32) {
    factors->rate2 = static_cast<float>(1 - step.beta2);
    factors->beta2 = static_cast<float>(step.beta2);
    factors->eps = static_cast<float>(step.eps);
    factors->rootCorrection = static_cast<float>(1 / sqrt(1 - pow(step.beta2, static_cast<double>(*step.step))));
  }
}

template <int Width>
__device__ __forceinline__ void update(const Factors& f, const Parameter& p, int64_t at) {
  float param[Width], grad[Width], m[Width], v[Width];
  loadVec<Width>(p.param + at, param);
  loadVec<Width>(p.grad + at, grad);
  loadVec<Width>(p.m + at, m);
  loadVec<Width>(p.v + at, v);
#pragma unroll
  for (int i = 0; i < Width; i++) {
    const float g = f.clip * grad[i];
    m[i] = fmaf(f.rate1, g - m[i], m[i]);
    v[i] = fmaf(f.beta2, v[i], f.rate2 * (g * g));
    const float size = sqrtf(v[i]) * f.rootCorrection + f.eps;
    param[i] = fmaf(param[i], f.keep, f.stepSize * (m[i] / size));
  }
  storeVec<Width>(p.m + at, m);
  storeVec<Width>(p.v + at, v);
  storeVec<Width>(p.param + at, param);
}

// registers: 48
__global__ __launch_bounds__(Threads) void stepAll(const __grid_constant__ Table table) {
  SHARED(Factors, shared);
  const int64_t block = blockIdx.x;
  int64_t entry = 0, end = table.entries;
  while (end - entry > 1) {
    const int64_t middle = (entry + end) / 2;
    if (table.firstBlock[middle] <= block) entry = middle;
    else end = middle;
  }
  const Parameter& parameter = table.parameters[entry];
  makeFactors(table.step, parameter.decay, shared);
  __syncthreads();
  const Factors factors = *shared;
  const int64_t begin = (block - table.firstBlock[entry]) * Block, last = min(parameter.count, begin + Block);
  int64_t at = begin + int64_t{threadIdx.x} * N;
#pragma unroll 1
  for (; at + N <= last; at += Threads * N) update<N>(factors, parameter, at);
  for (; at < last; at++) update<1>(factors, parameter, at);  // of the thread that stands at the end
}

void stepThese(CudaDevice& device, const Table& table) {
  launch(device, {static_cast<unsigned>(table.firstBlock[table.entries]), Threads, sizeof(Factors)}, stepAll, table);
}

void adamWAll(std::span<const Call> calls) {
  Table table{};
  for (const Call& call : calls) {
    const auto [param, grad, m, v, rate, step, clip] = call.in<7>();
    const auto number = [&](const char* name) { return call.attributes.number(name); };
    const Step own{rate.f32(), step.f32(), clip.f32(), number("beta1"), number("beta2"), number("eps")};
    if (table.entries == Capacity || (table.entries > 0 && own != table.step)) {
      stepThese(deviceOf(call), table);
      table.entries = 0;
    }
    table.step = own;
    table.parameters[table.entries] = {param.f32(), grad.f32(), m.f32(), v.f32(), param.elements(), number("decay")};
    table.firstBlock[table.entries + 1] = table.firstBlock[table.entries] + ceilDiv(param.elements(), Block);
    table.entries++;
  }
  if (table.entries > 0) stepThese(deviceOf(calls[0]), table);
}
void adamW(const Call& call) { adamWAll({&call, 1}); }

// registers: 32
__global__ __launch_bounds__(32) void clip(const float* squares, double most, float* norm, float* scale) {
  if (threadIdx.x != 0) return;
  const double length = sqrt(static_cast<double>(*squares)), factor = most / (length + 1e-6);
  if (norm) *norm = static_cast<float>(length);
  if (scale) *scale = static_cast<float>(factor > 1 ? 1 : factor);  // NaN stays: a broken gradient must show
}
void clipScale(const Call& call) {
  const auto [norm, scale] = call.out<2>();
  launch(deviceOf(call), {1u, 32}, clip, call.inputs[0].f32(), call.attributes.number("max"), norm.f32(), scale.f32());
}

KERNEL(adamW, cuda, "param* grad m* v* rate step clip ->; beta1 beta2 eps decay", .run = adamW, .runAll = adamWAll,
       .limit = [](const Call& call) { return dimsMismatch(call, {"...", "...", "...", "...", "", "", ""}, {}); })
KERNEL(clipScale, cuda, "squares -> norm scale; max", .run = clipScale,
       .limit = [](const Call& call) { return dimsMismatch(call, {""}, {"", ""}); })

}  // namespace
}  // namespace selscan::cuda
