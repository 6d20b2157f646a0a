// Choosing the next token, and remembering the tokens of prompts. See lib/ops/sample.ts for every definition.
//
// Sixteen tasks, task t takes samples t, t + 16, …, so that the workspace (12 bytes per token of the vocabulary and task)
// stays bounded. No sort of the whole vocabulary: top-k selects (std::nth_element), top-p sorts a prefix that grows eightfold
// until it holds enough probability. Only the passes over all logits that compute are vectorised. Bound by the additions
// in f64, one after the other in token order, and by the selection.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/kernel.h"
#include "core/philox.h"
#include "cpu/threads.h"
#include "ops/sample.h"

#define EACH_ISA "cpu/sample.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {

// Greatest logit, or NaN when no token can be chosen: a logit is NaN or +∞, or all are −∞.
float greatest(const float* logits, int64_t vocab) {
  constexpr float Largest = 3.402823466e38f;
  F32 most = set(-__builtin_inff()), broken = set(0.0f);  // NaN·0 and ∞·0 are NaN; −∞ is lifted to a finite number
  int64_t i = 0;
  for (; i + Lanes <= vocab; i += Lanes) {
    const F32 x = load(logits + i);
    most = max(most, x);
    broken = fma(max(set(-Largest), x), set(0.0f), broken);
  }
  float best = maximum(most);
  bool finite = sum(broken) == 0.0f;
  for (; i < vocab; i++) {
    finite = finite && logits[i] <= Largest;
    best = logits[i] > best ? logits[i] : best;
  }
  return finite && best > -__builtin_inff() ? best : __builtin_nanf("");
}

// weights = exp((logits − most)·inverse), which may be in place.
void exponentials(const float* logits, float* weights, int64_t vocab, float most, float inverse) {
  int64_t i = 0;
  for (; i + Lanes <= vocab; i += Lanes) store(weights + i, exp((load(logits + i) - set(most)) * set(inverse)));
  const int rest = static_cast<int>(vocab - i);
  if (rest > 0) store(weights + i, exp((load(logits + i, rest) - set(most)) * set(inverse)), rest);
}

// Σ values in f64, in eight lanes.
double sumOf(const float* values, int64_t count) {
  double lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; lane++) lanes[lane] += values[i + lane];
  for (int lane = 0; i < count; i++, lane++) lanes[lane] += values[i];
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {
namespace {

using ops::CountMask;
using ops::InPrompt;

constexpr int64_t Tasks = 16;
constexpr float Infinity = std::numeric_limits<float>::infinity(), Largest = std::numeric_limits<float>::max();

struct Settings {
  float temperature, topP, minP, repetition, frequency, presence;
};
struct Candidate {
  float weight;
  int32_t id;
  bool operator<(const Candidate& other) const { return weight != other.weight ? weight > other.weight : id < other.id; }
};
// What one task works in.
struct Scratch {
  float* weights;
  Candidate* candidates;
};

float orElse(float value, float low, float high, float otherwise) { return value >= low && value <= high ? value : otherwise; }

// Values out of their ranges (lib/ops/sample.ts refuses them earlier) mean that the setting does nothing.
Settings readSettings(const float* s) {
  return {orElse(s[0], 0, 1e30f, 1),       orElse(s[1], 0, 1, 1),        orElse(s[2], 0, 1, 0),
          orElse(s[3], 1e-6f, 1e6f, 1), orElse(s[4], -1e6f, 1e6f, 0), orElse(s[5], -1e6f, 1e6f, 0)};
}

#if SELSCAN_X86
#define FOR_THIS_PROCESSOR(f) (isa() >= Isa::avx512 ? avx512::f : isa() == Isa::avx2 ? avx2::f : portable::f)
#else
#define FOR_THIS_PROCESSOR(f) portable::f
#endif
float greatest(const float* logits, int64_t vocab) { return FOR_THIS_PROCESSOR(greatest)(logits, vocab); }
double sumOf(const float* values, int64_t count) { return FOR_THIS_PROCESSOR(sumOf)(values, count); }
void exponentials(const float* logits, float* weights, int64_t vocab, float most, float inverse) {
  FOR_THIS_PROCESSOR(exponentials)(logits, weights, vocab, most, inverse);
}

// log Σ exp(logits); scratch holds vocab floats.
double logSumExp(const float* logits, float* scratch, int64_t vocab, float most) {
  exponentials(logits, scratch, vocab, most, 1);
  return most + std::log(sumOf(scratch, vocab));
}

void penalise(float* logits, const int32_t* seen, int64_t vocab, const Settings& settings) {
  for (int64_t i = 0; i < vocab; i++) {
    if (seen[i] == 0) continue;
    const int32_t count = seen[i] & CountMask;
    float logit = logits[i] > 0 ? logits[i] / settings.repetition : logits[i] * settings.repetition;
    if (count > 0) logit -= settings.frequency * static_cast<float>(count) + settings.presence;
    logits[i] = logit <= Largest ? logit : Largest;
  }
}

int64_t firstMaximum(const float* values, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 1; i < count; i++)
    if (values[i] > values[best]) best = i;
  return best;
}

// Takes out all logits below the k-th largest; ties with it stay. On logits, not weights: a high temperature rounds
// different logits to one weight.
void keepTop(float* logits, int64_t vocab, int64_t k, float* scratch) {
  std::memcpy(scratch, logits, static_cast<size_t>(vocab) * sizeof(float));
  std::nth_element(scratch, scratch + (k - 1), scratch + vocab, [](float a, float b) { return a > b; });
  const float least = scratch[k - 1];
  for (int64_t i = 0; i < vocab; i++)
    if (logits[i] < least) logits[i] = -Infinity;
}

// Keeps the shortest run of the most probable tokens, ties by lower id, that holds at least topP of all weight.
void keepNucleus(float* weights, int64_t vocab, double topP, Candidate* candidates) {
  const double total = sumOf(weights, vocab);
  int64_t count = 0;
  for (int64_t i = 0; i < vocab; i++)
    if (weights[i] > 0) candidates[count++] = {weights[i], static_cast<int32_t>(i)};
  double held = 0;
  int64_t sorted = 0, kept = 0;
  for (int64_t prefix = 64; kept == sorted && sorted < count; prefix *= 8) {
    const int64_t end = std::min(prefix, count);
    if (end < count) std::nth_element(candidates + sorted, candidates + end, candidates + count);
    std::sort(candidates + sorted, candidates + end);
    sorted = end;
    while (kept < sorted && (kept == 0 || held < topP * total)) held += candidates[kept++].weight;
  }
  for (int64_t i = kept; i < count; i++) weights[candidates[i].id] = 0;
}

// The token at which the cumulative weight, in token order, passes u of the whole.
int64_t draw(const float* weights, int64_t vocab, double u) {
  const double total = sumOf(weights, vocab);
  double passed = 0;
  int64_t last = 0;
  for (int64_t i = 0; i < vocab; i++) {
    if (weights[i] <= 0) continue;
    last = i;
    passed += weights[i];
    if (passed > u * total) return i;
  }
  return last;
}

struct Request {
  const float* logits;
  const int32_t* history;  // null: none
  Settings settings;
  int64_t topK;
  uint64_t seed;
  int32_t position;
};

// The chosen token, or −1 when none can be.
int64_t choose(const Request& request, int64_t vocab, Scratch scratch) {
  const Settings& settings = request.settings;
  float* weights = scratch.weights;
  std::memcpy(weights, request.logits, static_cast<size_t>(vocab) * sizeof(float));
  if (request.history) penalise(weights, request.history, vocab, settings);
  const float most = greatest(weights, vocab);
  if (std::isnan(most)) return -1;
  if (settings.temperature == 0) return firstMaximum(weights, vocab);
  if (request.topK > 0 && request.topK < vocab) keepTop(weights, vocab, request.topK, reinterpret_cast<float*>(scratch.candidates));
  exponentials(weights, weights, vocab, most, static_cast<float>(std::min(1.0 / settings.temperature, 1e30)));
  if (settings.topP < 1) keepNucleus(weights, vocab, settings.topP, scratch.candidates);
  if (settings.minP > 0)
    for (int64_t i = 0; i < vocab; i++)
      if (weights[i] < settings.minP) weights[i] = 0;  // the most probable token weighs 1
  return draw(weights, vocab, uniformAt(request.seed, static_cast<uint64_t>(request.position)));
}

// Row `to` becomes row `from`, or all zeros where `from` is 0.
void carry(int32_t* history, int64_t vocab, int64_t from, int64_t to) {
  if (from == to) return;
  const size_t bytes = static_cast<size_t>(vocab) * sizeof(int32_t);
  if (from > 0) std::memcpy(history + to * vocab, history + from * vocab, bytes);
  else std::memset(history + to * vocab, 0, bytes);
}

void sample(const Call& call) {
  const auto [logits, settings, limits, position, history] = call.in<5>();
  const auto [ids, logprobs] = call.out<2>();
  const int64_t samples = logits[0], vocab = logits[1], slots = history ? history[0] : 0;
  const auto inSlots = [=](int32_t slot) { return slot > 0 && slot < slots ? slot : 0; };
  const float *values = logits.f32(), *set = settings.f32();
  const int32_t *limit = limits.i32(), *positions = position.i32();
  int32_t *rows = history.i32(), *chosen = ids.i32();
  float* scores = logprobs.f32();
  std::byte* workspace = call.workspace;
  parallel(std::min(Tasks, samples), [=](int64_t task) {
    float* weights = reinterpret_cast<float*>(workspace + task * vocab * 12);
    const Scratch scratch{weights, reinterpret_cast<Candidate*>(weights + vocab)};
    for (int64_t s = task; s < samples; s += Tasks) {
      const int32_t* line = limit + 5 * s;
      const int32_t from = inSlots(line[3]), to = inSlots(line[4]);
      const float* row = values + s * vocab;
      const uint64_t seed = uint64_t{static_cast<uint32_t>(line[2])} << 32 | static_cast<uint32_t>(line[1]);
      const float most = greatest(row, vocab);
      const Request request{row, from ? rows + from * vocab : nullptr, readSettings(set + 6 * s), line[0], seed, positions[s]};
      const int64_t id = std::isnan(most) ? -1 : choose(request, vocab, scratch);
      if (chosen) chosen[s] = static_cast<int32_t>(id);
      if (scores) scores[s] = id < 0 ? std::numeric_limits<float>::quiet_NaN()
                                     : static_cast<float>(row[id] - logSumExp(row, weights, vocab, most));
      if (to == 0) continue;
      carry(rows, vocab, from, to);
      int32_t* seen = rows + to * vocab;
      if (id >= 0 && (seen[id] & CountMask) < CountMask) seen[id]++;
    }
  });
}

size_t sampleBytes(const Call& call) {
  return static_cast<size_t>(std::min(Tasks, call.inputs[0][0]) * call.inputs[0][1]) * 12;
}

void recordTokens(const Call& call) {
  const auto [ids, segments, history] = call.in<3>();
  const int64_t vocab = history[1];
  const int32_t *tokens = ids.i32(), *lines = segments.i32();
  int32_t* rows = history.i32();
  parallel(segments[0], [=](int64_t s) {
    const auto [begin, end, position, from, to] = segmentAt(lines, s);
    if (begin == end || to == 0) return;
    carry(rows, vocab, from, to);
    // What an earlier generation added is context now: its counts become the mark of the prompt.
    for (int64_t id = 0; id < vocab; id++) rows[to * vocab + id] = rows[to * vocab + id] != 0 ? InPrompt : 0;
    for (int64_t row = begin; row < end; row++) rows[to * vocab + tokens[row]] |= InPrompt;
  });
}

KERNEL(sample, cpu, "logits settings limits position history?* -> ids logprobs", .run = sample, .limit = ops::sampleLimit,
       .workspaceBytes = sampleBytes, .checkInputs = ops::checkSample)
KERNEL(recordTokens, cpu, "ids segments history* ->", .run = recordTokens, .limit = ops::recordLimit, .checkInputs = ops::checkRecord)

}  // namespace
}  // namespace selscan::cpu
#endif
