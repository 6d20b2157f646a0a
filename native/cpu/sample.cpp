// Choosing the next token, and remembering the tokens of prompts. See lib/ops/sample.ts for every definition.
//
// Sixteen tasks, task t takes samples t, t + 16, …, so that the workspace stays bounded; a sample that is alone has its passes over
// the vocabulary cut into parts, by shape, that threads share. Nothing is sorted: select.h finds the k-th largest logit and the
// lightest weight of the nucleus. Sums are f64, of blocks of tokens, added in the order of tokens; the drawn number is looked for
// among blocks, then in one.
// Bound by the exponentials, of which those of the raw logits serve the log-probability. Measured (selscan-bench sample, 50,280 words,
// µs on one thread and on two of an AMD EPYC (Zen 5), AVX-512, 2026-11-22; in brackets with nth_element and sort, on either):
//   logits as of a trained model: greedy 15, 9 (50); drawn 26, 15 (55); top-p 0.95 38, 23 (300), at temperature 1.5 82, 47 (2,610);
//   top-k 40 36, 22 (262); min-p 31, 18 (53); penalties, top-k and top-p 60, 35 (399). Nearly flat: top-p 0.95 96, 72 (3,480).
// Decoding of mamba-130m in bf16 with top-p 0.95 takes 6.6 ms a token (11.2), greedy 6.5.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/kernel.h"
#include "core/philox.h"
#include "cpu/select.h"
#include "ops/sample.h"

#ifndef ISA
namespace selscan::cpu {
namespace {

// A logit's weight is exp((logit − most)·inverse), or 0 where it is below `least`.
struct Weighing {
  float most, inverse, least;
};

}  // namespace
}  // namespace selscan::cpu
#endif

#define EACH_ISA "cpu/sample.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
namespace selscan::ISA {
namespace {

using cpu::Block;

// The greatest of the logits, or NaN where one is NaN or +∞.
float greatest(const float* logits, int64_t count) {
  constexpr float Largest = 3.402823466e38f;
  F32 most = set(-__builtin_inff()), broken = set(0.0f);  // NaN·0 and ∞·0 are NaN; −∞ is lifted to a finite number
  int64_t i = 0;
  for (; i + Lanes <= count; i += Lanes) {
    const F32 x = load(logits + i);
    most = max(most, x);
    broken = fma(max(set(-Largest), x), set(0.0f), broken);
  }
  float best = maximum(most);
  bool finite = sum(broken) == 0.0f;
  for (; i < count; i++) {
    finite = finite && logits[i] <= Largest;
    best = logits[i] > best ? logits[i] : best;
  }
  return finite ? best : __builtin_nanf("");
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

// Weights of logits, which may be in place.
void exponentials(const float* logits, float* weights, int64_t count, cpu::Weighing w) {
  const auto weigh = [=](F32 x) { return selectGreater(set(w.least), x, set(0.0f), exp((x - set(w.most)) * set(w.inverse))); };
  int64_t i = 0;
  for (; i + Lanes <= count; i += Lanes) store(weights + i, weigh(load(logits + i)));
  const int rest = static_cast<int>(count - i);
  if (rest > 0) store(weights + i, weigh(load(logits + i, rest)), rest);
}

// The same for blocks, and the sum of each.
void weigh(const float* logits, float* weights, double* sums, int64_t count, cpu::Weighing w) {
  for (int64_t i = 0; i < count; i += Block) {
    const int64_t size = count - i < Block ? count - i : Block;
    exponentials(logits + i, weights + i, size, w);
    sums[i / Block] = sumOf(weights + i, size);
  }
}

// Σ weights, block by block.
double expSum(const float* logits, int64_t count, cpu::Weighing w) {
  float weights[Block];
  double total = 0;
  for (int64_t i = 0; i < count; i += Block) {
    const int64_t size = count - i < Block ? count - i : Block;
    exponentials(logits + i, weights, size, w);
    total += sumOf(weights, size);
  }
  return total;
}

// Takes out the weights below `least`; sums of what stays.
void keep(float* weights, double* sums, int64_t count, float least) {
  const auto kept = [=](F32 x) { return selectGreater(set(least), x, set(0.0f), x); };
  for (int64_t begin = 0; begin < count; begin += Block) {
    const int64_t size = count - begin < Block ? count - begin : Block;
    float* block = weights + begin;
    int64_t i = 0;
    for (; i + Lanes <= size; i += Lanes) store(block + i, kept(load(block + i)));
    const int rest = static_cast<int>(size - i);
    if (rest > 0) store(block + i, kept(load(block + i, rest)), rest);
    sums[begin / Block] = sumOf(block, size);
  }
}

}  // namespace
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

float orElse(float value, float low, float high, float otherwise) { return value >= low && value <= high ? value : otherwise; }

// Values out of their ranges (lib/ops/sample.ts refuses them earlier) mean that the setting does nothing.
Settings readSettings(const float* s) {
  return {orElse(s[0], 0, 1e30f, 1),    orElse(s[1], 0, 1, 1),        orElse(s[2], 0, 1, 0),
          orElse(s[3], 1e-6f, 1e6f, 1), orElse(s[4], -1e6f, 1e6f, 0), orElse(s[5], -1e6f, 1e6f, 0)};
}

// What one task works in.
struct Scratch {
  float* weights;
  Selection selection;
  double* sums;  // of blocks

  static int64_t blocks(int64_t vocab) { return (vocab + Block - 1) / Block; }
  static size_t wholeLines(size_t bytes) { return (bytes + 63) / 64 * 64; }
  static size_t weightBytes(int64_t vocab) { return wholeLines(static_cast<size_t>(vocab) * sizeof(float)); }
  static size_t bytes(int64_t vocab) {
    return wholeLines(weightBytes(vocab) + Selection::bytes(vocab) + static_cast<size_t>(blocks(vocab)) * sizeof(double));
  }
  Scratch(std::byte* memory, int64_t vocab)
      : weights(reinterpret_cast<float*>(memory)), selection(memory + weightBytes(vocab), vocab),
        sums(reinterpret_cast<double*>(memory + weightBytes(vocab) + Selection::bytes(vocab))) {}
};

// The lightest weight of the shortest run of the most probable tokens, ties by lower id, that holds at least topP of all weight, which
// is `total`; takes out those of its equals that are not in the run. Weights below (1 − topP)·total/(2·vocab) are not looked at: all
// together they are half of what may stay outside, so that none is in the run, whatever the rounding of the sums.
float nucleus(float topP, double total, const Scratch& scratch, int64_t vocab) {
  const double target = topP * total, out = (1.0 - topP) * total / (2.0 * static_cast<double>(vocab));
  const Selected lightest = reaching(target, scratch.weights, vocab, static_cast<float>(out), 1, scratch.selection);
  const double equals = lightest.mass / lightest.value, needed = std::max(1.0, std::ceil((target - lightest.above) / lightest.value));
  if (needed >= equals) return lightest.value;
  auto left = static_cast<int64_t>(needed);
  for (int64_t i = 0; i < vocab; i++)
    if (scratch.weights[i] == lightest.value && left-- <= 0) scratch.weights[i] = 0;
  return lightest.value;
}

// The token at which the cumulative weight, in token order, passes u of the whole: its block, then itself.
int64_t draw(const Scratch& scratch, int64_t vocab, double u) {
  const double* sums = scratch.sums;
  const int64_t blocks = Scratch::blocks(vocab);
  double total = 0, passed = 0;
  for (int64_t block = 0; block < blocks; block++) total += sums[block];
  int64_t chosen = 0;
  double before = 0;
  for (int64_t block = 0; block < blocks && passed <= u * total; block++) {
    if (sums[block] == 0) continue;
    chosen = block;
    before = passed;
    passed += sums[block];
  }
  const int64_t begin = chosen * Block, end = std::min(vocab, begin + Block);
  int64_t last = begin;  // where rounding lets none pass
  passed = before;
  for (int64_t i = begin; i < end && passed <= u * total; i++) {
    if (scratch.weights[i] == 0) continue;
    last = i;
    passed += scratch.weights[i];
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

void penalise(const float* logits, const int32_t* seen, float* scores, int64_t count, const Settings& settings) {
  constexpr int64_t Piece = 16;  // most have none that was seen
  std::memcpy(scores, logits, static_cast<size_t>(count) * sizeof(float));
  for (int64_t begin = 0; begin < count; begin += Piece) {
    const int64_t end = std::min(count, begin + Piece);
    int32_t any = 0;
    for (int64_t i = begin; i < end; i++) any |= seen[i];
    for (int64_t i = begin; any != 0 && i < end; i++) {
      if (seen[i] == 0) continue;
      const int32_t times = seen[i] & CountMask;
      float score = scores[i] > 0 ? scores[i] / settings.repetition : scores[i] * settings.repetition;
      if (times > 0) score -= settings.frequency * static_cast<float>(times) + settings.presence;
      scores[i] = score <= Largest ? score : Largest;
    }
  }
}

// A sample's greatest logit and the part of the vocabulary that has it first; NaN where no token can be chosen: a logit is NaN or +∞, or
// all are −∞. With a history, of the penalised logits, which it writes to `scores`.
struct Top {
  float most;
  int64_t begin;
};
Top topOf(const Request& request, const int32_t* history, float* scores, const Parts& parts) {
  float most[Parts::Most];
  parts.each([&](int64_t part, int64_t begin, int64_t size) {
    const float* logits = request.logits + begin;
    if (history) penalise(logits, history + begin, scores + begin, size, request.settings);
    most[part] = FOR_THIS_PROCESSOR(greatest)(history ? scores + begin : logits, size);
  });
  Top top{most[0], 0};
  for (int64_t part = 1; part < parts.count; part++)
    if (std::isnan(most[part]) || most[part] > top.most) top = {most[part], parts.begin(part)};  // of NaN nothing is greater
  if (top.most == -Infinity) top.most = std::numeric_limits<float>::quiet_NaN();
  return top;
}

// The chosen token, or −1 when none can be; `top` is that of the raw logits.
int64_t choose(const Request& request, Top top, const Scratch& scratch, const Parts& parts) {
  const Settings& settings = request.settings;
  const float* scores = request.history ? scratch.weights : request.logits;
  if (request.history && !std::isnan(top.most)) top = topOf(request, request.history, scratch.weights, parts);
  if (std::isnan(top.most)) return -1;
  if (settings.temperature == 0) return std::find(scores + top.begin, scores + parts.total, top.most) - scores;
  Weighing weighing{top.most, static_cast<float>(std::min(1.0 / settings.temperature, 1e30)), -Infinity};
  // On logits, not weights: a high temperature rounds different logits to one weight.
  if (request.topK > 0 && request.topK < parts.total)
    weighing.least = kthLargest(scores, parts.total, request.topK, top.most, scratch.selection);
  parts.each([&](int64_t, int64_t begin, int64_t size) {
    FOR_THIS_PROCESSOR(weigh)(scores + begin, scratch.weights + begin, scratch.sums + begin / Block, size, weighing);
  });
  float least = settings.minP;  // the most probable token weighs 1
  if (settings.topP < 1) {
    double total = 0;
    for (int64_t block = 0; block < Scratch::blocks(parts.total); block++) total += scratch.sums[block];
    least = std::max(least, nucleus(settings.topP, total, scratch, parts.total));
  }
  if (least > 0)
    parts.each([&](int64_t, int64_t begin, int64_t size) {
      FOR_THIS_PROCESSOR(keep)(scratch.weights + begin, scratch.sums + begin / Block, size, least);
    });
  return draw(scratch, parts.total, uniformAt(request.seed, static_cast<uint64_t>(request.position)));
}

// log Σ exp(logits)
double logSumExp(const float* logits, float most, const Parts& parts) {
  double sums[Parts::Most], total = 0;
  parts.each([&](int64_t part, int64_t begin, int64_t size) {
    sums[part] = FOR_THIS_PROCESSOR(expSum)(logits + begin, size, {most, 1, -Infinity});
  });
  for (int64_t part = 0; part < parts.count; part++) total += sums[part];
  return most + std::log(total);
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
    const Scratch scratch(workspace + static_cast<size_t>(task) * Scratch::bytes(vocab), vocab);
    const Parts parts(vocab);
    for (int64_t s = task; s < samples; s += Tasks) {
      const int32_t* line = limit + 5 * s;
      const int32_t from = inSlots(line[3]), to = inSlots(line[4]);
      const float* row = values + s * vocab;
      const uint64_t seed = uint64_t{static_cast<uint32_t>(line[2])} << 32 | static_cast<uint32_t>(line[1]);
      const Request request{row, from ? rows + from * vocab : nullptr, readSettings(set + 6 * s), line[0], seed, positions[s]};
      const Top top = topOf(request, nullptr, nullptr, parts);
      const int64_t id = choose(request, top, scratch, parts);
      if (chosen) chosen[s] = static_cast<int32_t>(id);
      if (scores) scores[s] = id < 0 ? std::numeric_limits<float>::quiet_NaN()
                                     : static_cast<float>(row[id] - logSumExp(row, top.most, parts));
      if (to == 0) continue;
      carry(rows, vocab, from, to);
      int32_t* seen = rows + to * vocab;
      if (id >= 0 && (seen[id] & CountMask) < CountMask) seen[id]++;
    }
  });
}

size_t sampleBytes(const Call& call) {
  return static_cast<size_t>(std::min(Tasks, call.inputs[0][0])) * Scratch::bytes(call.inputs[0][1]);
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
