// Gated linear attention, backward. See lib/ops/linear-attention.ts for the equations.
//
// A task is a segment × a head. It walks the saved states from the last to the first, and of each the chunks that follow it, five at
// most. For a chunk with S before it and dS after it, decays already in its forms (q̄ = scale·q·a…, k̄ = k·a…, weights w):
//
//   dq̄[i] = dy[i]·Sᵀ      dk̄[j] = v[j]·dSᵀ      dv[j] = k̄[j]·dS + Σ_{i ≥ j} w[i, j]·dy[i]      dw[i, j] = dy[i]·v[j]
//   dS ← diag(a…)·dS + Σ_i q̄[i]ᵀ·dy[i]
//
// block by block of 64 columns of values, which add up dq̄, dk̄ and dw; S is computed again from the saved one. Then q, k and g get
// what is theirs, key by key. With D[i, j] = a[j+1]·…·a[i], every term that holds a[t] gives its product with its gradient to dg[t]:
//
//   S to y:  q̄[i]·dq̄[i] for i ≥ t      k to y:  scale·q[i]·k[j]·D[i, j]·dw[i, j] for j < t ≤ i
//   k to S:  k̄[j]·dk̄[j] for j < t      S to S:  Σ_value a…·S∘dS
//
// States lie as [value][key] here: four of the five products then run along keys, and sums over values need no lanes to be added.
// 512 rows of four heads of 192 × 384 take four times as long as forward, on one core (2026-11-22, beside other work).
#include "cpu/linear_attention.h"
#include "cpu/threads.h"

#define EACH_ISA "cpu/linear_attention_grad.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/linear_attention_tile.h"

namespace selscan::ISA {
namespace {

constexpr int Chunk = cpu::ChunkRows;
constexpr int64_t Block = cpu::ValueBlock;

struct AttentionGrad {
  const cpu::LinearGradPlan& plan;
  const float *dy, *dfinal, *q, *k, *v, *g, *saved;  // null: absent
  float *dq, *dk, *dv, *dg, *dinitial;               // null: nobody reads it
  float scale;
  bool retention;
};

// A chunk of one head while its saved state is walked; lines of keys.
struct ChunkTile {
  float *queries, *keys, *factors, *dQueries, *dKeys;  // [row]
  float *decay, *dDecay;
  float *weights, *dWeights;  // [row][row]
  int64_t row;                // of the run
  int rows;

  ChunkTile(float* at, int64_t line, int64_t row, int rows) : row(row), rows(rows) {
    const auto take = [&](int64_t size) { return std::exchange(at, at + size); };
    for (float** lines : {&queries, &keys, &factors, &dQueries, &dKeys}) *lines = take(Chunk * line);
    for (float** one : {&decay, &dDecay}) *one = take(line);
    for (float** square : {&weights, &dWeights}) *square = take(Chunk * Chunk);
  }
};

// One segment and head.
struct Walk {
  const AttentionGrad& a;
  const Segment segment;
  int64_t s, head;
  float *carry, *states, *chunks;  // carry: dS, (value, line)

  int64_t line() const { return a.plan.line; }
  int64_t key() const { return head * a.plan.key; }
  int64_t value() const { return head * a.plan.value; }
  float* state(int64_t chunk) const { return states + chunk * Block * line(); }
  ChunkInput input(int64_t row, int rows) const {
    const int64_t at = row * a.plan.keys + key();
    return {.q = a.q + at, .k = a.k + at, .g = a.g ? a.g + at : nullptr, .keys = a.plan.keys, .tailK = nullptr, .tailG = nullptr,
            .columns = 0, .first = 0, .last = rows, .key = static_cast<int>(a.plan.key),
            .decay = a.retention ? ops::retentionDecay(head) : 1.0f, .scale = a.scale};
  }
};

// Between (key, value) in memory and (value, line) here.
void toLines(const float* from, int64_t key, int64_t fromRow, int64_t width, int64_t line, float* to) {
  for (int64_t d = 0; d < width; d++)
    for (int64_t n = 0; n < line; n++) to[d * line + n] = n < key ? from[n * fromRow + d] : 0.0f;
}

// dv[j][d] = Σ_key k̄[j]·dS[d], then what reaches later rows of the chunk through their weights.
template <int R>
void valueRows(const Walk& w, const ChunkTile& chunk, int j, int64_t first, int width, const float* dS) {
  const int64_t line = w.line(), values = w.a.plan.values, at = (chunk.row + j) * values + w.value() + first;
  const float* keys = chunk.keys + j * line;
  for (int d = 0; d < width; d++) {
    F32 sums[R];
    for (int r = 0; r < R; r++) sums[r] = set(0.0f);
    for (int64_t c = 0; c < line; c += Lanes) {
      const F32 gradient = load(dS + d * line + c);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) sums[r] = fma(load(keys + r * line + c), gradient, sums[r]);
    }
    for (int r = 0; r < R; r++) w.a.dv[at + r * values + d] = sum(sums[r]);
  }
  if (w.a.dy == nullptr) return;
  for (int r = 0; r < R; r++) {
    const int row = j + r;
    float* to = w.a.dv + at + r * values;
    const float* dy = w.a.dy + (chunk.row + row) * values + w.value() + first;
    product(1, width, chunk.rows - row, {chunk.weights + row * Chunk + row, 0, Chunk}, dy, values, {to, 0},
            [&](int, int64_t c, int n) { return load(to + c, n); });
  }
}

// A chunk's products with the columns [first, first + width) of values; dS is theirs, after the chunk and then before it.
void gradColumns(const Walk& w, const ChunkTile& chunk, int64_t first, int width, const float* S, float* dS) {
  const AttentionGrad& a = w.a;
  const int64_t line = w.line(), values = a.plan.values, at = chunk.row * values + w.value() + first;
  const float *v = a.v + at, *dy = a.dy ? a.dy + at : nullptr;
  const auto from = [line](const float* lines) { return [=](int r, int64_t c, int) { return load(lines + r * line + c); }; };
  if (a.dv) {
    int j = 0;
    for (; j + 4 <= chunk.rows; j += 4) valueRows<4>(w, chunk, j, first, width, dS);
    for (; j < chunk.rows; j++) valueRows<1>(w, chunk, j, first, width, dS);
  }
  product(chunk.rows, line, width, {v, values, 1}, dS, line, {chunk.dKeys, line}, from(chunk.dKeys));
  for (int64_t c = 0; c < line; c += Lanes) {
    F32 sum = load(chunk.dDecay + c);
    for (int d = 0; d < width; d++) sum = fma(load(S + d * line + c), load(dS + d * line + c), sum);
    store(chunk.dDecay + c, sum);
  }
  const F32 none = set(0.0f);
  if (dy) {
    product(chunk.rows, line, width, {dy, values, 1}, S, line, {chunk.dQueries, line}, from(chunk.dQueries));
    for (int i = 0; i < chunk.rows; i++)
      for (int j = 0; j <= i; j++) {
        F32 dot = none;
        for (int c = 0; c < width; c += Lanes) {
          const int n = std::min(Lanes, width - c);
          dot = fma(load(dy + i * values + c, n), load(v + j * values + c, n), dot);
        }
        chunk.dWeights[i * Chunk + j] += sum(dot);
      }
  }
  product(width, line, dy ? chunk.rows : 0, {dy ? dy : v, 1, values}, chunk.queries, line, {dS, line},
          [&](int r, int64_t c, int) { return load(dS + r * line + c) * load(chunk.decay + c); });
}

// dq, dk and dg of a chunk for the keys [c, c + Lanes).
void finishKeys(const Walk& w, const ChunkTile& chunk, int64_t c) {
  const AttentionGrad& a = w.a;
  const int64_t line = w.line(), at = chunk.row * a.plan.keys + w.key() + c;
  const int rows = chunk.rows, n = static_cast<int>(std::min<int64_t>(Lanes, a.plan.key - c));
  const F32 zero = set(0.0f), scale = set(a.scale);
  F32 q[Chunk], k[Chunk], factor[Chunk], decayed[Chunk], through[Chunk];  // through: of a[t], from rows on both sides of it
  F32 decay = set(1.0f), fromState[Chunk];                                // q̄·dq̄
  const auto put = [&](float* to, int row, F32 x) {
    if (to) store(to + at + row * a.plan.keys, x, n);
  };
  for (int i = 0; i < rows; i++) {
    q[i] = load(a.q + at + i * a.plan.keys, n) * scale;
    k[i] = load(a.k + at + i * a.plan.keys, n);
    factor[i] = load(chunk.factors + i * line + c);
    through[i] = zero;
  }
  // Forward through the rows: k of those before decays on its way to row i.
  for (int i = 0; i < rows; i++) {
    const float* dWeights = chunk.dWeights + i * Chunk;
    decay = decay * factor[i];
    const F32 state = decay * load(chunk.dQueries + i * line + c);
    F32 sum = zero;
    for (int j = 0; j < i; j++) {
      decayed[j] = decayed[j] * factor[i];
      sum = fma(set(dWeights[j]), decayed[j], sum);
      through[j + 1] = fma(q[i], sum, through[j + 1]);
    }
    decayed[i] = k[i];
    sum = fma(set(dWeights[i]), k[i], sum);
    fromState[i] = q[i] * state;
    put(a.dq, i, scale * (state + sum));
  }
  // Back through them: q of those after decays on its way to row j.
  F32 beyond = set(1.0f), after = zero, toState[Chunk];  // toState: k̄·dk̄
  for (int j = rows - 1; j >= 0; j--) {
    F32 sum = set(chunk.dWeights[j * Chunk + j]) * q[j];
    for (int i = j + 1; i < rows; i++) {
      decayed[i] = decayed[i] * factor[j + 1];
      sum = fma(set(chunk.dWeights[i * Chunk + j]), decayed[i], sum);
    }
    decayed[j] = q[j];
    const F32 state = beyond * load(chunk.dKeys + j * line + c);
    toState[j] = k[j] * state;
    put(a.dk, j, state + sum);
    beyond = beyond * factor[j];
    after = after + fromState[j];
    through[j] = through[j] + after;
  }
  F32 before = load(chunk.decay + c) * load(chunk.dDecay + c);
  for (int t = 0; t < rows; t++) {
    put(a.dg, t, through[t] + before);
    before = before + toState[t];
  }
}

// The chunks that follow saved state `save`, from the last to the first.
void gradSave(const Walk& w, const ops::Chunks& chunks, int64_t save) {
  const AttentionGrad& a = w.a;
  const cpu::LinearGradPlan& plan = a.plan;
  const int64_t begin = chunks.firstOf(save), count = std::min(chunks.count(), chunks.firstOf(save + 1)) - begin, line = plan.line;
  const auto tile = [&](int64_t i) {
    const int rows = chunks.last(begin + i) - chunks.first(begin + i);
    return ChunkTile(w.chunks + i * plan.chunkSize(), line, w.segment.begin + chunks.row(begin + i), rows);
  };
  for (int64_t i = 0; i < count; i++) {
    const ChunkTile chunk = tile(i);
    prepareChunk(w.input(chunk.row, chunk.rows), {.queries = chunk.queries, .queryRow = line, .weights = chunk.weights, .weightRow = Chunk,
                                                  .keys = chunk.keys, .decay = chunk.decay, .factors = chunk.factors, .line = line});
    std::memset(chunk.dQueries, 0, sizeof(float) * static_cast<size_t>(Chunk * line));
    std::memset(chunk.dKeys, 0, sizeof(float) * static_cast<size_t>(Chunk * line));
    std::memset(chunk.dDecay, 0, sizeof(float) * static_cast<size_t>(line));
    std::memset(chunk.dWeights, 0, sizeof(float) * Chunk * Chunk);
  }
  const float* saved = a.saved + (ops::savedState(w.segment.begin, w.s) + save) * plan.state() + w.head * plan.key * plan.value;
  for (int64_t block = 0; block < plan.blocks; block++) {
    const int64_t first = block * Block;
    const int width = plan.width(block);
    toLines(saved + first, plan.key, plan.value, width, line, w.state(0));
    for (int64_t i = 0; i + 1 < count; i++) {
      const ChunkTile chunk = tile(i);
      const float* S = w.state(i);
      product(width, line, chunk.rows, {a.v + chunk.row * plan.values + w.value() + first, 1, plan.values}, chunk.keys, line,
              {w.state(i + 1), line}, [&](int r, int64_t c, int) { return load(S + r * line + c) * load(chunk.decay + c); });
    }
    for (int64_t i = count - 1; i >= 0; i--) gradColumns(w, tile(i), first, width, w.state(i), w.carry + first * line);
  }
  for (int64_t i = 0; i < count; i++)
    for (int64_t c = 0; c < plan.key; c += Lanes) finishKeys(w, tile(i), c);
}

void gradSegment(const Walk& w) {
  const cpu::LinearGradPlan& plan = w.a.plan;
  const ops::Chunks chunks(w.segment.begin, w.segment.end, w.segment.position);
  const int64_t part = w.s * plan.state() + w.head * plan.key * plan.value;
  if (w.a.dfinal) toLines(w.a.dfinal + part, plan.key, plan.value, plan.value, plan.line, w.carry);
  else std::memset(w.carry, 0, sizeof(float) * static_cast<size_t>(plan.value * plan.line));
  for (int64_t save = chunks.save(chunks.count() - 1); save >= 0; save--) gradSave(w, chunks, save);
  if (w.a.dinitial == nullptr) return;
  for (int64_t n = 0; n < plan.key; n++)
    for (int64_t d = 0; d < plan.value; d++) w.a.dinitial[part + n * plan.value + d] = w.carry[d * plan.line + n];
}

}  // namespace

void linearAttentionGrad(const Call& call) {
  const auto [dy, dfinal, q, k, v, g, segments, saved] = call.in<8>();
  const auto [dq, dk, dv, dg, dinitial] = call.out<5>();
  const cpu::LinearGradPlan plan(call);
  const AttentionGrad a{plan, dy.f32(), dfinal.f32(), q.f32(), k.f32(), v.f32(), g.f32(), saved.f32(), dq.f32(), dk.f32(), dv.f32(),
                        dg.f32(), dinitial.f32(), static_cast<float>(call.attributes.number("scale")), call.attributes.flag("retention")};
  auto* workspace = reinterpret_cast<float*>(call.workspace);
  cpu::parallel(plan.workers(), [&](int64_t worker) {
    float* tile = workspace + worker * plan.tileSize();
    for (int64_t task = worker; task < plan.tasks(); task += plan.workers()) {
      const int64_t s = task / plan.heads, head = task % plan.heads;
      const Walk walk{a, segmentAt(segments.i32(), s), s, head, tile, tile + plan.carrySize(), tile + plan.carrySize() + plan.statesSize()};
      if (walk.segment.begin < walk.segment.end) gradSegment(walk);
      else if (a.dinitial)
        std::memset(a.dinitial + (s * plan.heads + head) * plan.key * plan.value, 0,
                    sizeof(float) * static_cast<size_t>(plan.key * plan.value));
    }
  });
  for (float* perKey : {a.dq, a.dk, a.dg}) cpu::zeroSpareRows(segments, plan.rows, plan.keys, perKey);
  cpu::zeroSpareRows(segments, plan.rows, plan.values, a.dv);
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

KERNEL(linearAttentionGrad, cpu, "dy? dfinal? q k v g? segments saved -> dq dk dv dg dinitial; heads scale retention",
       .run = DISPATCH(linearAttentionGrad), .limit = ops::linearAttentionGradLimit,
       .workspaceBytes = [](const Call& call) { return LinearGradPlan(call).sizeBytes(); }, .checkInputs = ops::checkLinearAttentionGrad)

}  // namespace selscan::cpu
#endif
