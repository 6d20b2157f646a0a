// Choosing the next token, and remembering the tokens of prompts. See lib/ops/sample.ts for every definition.
//
// A block takes a sample. Its warps have neighbouring parts of the vocabulary, so that sums in token order are sums of warps
// in their order; nothing is stored: each pass over the logits (which stay in the L2 cache) makes the weights anew, with the
// same bits. No sort: the k-th largest logit and the lightest weight of the nucleus are found four bits of their pattern at a
// time, from sums over the 16 values of the next bits (select below); the token that the drawn number falls on by halving the
// vocabulary as many times as there are warps (find).
// Bound by one multiprocessor's reads of the L2 cache: a pass over 50,000 logits is 200 KB or about 2 µs there [model]; greedy
// needs 2 passes, drawing 4, top-k and top-p up to 8 more each. Not measured on a GPU yet.
#include <limits>

#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "cuda/philox.cuh"
#include "ops/sample.h"

namespace selscan::cuda {
namespace {

using ops::CountMask;
using ops::InPrompt;

constexpr int ThreadsMax = 512, Digits = 16, DigitBits = 4;
constexpr int64_t VocabMax = int64_t{1} << 30;  // ids and their steps are 32 bits wide
constexpr float Infinity = std::numeric_limits<float>::infinity(), Largest = std::numeric_limits<float>::max();

struct Shared {
  double sums[WarpMax], digits[Digits];
  uint64_t keys[WarpMax];
  // (Digits, threads): a column for each thread, so that no two meet and sums have an order.
  __device__ double* bins() { return reinterpret_cast<double*>(this + 1); }
};

struct Settings {
  float temperature, topP, minP, repetition, frequency, presence;
};

__device__ __forceinline__ float orElse(float value, float low, float high, float otherwise) {
  return value >= low && value <= high ? value : otherwise;
}
// Values out of their ranges (lib/ops/sample.ts refuses them earlier) mean that the setting does nothing.
__device__ __forceinline__ Settings readSettings(const float* s) {
  return {orElse(s[0], 0, 1e30f, 1),    orElse(s[1], 0, 1, 1),        orElse(s[2], 0, 1, 0),
          orElse(s[3], 1e-6f, 1e6f, 1), orElse(s[4], -1e6f, 1e6f, 0), orElse(s[5], -1e6f, 1e6f, 0)};
}

// Bits that order like the numbers, −0 like 0; and back.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float numberOf(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// The logits of a sample and what penalties make of them, its scores.
struct Row {
  const float* logits;
  const int32_t* seen;  // null: none
  int vocab;
  Settings settings;

  // No contraction: every pass must make the same bits.
  __device__ __forceinline__ float penalised(float logit, int32_t mark) const {
    if (mark == 0) return logit;
    const int32_t count = mark & CountMask;
    float score = logit > 0 ? logit / settings.repetition : __fmul_rn(logit, settings.repetition);
    const float counted = __fmul_rn(settings.frequency, static_cast<float>(count));
    if (count > 0) score = __fsub_rn(score, __fadd_rn(counted, settings.presence));
    return score <= Largest ? score : Largest;
  }
};

// How many tokens each warp has of a range: vectors for all lanes, and all warps cover it.
template <int N>
__device__ __forceinline__ int partOf(int length) {
  const int warps = static_cast<int>(blockDim.x / 32), step = 32 * N;
  return ((length + warps - 1) / warps + step - 1) / step * step;
}

// body(id, logit, score) for this thread's tokens of the range. N is 4 where that divides the vocabulary, else 1.
template <int N, class Body>
__device__ __forceinline__ void visit(const Row& row, int begin, int end, Body body) {
  constexpr int InFlight = 4, Step = 32 * N;
  const int part = partOf<N>(end - begin), first = begin + warpIndex() * part, last = min(end, first + part);
  for (int at = first + laneIndex() * N; at < last; at += InFlight * Step) {
    float logits[InFlight][N];
    Vec<int32_t, N> marks[InFlight] = {};
#pragma unroll
    for (int i = 0; i < InFlight; i++)
      if (at + i * Step < last) loadVec<N>(row.logits + at + i * Step, logits[i]);
    if (row.seen) {
#pragma unroll
      for (int i = 0; i < InFlight; i++)
        if (at + i * Step < last) marks[i] = *reinterpret_cast<const Vec<int32_t, N>*>(row.seen + at + i * Step);
    }
#pragma unroll
    for (int i = 0; i < InFlight; i++) {
      if (at + i * Step >= last) continue;
#pragma unroll
      for (int k = 0; k < N; k++) body(at + i * Step + k, logits[i][k], row.penalised(logits[i][k], marks[i].at[k]));
    }
  }
}

// What a score weighs: 0 for what top-k, top-p and min-p took out.
struct Weights {
  float most, inverse;
  uint32_t least = 0;    // of the scores that top-k left, as ordered bits
  float lightest = 0;    // of the nucleus
  int lastOfLightest = 0;  // and the last token of that weight that is in it
  float minimum = 0;

  __device__ __forceinline__ float of(int id, float score) const {
    if (ordered(score) < least) return 0;
    const float weight = expf(__fmul_rn(score - most, inverse));
    const bool inside = weight > lightest || (weight == lightest && id <= lastOfLightest);
    return inside && weight >= minimum ? weight : 0;
  }
};

struct Selected {
  uint32_t key;
  double above;  // Σ measure of greater keys
};
// The greatest key at which the measures of all keys ≥ it reach `target`; the least key of any measure where none does.
// body(id, score, add) calls add(key, measure), measure ≥ 0. Once the keys that begin with the digits found make up the target
// exactly, the digits below stay 0: no other keys are ≥.
template <int N, class Body>
__device__ __forceinline__ Selected select(const Row& row, Shared* shared, double target, Body body) {
  const int threads = static_cast<int>(blockDim.x);
  double* own = shared->bins() + threadIdx.x;
  Selected selected{0, 0};
  double reached = -1;
  for (int shift = 32 - DigitBits; shift >= 0 && reached != target; shift -= DigitBits) {
    for (int digit = 0; digit < Digits; digit++) own[digit * threads] = 0;
    visit<N>(row, 0, row.vocab, [&](int id, float, float score) {
      body(id, score, [&](uint32_t key, double measure) {
        const uint32_t digits = (key ^ selected.key) >> shift;  // those before this one agree where only the lowest bits are left
        if (digits < Digits) own[static_cast<int>(digits) * threads] += measure;
      });
    });
    __syncthreads();
    for (int digit = warpIndex(); digit < Digits; digit += threads / 32) {
      double sum = 0;
      for (int i = laneIndex(); i < threads; i += 32) sum += shared->bins()[digit * threads + i];
      sum = overWarp(Sum{}, sum);
      if (laneIndex() == 0) shared->digits[digit] = sum;
    }
    __syncthreads();
    uint32_t chosen = 0;
    reached = selected.above;
    for (int digit = Digits - 1; digit >= 0; digit--) {
      if (shared->digits[digit] <= 0) continue;
      chosen = static_cast<uint32_t>(digit);
      selected.above = reached;
      reached += shared->digits[digit];
      if (reached >= target) break;
    }
    selected.key |= chosen << shift;
  }
  return selected;
}

// The end of find: of a range with one vector for each lane, the first token at which the sum, `before` at its begin, passes the
// target; the last of any measure where none does. All warps do the same.
template <int N, class Measure>
__device__ __forceinline__ int findInWarp(const Row& row, int begin, int end, double before, double target, Measure measure) {
  const int at = begin + laneIndex() * N;
  double measures[N] = {}, sum = 0;
  if (at < end) {
    float logits[N];
    loadVec<N>(row.logits + at, logits);
#pragma unroll
    for (int k = 0; k < N; k++) {
      measures[k] = measure(at + k, row.penalised(logits[k], row.seen ? row.seen[at + k] : 0));
      sum += measures[k];
    }
  }
  double passed = sum;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const double left = __shfl_up_sync(~0u, passed, static_cast<unsigned>(distance));
    if (laneIndex() >= distance) passed += left;
  }
  passed += before - sum;
  int first = -1, last = -1;
#pragma unroll
  for (int k = 0; k < N; k++) {
    if (measures[k] <= 0) continue;
    passed += measures[k];
    last = at + k;
    if (first < 0 && passed > target) first = at + k;
  }
  const unsigned passing = __ballot_sync(~0u, first >= 0), holding = __ballot_sync(~0u, last >= 0);
  if (passing != 0) return __shfl_sync(~0u, first, __ffs(static_cast<int>(passing)) - 1);
  return __shfl_sync(~0u, last, 31 - __clz(static_cast<int>(holding)));
}

// The first token, in the order of ids, at which the sum of the measures passes share·(their total) + offset; the last one of
// any measure where rounding lets none pass; −1 where nothing has any. measure(id, score) ≥ 0.
template <int N, class Measure>
__device__ __forceinline__ int find(const Row& row, Shared* shared, double share, double offset, Measure measure) {
  constexpr int Smallest = 32 * N;
  const int warps = static_cast<int>(blockDim.x / 32);
  int begin = 0, end = row.vocab;
  double before = 0, target = 0;
  for (int part = end, level = 0; part > Smallest || level == 0; level++) {
    double own = 0;
    visit<N>(row, begin, end, [&](int id, float, float score) { own += measure(id, score); });
    own = overWarp(Sum{}, own);
    if (laneIndex() == 0) shared->sums[warpIndex()] = own;
    __syncthreads();
    if (level == 0) {
      double total = 0;
      for (int warp = 0; warp < warps; warp++) total += shared->sums[warp];
      target = share * total + offset;
    }
    int chosen = -1;
    double reached = before;
    for (int warp = 0; warp < warps; warp++) {
      if (shared->sums[warp] <= 0) continue;
      chosen = warp;
      before = reached;
      reached += shared->sums[warp];
      if (reached > target) break;
    }
    __syncthreads();  // the sums have been read
    if (chosen < 0) return -1;  // at the first level alone, and for all threads
    part = partOf<N>(end - begin);
    begin += chosen * part;
    end = min(end, begin + part);
  }
  return findInWarp<N>(row, begin, end, before, target, measure);
}

// Of a sample: the greatest logit, −∞ where no token can be chosen (a logit is NaN or +∞, or all are −∞), and the token of the
// greatest score, the first of equals; −1 where there is none.
struct Greatest {
  float logit, score;
  int id;
};
template <int N>
__device__ __forceinline__ Greatest greatest(const Row& row, Shared* shared) {
  bool broken = false;
  uint64_t logits = 0, scores = 0;
  visit<N>(row, 0, row.vocab, [&](int id, float logit, float score) {
    broken |= !(logit <= Largest);
    logits = max(logits, uint64_t{ordered(logit)});
    scores = max(scores, uint64_t{ordered(score)} << 32 | ~static_cast<uint32_t>(id));
  });
  const bool unusable = __syncthreads_or(broken) != 0;
  logits = overBlock(Maximum{}, logits, uint64_t{0}, shared->keys);
  scores = overBlock(Maximum{}, scores, uint64_t{0}, shared->keys);
  const float logit = numberOf(static_cast<uint32_t>(logits)), score = numberOf(static_cast<uint32_t>(scores >> 32));
  const bool none = unusable || logit == -Infinity || score == -Infinity;
  return {logit, score, none ? -1 : static_cast<int>(~static_cast<uint32_t>(scores))};
}

// Steps 3 to 7 of lib/ops/sample.ts.
template <int N>
__device__ __forceinline__ int choose(const Row& row, Shared* shared, const Greatest& top, int topK, double u) {
  const Settings& settings = row.settings;
  if (top.id < 0 || settings.temperature == 0) return top.id;
  Weights weights{top.score, static_cast<float>(min(1.0 / static_cast<double>(settings.temperature), 1e30))};
  // On scores, not weights: a high temperature rounds different scores to one weight.
  if (topK > 0 && topK < row.vocab)
    weights.least = select<N>(row, shared, topK, [](int, float score, auto add) { add(ordered(score), 1.0); }).key;
  if (settings.topP < 1) {
    double total = 0;
    visit<N>(row, 0, row.vocab, [&](int id, float, float score) { total += weights.of(id, score); });
    total = overBlock(Sum{}, total, 0.0, shared->sums);
    const double target = static_cast<double>(settings.topP) * total;
    const auto add = [&](int id, float score, auto add) {
      const float weight = weights.of(id, score);
      add(__float_as_uint(weight), static_cast<double>(weight));
    };
    const Selected nucleus = select<N>(row, shared, target, add);
    const float lightest = __uint_as_float(nucleus.key);
    const double needed = max(1.0, ceil((target - nucleus.above) / static_cast<double>(lightest)));
    const auto tie = [&](int id, float score) { return weights.of(id, score) == lightest ? 1.0 : 0.0; };
    weights.lastOfLightest = find<N>(row, shared, 0, needed - 1, tie);
    weights.lightest = lightest;
  }
  weights.minimum = settings.minP;  // the most probable token weighs 1
  return find<N>(row, shared, u, 0, [&](int id, float score) { return static_cast<double>(weights.of(id, score)); });
}

// Row `to` of the history becomes row `from`, zeros where `from` is 0, and counts the token.
template <int N>
__device__ __forceinline__ void remember(int32_t* history, int vocab, int from, int to, int id) {
  const auto counted = [](int32_t mark) { return (mark & CountMask) < CountMask ? mark + 1 : mark; };
  int32_t* target = history + int64_t{to} * vocab;
  if (from == to) {
    if (threadIdx.x == 0 && id >= 0) target[id] = counted(target[id]);
    return;
  }
  for (int at = static_cast<int>(threadIdx.x) * N; at < vocab; at += static_cast<int>(blockDim.x) * N) {
    Vec<int32_t, N> marks{};
    if (from > 0) marks = *reinterpret_cast<const Vec<int32_t, N>*>(history + int64_t{from} * vocab + at);
#pragma unroll
    for (int k = 0; k < N; k++)
      if (at + k == id) marks.at[k] = counted(marks.at[k]);
    *reinterpret_cast<Vec<int32_t, N>*>(target + at) = marks;
  }
}

struct Batch {
  const float *logits, *settings;
  const int32_t *limits, *position;
  int32_t* history;  // null: none
  int vocab;
  int64_t slots;
  int32_t* ids;     // null: nobody reads them
  float* logprobs;  // and so here
};

// registers: 128
template <int N>
__global__ __launch_bounds__(ThreadsMax, 1) void sampleRows(Batch batch) {
  SHARED(Shared, shared);
  const int64_t s = blockIdx.x;
  const int32_t* limits = batch.limits + 5 * s;
  const auto inSlots = [&](int32_t slot) { return slot > 0 && slot < batch.slots ? slot : 0; };
  const int from = inSlots(limits[3]), to = inSlots(limits[4]);
  const Row row{batch.logits + s * batch.vocab, from ? batch.history + int64_t{from} * batch.vocab : nullptr, batch.vocab,
                readSettings(batch.settings + 6 * s)};
  const uint64_t seed = uint64_t{static_cast<uint32_t>(limits[2])} << 32 | static_cast<uint32_t>(limits[1]);
  const Greatest top = greatest<N>(row, shared);
  const int id = choose<N>(row, shared, top, limits[0], uniformAt(seed, static_cast<uint64_t>(batch.position[s])));
  if (batch.ids && threadIdx.x == 0) batch.ids[s] = id;
  if (batch.logprobs) {
    double sum = 0;
    Row raw = row;
    raw.seen = nullptr;  // not read for this
    if (id >= 0) visit<N>(raw, 0, row.vocab, [&](int, float logit, float) { sum += expf(logit - top.logit); });
    sum = overBlock(Sum{}, sum, 0.0, shared->sums);
    const double logSum = static_cast<double>(top.logit) + log(sum), nan = __int_as_float(0x7fc00000);
    if (threadIdx.x == 0) batch.logprobs[s] = static_cast<float>(id < 0 ? nan : static_cast<double>(row.logits[id]) - logSum);
  }
  __syncthreads();  // redundant: except where nobody reads log-probabilities; all have read the history
  if (to > 0) remember<N>(batch.history, batch.vocab, from, to, id);
}

void sample(const Call& call) {
  const auto [logits, settings, limits, position, history] = call.in<5>();
  const auto [ids, logprobs] = call.out<2>();
  const int vocab = static_cast<int>(logits[1]);
  const Batch batch{logits.f32(),  settings.f32(), limits.i32(), position.i32(), history.i32(), vocab, history ? history[0] : 0,
                    ids.i32(), logprobs.f32()};
  // Few threads for few tokens: barriers cost as much as the work between them.
  const unsigned threads = vocab <= 1024 ? 128 : vocab <= 16384 ? 256 : ThreadsMax;
  const Grid grid{static_cast<unsigned>(logits[0]), threads, sizeof(Shared) + Digits * threads * sizeof(double)};
  if (vocab % 4 == 0) launch(deviceOf(call), grid, sampleRows<4>, batch);
  else launch(deviceOf(call), grid, sampleRows<1>, batch);
}

std::string sampleLimit(const Call& call) {
  const std::string wrong = ops::sampleLimit(call);
  if (!wrong.empty() || call.inputs[0][1] <= VocabMax) return wrong;
  return "vocab is at most " + std::to_string(VocabMax) + ", got " + std::to_string(call.inputs[0][1]);
}

// Block s has segment s. One warp marks its tokens: of equal ones in 32 the first writes, and no two writes meet.
// registers: 32
__global__ __launch_bounds__(256) void recordSegment(const int32_t* tokens, const int32_t* segments, int32_t* history,
                                                     int64_t vocab) {
  const int32_t* line = segments + 5 * int64_t{blockIdx.x};
  const int64_t begin = line[0], end = line[1], from = line[3], to = line[4];
  if (begin < end && to > 0) {
    int32_t* target = history + to * vocab;
    // What an earlier generation added is context now: its counts become the mark of the prompt.
    for (int64_t id = threadIdx.x; id < vocab; id += blockDim.x)
      target[id] = from > 0 && history[from * vocab + id] != 0 ? InPrompt : 0;
    __syncthreads();
    for (int64_t first = begin; warpIndex() == 0 && first < end; first += 32) {
      const int token = first + laneIndex() < end ? tokens[first + laneIndex()] : -1;
      bool repeated = false;
#pragma unroll
      for (int distance = 1; distance < 32; distance++)
        repeated |= __shfl_up_sync(~0u, token, static_cast<unsigned>(distance)) == token && laneIndex() >= distance;
      if (token >= 0 && !repeated) target[token] = InPrompt;
      __syncwarp();
    }
  }
}
void recordTokens(const Call& call) {
  const auto [ids, segments, history] = call.in<3>();
  const Grid grid{static_cast<unsigned>(segments[0]), 256};
  launch(deviceOf(call), grid, recordSegment, ids.i32(), segments.i32(), history.i32(), history[1]);
}

KERNEL(sample, cuda, "logits settings limits position history?* -> ids logprobs", .run = sample, .limit = sampleLimit,
       .checkInputs = ops::checkSample)
KERNEL(recordTokens, cuda, "ids segments history* ->", .run = recordTokens, .limit = ops::recordLimit,
       .checkInputs = ops::checkRecord)

}  // namespace
}  // namespace selscan::cuda
