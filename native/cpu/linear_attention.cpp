// Gated linear attention, forward. See lib/ops/linear-attention.ts for the equations.
//
// Two sweeps. The first takes the rows of every chunk and head by themselves: decayed queries and keys, and the weights that rows of
// a chunk have for each other. The second is the recurrence: a task is a segment × a head × 64 columns of values, whose part of S lies
// packed in its tile; chunk by chunk the rows' y, products of 16 × keys with keys × 64 and of 16 × 16 with 16 × 64, then S, one of
// keys × 16 with 16 × 64. Sums go key by key and row by row in rising order, whichever rows of a chunk are in the run.
//
// A few rows inside one chunk (decoding) read S where it lies, and write none where it stays in its slot: bound by reading S, keys ×
// values × 4 bytes per head. Long runs are bound by multiply-adds, 2·keys·values per row and head, and 16·keys of the first sweep.
//
// Four heads of 192 × 384, AMD EPYC (Zen 5), AVX-512, one core, 2026-11-22, beside other work: a row that stays in its slot takes 45 µs
// (26 GB/s of S, of 40 slots in turn), one that goes to another 120, for S is copied; 512 rows reach 58 GFLOP/s.
#include "cpu/linear_attention.h"
#include "cpu/threads.h"

#define EACH_ISA "cpu/linear_attention.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/linear_attention_tile.h"

namespace selscan::ISA {
namespace {

constexpr int64_t Block = cpu::ValueBlock;
constexpr int64_t Parts = 8;  // of a segment's chunks in the first sweep

struct Attention {
  const cpu::LinearPlan& plan;
  const float *q, *k, *v, *g, *initial;  // null: absent
  float *carried, *tail;
  float *y, *final, *saved;  // null: nobody reads it
  float* workspace;
  int64_t columns;  // of tail
  float scale;
  bool retention;

  float decay(int64_t head) const { return retention ? ops::retentionDecay(head) : 1.0f; }
  const float* stateBefore(const Segment& segment, int64_t s) const {
    if (initial) return initial + s * plan.state();
    return carried && segment.from > 0 ? carried + segment.from * plan.state() : nullptr;
  }
  // The tail's line at place `at` of a chunk; only where hasTail.
  bool hasTail(const Segment& segment) const { return tail && segment.from > 0; }
  cpu::TailLine line(int64_t slot, int64_t at) const { return {tail, columns, slot, at, plan.keys, plan.values}; }
};

void prepare(const Attention& a, const Segment& segment, int64_t s, int64_t head, int64_t chunk) {
  alignas(64) float factors[cpu::ChunkRows * cpu::KeyMax], scratch[(cpu::ChunkRows + 1) * cpu::KeyMax];
  const cpu::LinearPlan& plan = a.plan;
  const ops::Chunks chunks(segment.begin, segment.end, segment.position);
  const int64_t row = segment.begin + chunks.row(chunk), at = row * plan.keys + head * plan.key;
  ChunkInput in{.q = a.q + at, .k = a.k + at, .g = a.g ? a.g + at : nullptr, .keys = plan.keys, .tailK = nullptr, .tailG = nullptr,
                .columns = a.columns, .first = chunks.first(chunk), .last = chunks.last(chunk), .key = static_cast<int>(plan.key),
                .decay = a.decay(head), .scale = a.scale};
  if (in.first > 0 && a.hasTail(segment)) {
    const cpu::TailLine line = a.line(segment.from, 0);
    in.tailK = line.k + head * plan.key;
    in.tailG = line.g ? line.g + head * plan.key : nullptr;
  }
  const bool moves = chunk < chunks.ended() || a.final;
  const int64_t move = moves ? plan.move(chunks, segment.begin, s, chunk) : 0;
  prepareChunk(in, {.queries = a.workspace + plan.query(row, head), .queryRow = plan.heads * plan.line,
                    .weights = a.workspace + plan.weights(row, head), .weightRow = plan.heads * cpu::ChunkRows,
                    .keys = moves ? a.workspace + plan.keysOf(move, head) : scratch,
                    .decay = moves ? a.workspace + plan.decayOf(move, head) : scratch + cpu::ChunkRows * cpu::KeyMax,
                    .factors = factors, .line = plan.line});
}

// Columns of values of one head and segment.
struct Columns {
  int64_t s, head, first;  // first: among the head's values
  int width;
};

// S of these columns; rows of it lie `row` apart.
struct State {
  const float* data;  // null: zeros
  int64_t row;
};

// y of a chunk's rows: decayed queries times S, then the rows of the chunk so far, `v` of which lie at places 0 to 15.
void writeRows(const Attention& a, const Columns& at, int64_t row, int first, int last, const State& S, const float* v) {
  const cpu::LinearPlan& plan = a.plan;
  float* y = a.y + row * plan.values + at.head * plan.value + at.first;
  const Left queries{a.workspace + plan.query(row, at.head), plan.heads * plan.line, 1};
  product(last - first, at.width, S.data ? static_cast<int>(plan.key) : 0, queries, S.data ? S.data : v, S.row, {y, plan.values},
          [](int, int64_t, int) { return set(0.0f); });
  for (int i = first; i < last; i++, y += plan.values)
    product(1, at.width, i + 1, {a.workspace + plan.weights(row + i - first, at.head), 0, 1}, v, Block, {y, 0},
            [&](int, int64_t c, int n) { return load(y + c, n); });
}

// S after a chunk: decayed, with its rows added, `last` of them.
void moveState(const Attention& a, const Columns& at, int64_t move, int last, const float* v, const float* S, const Lines& to) {
  const float* decay = a.workspace + a.plan.decayOf(move, at.head);
  product(static_cast<int>(a.plan.key), at.width, last, {a.workspace + a.plan.keysOf(move, at.head), 1, a.plan.line}, v, Block, to,
          [&](int r, int64_t c, int n) { return load(S + r * Block + c, n) * set(decay[r]); });
}

// The values of a chunk's places [0, last), Block apart and zero where there is no row.
void gatherValues(const Attention& a, const Columns& at, const Segment& segment, int64_t row, int first, int last, float* to) {
  const int64_t column = at.head * a.plan.value + at.first;
  const size_t bytes = sizeof(float) * static_cast<size_t>(at.width);
  for (int i = 0; i < last; i++, to += Block) {
    if (i >= first) std::memcpy(to, a.v + (row + i - first) * a.plan.values + column, bytes);
    else if (a.hasTail(segment)) std::memcpy(to, a.line(segment.from, i).v + column, bytes);
    else std::memset(to, 0, bytes);
  }
}

// Part of a state of (key, value) per head, from or to lines of `row`.
void copyState(const cpu::LinearPlan& plan, const Columns& at, const State& from, float* to, int64_t toRow) {
  for (int64_t r = 0; r < plan.key; r++, to += toRow) {
    if (from.data) std::memcpy(to, from.data + r * from.row, sizeof(float) * static_cast<size_t>(at.width));
    else std::memset(to, 0, sizeof(float) * static_cast<size_t>(at.width));
  }
}

// What a segment starts from, with the tail's rows taken in one by one: saved for the gradient, which knows no tail.
void saveStart(const Attention& a, const Columns& at, const Segment& segment, int places, const float* v, float* to) {
  if (!a.hasTail(segment)) return;
  for (int i = 0; i < places; i++) {
    const cpu::TailLine line = a.line(segment.from, i);
    for (int64_t r = 0; r < a.plan.key; r++) {
      const int64_t column = at.head * a.plan.key + r;
      const F32 factor = line.g ? exp(set(line.g[column])) : set(a.decay(at.head)), k = set(line.k[column]);
      for (int c = 0; c < at.width; c += Lanes) {
        float* element = to + r * a.plan.value + c;
        const int n = std::min(Lanes, at.width - c);
        store(element, fma(k, load(v + i * Block + c, n), load(element, n) * factor), n);
      }
    }
  }
}

void walkSegment(const Attention& a, const Columns& at, const Segment& segment, float* tile) {
  alignas(64) float v[cpu::ChunkRows * Block];
  const cpu::LinearPlan& plan = a.plan;
  const ops::Chunks chunks(segment.begin, segment.end, segment.position);
  const int64_t part = at.head * plan.key * plan.value + at.first;  // of any state
  const float* start = a.stateBefore(segment, at.s);
  State S{start ? start + part : nullptr, plan.value};
  if (chunks.ended() > 0 || a.final || a.saved) {
    copyState(plan, at, S, tile, Block);
    S = {tile, Block};
  }
  for (int64_t chunk = 0; chunk < chunks.count(); chunk++) {
    const int64_t row = segment.begin + chunks.row(chunk);
    const int first = chunks.first(chunk), last = chunks.last(chunk);
    gatherValues(a, at, segment, row, first, last, v);
    if (a.saved && chunk == chunks.firstOf(chunks.save(chunk))) {
      float* to = a.saved + (ops::savedState(segment.begin, at.s) + chunks.save(chunk)) * plan.state() + part;
      copyState(plan, at, S, to, plan.value);
      if (chunk == 0) saveStart(a, at, segment, first, v, to);
    }
    if (a.y) writeRows(a, at, row, first, last, S, v);
    const bool ends = chunk < chunks.ended();
    if (ends) moveState(a, at, plan.move(chunks, segment.begin, at.s, chunk), last, v, tile, {tile, Block});
    if (!a.final || chunk + 1 < chunks.count()) continue;
    float* to = a.final + at.s * plan.state() + part;
    if (ends) copyState(plan, at, S, to, plan.value);
    else moveState(a, at, plan.move(chunks, segment.begin, at.s, chunk), last, v, tile, {to, plan.value});
  }
  const bool stays = segment.from == segment.to && chunks.ended() == 0;
  if (a.carried && segment.to > 0 && !stays) copyState(plan, at, S, a.carried + segment.to * plan.state() + part, plan.value);
}

// The rows of the chunk that has not ended, to the slot that the segment goes to.
void writeTail(const Attention& a, const Segment& segment, int64_t place) {
  const ops::Chunks chunks(segment.begin, segment.end, segment.position);
  const int64_t row = segment.end - chunks.left() + place;
  const size_t lineBytes = sizeof(float) * static_cast<size_t>(a.columns);
  if (segment.to == 0 || place >= chunks.left()) return;
  const cpu::TailLine to = a.line(segment.to, place);
  const auto put = [](const float* line, const float* from, int64_t count) {
    std::memcpy(const_cast<float*>(line), from, sizeof(float) * static_cast<size_t>(count));
  };
  if (row >= segment.begin) {
    put(to.k, a.k + row * a.plan.keys, a.plan.keys);
    put(to.v, a.v + row * a.plan.values, a.plan.values);
    if (to.g) put(to.g, a.g + row * a.plan.keys, a.plan.keys);
  } else if (segment.from == 0) {
    std::memset(const_cast<float*>(to.k), 0, lineBytes);
  } else if (segment.from != segment.to) {
    put(to.k, a.line(segment.from, place).k, a.columns);
  }
}

}  // namespace

void linearAttention(const Call& call) {
  const auto [q, k, v, g, segments, initial, carried, tail] = call.in<8>();
  const auto [y, final, saved] = call.out<3>();
  const cpu::LinearPlan plan(call);
  const Attention a{plan, q.f32(), k.f32(), v.f32(), g.f32(), initial.f32(), carried.f32(), tail.f32(), y.f32(), final.f32(), saved.f32(),
                    reinterpret_cast<float*>(call.workspace), tail ? tail[2] : 0, static_cast<float>(call.attributes.number("scale")),
                    call.attributes.flag("retention")};
  const int32_t* lines = segments.i32();
  cpu::zeroSpareRows(segments, plan.rows, plan.values, a.y);
  cpu::parallel(plan.segments * plan.heads * Parts, [&](int64_t task) {
    const int64_t s = task / (plan.heads * Parts), head = task / Parts % plan.heads;
    const Segment segment = segmentAt(lines, s);
    const ops::Chunks chunks(segment.begin, segment.end, segment.position);
    for (int64_t chunk = task % Parts; chunk < chunks.count(); chunk += Parts) prepare(a, segment, s, head, chunk);
  });
  cpu::parallel(plan.workers(), [&](int64_t worker) {
    for (int64_t task = worker; task < plan.tasks(); task += plan.workers()) {
      const int64_t block = task % plan.blocks, head = task / plan.blocks % plan.heads, s = task / plan.blocks / plan.heads;
      const Columns at{s, head, block * Block, plan.width(block)};
      const Segment segment = segmentAt(lines, s);
      if (segment.begin < segment.end) walkSegment(a, at, segment, a.workspace + plan.tile(worker));
      else if (a.final) copyState(plan, at, {nullptr, 0}, a.final + s * plan.state() + head * plan.key * plan.value + at.first, plan.value);
    }
  });
  if (!a.tail) return;
  cpu::parallel(plan.segments * ops::TailRows, [&](int64_t task) {
    const Segment segment = segmentAt(lines, task / ops::TailRows);
    if (segment.begin < segment.end) writeTail(a, segment, task % ops::TailRows);
  });
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

KERNEL(linearAttention, cpu, "q k v g? segments initial? carried?* tail?* -> y final saved; heads scale retention",
       .run = DISPATCH(linearAttention), .limit = ops::linearAttentionLimit,
       .workspaceBytes = [](const Call& call) { return LinearPlan(call).sizeBytes(); }, .checkInputs = ops::checkLinearAttention)

}  // namespace selscan::cpu
#endif
