// Times the kernel of sample as the runtime would call it: every run draws at another position.
#include "bench/native/sample.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>

#include "bench/native/values.h"
#include "cpu/threads.h"

namespace selscan::bench {
namespace {

Values logitsOf(const SampleShape& shape, const std::string& form) {
  Values logits(Dtype::f32, {shape.samples, shape.vocab});
  std::mt19937_64 next(7);
  std::normal_distribution<float> normal(0, 0.5f);
  std::vector<int64_t> ranks(shape.vocab);
  std::iota(ranks.begin(), ranks.end(), 1);
  for (int64_t s = 0; s < shape.samples; s++) {
    std::shuffle(ranks.begin(), ranks.end(), next);
    for (int64_t i = 0; i < shape.vocab; i++) {
      float& logit = logits.tensor.f32()[s * shape.vocab + i];
      if (form == "peaked") logit = -1.5f * std::log(static_cast<float>(ranks[i]));
      if (form == "flat") logit = normal(next);
    }
  }
  return logits;
}

struct Setting {
  const char* name;
  float values[6];  // temperature, topP, minP, repetition, frequency, presence
  int32_t topK;
  bool remembers;
};
constexpr Setting Settings[] = {
    {"greedy", {0, 1, 0, 1, 0, 0}, 0, false},
    {"drawn", {0.8f, 1, 0, 1, 0, 0}, 0, false},
    {"top-p 0.95", {0.8f, 0.95f, 0, 1, 0, 0}, 0, false},
    {"top-p 0.95, temperature 1.5", {1.5f, 0.95f, 0, 1, 0, 0}, 0, false},
    {"top-k 40", {0.8f, 1, 0, 1, 0, 0}, 40, false},
    {"min-p 0.05", {0.8f, 1, 0.05f, 1, 0, 0}, 0, false},
    {"penalties, top-k 40, top-p 0.95", {0.8f, 0.95f, 0, 1.1f, 0.1f, 0.1f}, 40, true},
};

// A kernel's call under one setting. Sample s continues slot s + 1 in place.
class Chooser {
 public:
  Chooser(const SampleShape& shape, const Setting& setting, const Tensor& logits, const Tensor& history)
      : settings_(Dtype::f32, {shape.samples, 6}), limits_(Dtype::i32, {shape.samples, 5}), position_(Dtype::i32, {shape.samples}),
        ids_(Dtype::i32, {shape.samples}), logprobs_(Dtype::f32, {shape.samples}), kernel_(findKernel("cpu", "sample")),
        inputs_{logits, settings_.tensor, limits_.tensor, position_.tensor, setting.remembers ? history : Tensor{}},
        outputs_{ids_.tensor, logprobs_.tensor} {
    check(kernel_ != nullptr, "NO_KERNEL", "bench: the kernel of sample is not linked in");
    for (int64_t s = 0; s < shape.samples; s++) {
      std::copy_n(setting.values, 6, settings_.tensor.f32() + 6 * s);
      const auto slot = static_cast<int32_t>(setting.remembers ? s + 1 : 0);
      const int32_t line[] = {setting.topK, static_cast<int32_t>(s), 1, slot, slot};
      std::copy_n(line, 5, limits_.tensor.i32() + 5 * s);
    }
    const std::string limit = kernel_->info.limit(call());
    check(limit.empty(), "BAD_SHAPE", "bench: ", limit);
    workspace_ = Buffer(device("cpu"), kernel_->info.workspaceBytes(call()));
  }
  double microseconds() {
    for (int64_t s = 0; s < position_.tensor[0]; s++) position_.tensor.i32()[s]++;
    const auto begin = std::chrono::steady_clock::now();
    kernel_->info.run(call());
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  Call call() const { return {inputs_, outputs_, attributes_, device("cpu"), workspace_.data()}; }

  Values settings_, limits_, position_, ids_, logprobs_;
  const Kernel* kernel_;
  std::vector<Tensor> inputs_, outputs_;
  Attributes attributes_;
  Buffer workspace_;
};

}  // namespace

std::vector<SampleTimes> timeSample(const SampleShape& shape, int rounds) {
  cpu::setThreadCount(shape.threads);
  Values history(Dtype::i32, {shape.samples + 1, shape.vocab});
  for (int64_t i = 0; i < history.tensor.elements(); i += 97) history.tensor.i32()[i] = 1;  // some 500 words of 50,000
  std::vector<SampleTimes> times;
  std::vector<Values> logits;
  std::vector<Chooser> choosers;
  for (const char* form : {"peaked", "flat", "equal"}) {
    logits.push_back(logitsOf(shape, form));
    for (const Setting& setting : Settings) {
      times.push_back({std::string(form) + ": " + setting.name, {}});
      choosers.emplace_back(shape, setting, logits.back().tensor, history.tensor);
    }
  }
  for (int round = 0; round < rounds; round++)
    for (size_t i = 0; i < choosers.size(); i++) {
      double taken[5];
      for (double& one : taken) one = choosers[i].microseconds();
      std::sort(taken, taken + 5);
      times[i].microseconds.push_back(taken[2]);
    }
  return times;
}

}  // namespace selscan::bench
