// Sliding-window attention, forward. See lib/ops/attention.ts for the equations.
//
// Keys are cut into blocks of 256 that begin at absolute multiples. For each row and query head a block gives three things: m, the
// largest score, l = Σ exp(s − m) and a = Σ exp(s − m)·v over the keys of the block that the row sees. Blocks are merged in
// rising order:
//
//   m' = max(m₁, m₂)      l' = l₁·exp(m₁ − m') + l₂·exp(m₂ − m')      a' likewise      y = a/l      lse = m + log l
//
// A score is one chain of multiply-adds over headDim, an element of a one chain over the visible keys of the block: neither depends
// on which rows are computed beside it, so a row has the same bits alone and among 512.
//
// A task is a block of 64 to 512 pairs of a row and a query head, of one kv head: the heads of a group are further rows, keys are read
// once for all. Keys are turned to columns [dim][key] and values copied for the task, bf16 ones widened; then six pairs at a time take
// the scores of a block, its softmax and its values. Up to 24 pairs go through L1 instead, tile by tile, and read values where they
// lie. Where these are too few tasks the keys are cut too: every block of keys is a task, and what it gives is kept in the workspace
// and merged afterwards, by the same formula. Scores are in units of log 2, so that every exponential is one exp2.
//
// AMD EPYC (Zen 5), AVX-512, one core, time of the process on a machine that others used, 2026-11-22; peak = 250 GFLOP/s in registers:
//   512 rows, window 1024, 16 heads on 4 of 64   0.67 of peak, 8 heads of 128 0.69
//   8 × 512 rows, window 256, 4 heads of 64      0.45 of the peak of both cores, 6 heads of 32 0.37
//   one row, window 2048, 8 kv heads of 128, both cores: 0.76 (f32) and 0.84 (bf16) of the bandwidth, with 32 query heads 0.78 and 0.79
// Tried: the same for decoding without tiles, keys of a block through L2: 0.3 of the bandwidth. Blocks of 192 pairs: 0.6 of peak.
// Rows that are not asked for ahead, a page apart: 1.25 times the time. Scores beside a span set in memory, which vectors then wait for: 1.05.
#include "cpu/attention.h"

#define EACH_ISA "cpu/attention.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/attention_tile.h"

namespace selscan::ISA {
namespace {

struct Forward {
  cpu::Attention all;
  cpu::AttentionPlan plan;
  float *y, *lse;  // null: nobody reads it
  float* workspace;
  cpu::AttentionCut cut;

  int64_t* firsts() const { return reinterpret_cast<int64_t*>(workspace + plan.firsts()); }
  float* room(int64_t worker) const { return workspace + plan.room(worker); }
};

// Pairs [begin, end) of one sequence and kv head.
struct Block {
  cpu::Sequence sequence;
  int64_t kvHead, begin, end, group;

  int64_t position(int64_t pair) const { return sequence.position + pair / group; }
  int64_t row(int64_t pair) const { return sequence.begin + pair / group; }
  int64_t head(int64_t pair) const { return kvHead * group + pair % group; }
};

Block blockAt(const Forward& f, int64_t index) {
  const int64_t number = index / f.plan.kvHeads, s = cpu::segmentOfBlock(f.firsts(), f.plan.count, number);
  const cpu::Sequence sequence = f.all.sequence(s);
  const int64_t group = f.all.heads.group(), begin = (number - f.firsts()[s]) * f.cut.pairs, pairs = sequence.rows * group;
  return {sequence, index % f.plan.kvHeads, begin, begin + f.cut.pairs < pairs ? begin + f.cut.pairs : pairs, group};
}

// The keys of the block that begins at position `start` which the pair sees.
inline Span seenBy(const Forward& f, const Block& block, int64_t pair, int64_t start) {
  const int64_t position = block.position(pair), last = position + 1 - start;
  const int64_t first = f.all.firstSeen(block.sequence, position) - start;
  return {static_cast<int>(first > 0 ? first : 0), static_cast<int>(last < cpu::KeyBlock ? last : cpu::KeyBlock)};
}

void placeQueries(const Forward& f, const Block& block, float* to) {
  const ops::Heads& heads = f.all.heads;
  const F32 scale = set(1.4426950408889634f / std::sqrt(static_cast<float>(heads.headDim)));
  for (int64_t pair = block.begin; pair < block.end; pair++, to += f.plan.line) {
    const Vector from{f.all.qkv + block.row(pair) * heads.packed() + block.head(pair) * heads.headDim, nullptr, f.all.halves};
    for (int64_t d = 0; d < heads.headDim; d += 16) cpu::prefetch(from.floats + Ahead * heads.packed() + d);
    for (int64_t d = 0; d < heads.headDim; d += Lanes)
      store(to + d, from.at(d, heads.headDim - d < Lanes ? static_cast<int>(heads.headDim - d) : Lanes) * scale);
  }
}

// Scores become exp(s − m), zero beside the span; m and l go to the record.
void softmax(float* scores, Span span, bool halves, float* maximumAndSum) {
  alignas(64) static constexpr float Numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const int begin = span.begin / Lanes * Lanes, end = (span.end + Lanes - 1) / Lanes * Lanes;
  const F32 number = load(Numbers), none = set(-INFINITY);
  const auto seen = [=](int key) {
    const F32 first = set(static_cast<float>(span.begin - key)), last = set(static_cast<float>(span.end - key)), score = load(scores + key);
    if (key >= span.begin && key + Lanes <= span.end) return score;
    return selectGreater(first, number, none, selectGreater(last, number, score, none));
  };
  F32 most = seen(begin);
  for (int key = begin + Lanes; key < end; key += Lanes) most = max(most, seen(key));
  const F32 m = set(maximum(most));
  F32 total = set(0.0f);
  for (int key = begin; key < end; key += Lanes) {
    const F32 p = exp2(seen(key) - m);
    total = total + p;
    store(scores + key, halves ? roundedToBf16(p) : p);
  }
  store(maximumAndSum, m, 1);
  maximumAndSum[1] = sum(total);
}

inline Span within(Span span, int begin, int end) { return {span.begin > begin ? span.begin : begin, span.end < end ? span.end : end}; }

// Some neighbouring pairs beside one block of keys.
struct Pairs {
  const Forward& f;
  int count;
  const Span* spans;  // keys of the block that each sees
  const float* query;
  float *scores, *records;

  Span all() const { return {spans[0].begin, spans[count - 1].end}; }

  // Calls body(pairs) for TileRows of them at a time.
  template <class Body>
  void eachGroup(Body&& body) const {
    for (int i = 0; i < count; i += TileRows)
      body(Pairs{f, count - i < TileRows ? count - i : TileRows, spans + i, query + i * f.plan.line, scores + i * cpu::KeyBlock,
                 records + i * f.plan.record()});
  }
};

// Scores of a group for the keys `part`; columns begin with that of key `first`.
template <class From>
void score(const Pairs& group, Span part, const float* columns, int first, int64_t columnsLine, const std::byte* next = nullptr) {
  const int begin = part.begin / Lanes * Lanes;
  multiply(Product<From>{.a = group.query, .aRow = group.f.plan.line, .aStep = 1, .b = columns + (begin - first), .bStep = columnsLine,
                     .c = group.scores + begin, .cRow = cpu::KeyBlock, .steps = group.f.all.heads.headDim / From::Depth,
                         .continued = false, .next = next, .nextStep = StepBytes<float>},
           group.count, (part.end - begin + Lanes - 1) / Lanes);
}

// The weights of a group for the keys `part` times their values, lines of `values` from part.begin on; added to the records.
template <class From>
void addValues(const Pairs& group, Span part, const typename From::Element* values, const std::byte* next = nullptr) {
  Span seen[TileRows] = {};
  for (int i = 0; i < group.count; i++) {
    const Span own = within(group.spans[i], part.begin, part.end);
    seen[i] = {own.begin - part.begin, own.end - part.begin};
  }
  multiplySpans(Product<From>{.a = group.scores + part.begin, .aRow = cpu::KeyBlock, .aStep = 1, .b = values, .bStep = group.f.plan.line,
                              .c = group.records, .cRow = group.f.plan.record(), .steps = 0, .continued = true, .next = next,
                              .nextStep = group.f.plan.line * static_cast<int64_t>(sizeof(typename From::Element))},
                seen, group.count, group.f.plan.line / Lanes);
}

// m, l and an empty sum for each pair whose scores are there.
void softmaxAll(const Pairs& pairs) {
  const int64_t line = pairs.f.plan.line;
  for (int i = 0; i < pairs.count; i++) {
    float* record = pairs.records + i * pairs.f.plan.record();
    softmax(pairs.scores + i * cpu::KeyBlock, pairs.spans[i], pairs.f.all.halves, record + line);
    std::memset(record, 0, sizeof(float) * static_cast<size_t>(line));
  }
}

// The records of pairs whose keys and values are in place.
void attend(const Pairs& pairs, const float* columns, const float* values) {
  pairs.eachGroup([&](const Pairs& group) {
    const Span all = group.all();
    score<Near>(group, all, columns, 0, cpu::KeyBlock);
    softmaxAll(group);
    addValues<Near>(group, all, values + all.begin * group.f.plan.line);
  });
}

// The values of a tile of the block at `start`: those in a ring are read where they lie, others placed first.
void addTile(const Pairs& pairs, const cpu::Vectors& values, int64_t start, Span part, float* placed, const std::byte* next) {
  const int64_t line = pairs.f.plan.line;
  const bool inPlace = line == values.headDim && start + part.end <= values.position;
  const Vector first = vectorAt(values, start + part.begin);
  if (!inPlace) placeRows(values, start + part.begin, {0, part.end - part.begin}, line, placed);
  pairs.eachGroup([&](const Pairs& group) {
    if (!inPlace) addValues<Near>(group, part, placed);
    else if (values.halves) addValues<Far<uint16_t>>(group, part, first.halves, next);
    else addValues<Far<float>>(group, part, first.floats, next);
  });
}

// Where a ring has the vector at `position`; null where it has none.
const std::byte* heldAt(const cpu::Vectors& from, int64_t position) {
  if (position >= from.position || from.ring == nullptr) return nullptr;
  return from.ring + position % from.capacity * from.headDim * (from.halves ? 2 : 4);
}

// The same for few pairs, which are done before keys and values would have left L1: these go through it tile by tile, and while one
// is computed the next is asked for. Every element is the same chain.
void attendFew(const Pairs& pairs, const Block& block, int64_t start, float* room) {
  constexpr int Tile = static_cast<int>(ops::KeyTile);
  const Forward& f = pairs.f;
  const cpu::Vectors keys = f.all.keysOf(block.sequence, block.kvHead), values = f.all.valuesOf(block.sequence, block.kvHead);
  const Span all = pairs.all();
  const int begin = all.begin / Tile * Tile;
  const bool halves = f.all.halves && f.all.heads.headDim % 2 == 0;
  for (int tile = begin; tile < all.end; tile += Tile) {
    const Span part = within(all, tile, tile + Tile);
    float* columns = room + f.plan.columns();
    const Span placed{part.begin - tile, part.end - tile};
    halves ? placeColumns<true>(keys, start + tile, placed, Tile, columns) : placeColumns(keys, start + tile, placed, Tile, columns);
    const std::byte* next = tile + Tile < all.end ? heldAt(keys, start + tile + Tile) : heldAt(values, start + begin);
    pairs.eachGroup([&](const Pairs& group) {
      halves ? score<BesideHalves>(group, part, columns, tile, Tile, next) : score<Beside>(group, part, columns, tile, Tile, next);
    });
  }
  softmaxAll(pairs);
  for (int tile = begin; tile < all.end; tile += Tile) {
    const std::byte* next = tile + Tile < all.end ? heldAt(values, start + tile + Tile) : heldAt(keys, start + cpu::KeyBlock);
    addTile(pairs, values, start, within(all, tile, tile + Tile), room + f.plan.values(), next);
  }
}

// total and part become one. A total that is empty has m = −∞: its factor is 0.
void merge(float* total, const float* part, int64_t line) {
  const float before = total[line], block = part[line], m = before > block ? before : block;
  const F32 old = exp2(set(before - m)), fresh = exp2(set(block - m));
  for (int64_t d = 0; d < line; d += Lanes) store(total + d, fma(load(total + d), old, load(part + d) * fresh));
  total[line] = m;
  store(total + line + 1, fma(set(total[line + 1]), old, set(part[line + 1]) * fresh), 1);
}

void clear(float* record, int64_t line) {
  std::memset(record, 0, sizeof(float) * static_cast<size_t>(line));
  record[line] = -INFINITY;
  record[line + 1] = 0.0f;
}

void finish(const Forward& f, const Block& block, int64_t pair, const float* record) {
  const ops::Heads& heads = f.all.heads;
  const F32 total = set(record[f.plan.line + 1]);
  float* y = f.y ? f.y + block.row(pair) * heads.width() + block.head(pair) * heads.headDim : nullptr;
  for (int64_t d = 0; y && d < heads.headDim; d += 16) cpu::prefetchToWrite(y + Ahead * heads.width() + d);
  for (int64_t d = 0; y && d < heads.headDim; d += Lanes)
    store(y + d, load(record + d) / total, heads.headDim - d < Lanes ? static_cast<int>(heads.headDim - d) : Lanes);
  const F32 lse = fma(set(record[f.plan.line]), set(0.6931471805599453f), log(total));
  if (f.lse) store(f.lse + block.row(pair) * heads.heads + block.head(pair), lse, 1);
}

// Brings into place what any pair of the block sees of the keys at `start`.
void placeKeys(const Forward& f, const Block& block, int64_t start, float* room) {
  const int begin = seenBy(f, block, block.begin, start).begin, end = seenBy(f, block, block.end - 1, start).end;
  placeColumns(f.all.keysOf(block.sequence, block.kvHead), start, {begin, end}, cpu::KeyBlock, room + f.plan.columns());
  placeRows(f.all.valuesOf(block.sequence, block.kvHead), start, {begin, end}, f.plan.line, room + f.plan.values());
}

// Calls body(first pair, count) for the pairs that see any of the block of keys at `start`, some together: their records are in
// the room.
template <class Body>
void eachPart(const Forward& f, const Block& block, int64_t start, float* room, Body&& body) {
  const bool few = block.end - block.begin <= cpu::AttentionPlan::Together;
  if (!few) placeKeys(f, block, start, room);
  for (int64_t pair = block.begin; pair < block.end;) {
    Span spans[cpu::AttentionPlan::Together];
    int count = 0;
    while (count < cpu::AttentionPlan::Together && pair + count < block.end) {
      spans[count] = seenBy(f, block, pair + count, start);
      if (spans[count].begin >= spans[count].end) break;
      count++;
    }
    if (count > 0) {
      const float* query = room + f.plan.query() + (pair - block.begin) * f.plan.line;
      const Pairs pairs{f, count, spans, query, room + f.plan.scores(), room + f.plan.parts()};
      if (few) attendFew(pairs, block, start, room);
      else attend(pairs, room + f.plan.columns(), room + f.plan.values());
      body(pair, count);
    }
    pair += count > 0 ? count : 1;
  }
}

// First and last block of keys that any pair of the block sees.
struct KeyBlocks {
  int64_t first, last;
};
inline KeyBlocks keyBlocks(const Forward& f, const Block& block, int64_t begin, int64_t end) {
  return {f.all.firstSeen(block.sequence, block.position(begin)) / cpu::KeyBlock, block.position(end - 1) / cpu::KeyBlock};
}

// All keys of a block of pairs.
void runBlock(const Forward& f, const Block& block, float* room) {
  const int64_t line = f.plan.line, stride = f.plan.record();
  float *totals = room + f.plan.totals(), *parts = room + f.plan.parts();
  placeQueries(f, block, room + f.plan.query());
  for (int64_t pair = block.begin; pair < block.end; pair++) clear(totals + (pair - block.begin) * stride, line);
  const KeyBlocks blocks = keyBlocks(f, block, block.begin, block.end);
  for (int64_t b = blocks.first; b <= blocks.last; b++)
    eachPart(f, block, b * cpu::KeyBlock, room, [&](int64_t pair, int count) {
      for (int i = 0; i < count; i++) merge(totals + (pair + i - block.begin) * stride, parts + i * stride, line);
    });
  for (int64_t pair = block.begin; pair < block.end; pair++) finish(f, block, pair, totals + (pair - block.begin) * stride);
}

// Blocks of keys [begin, begin + plan.wave), counted from the first that a block of pairs sees.
struct Wave {
  const Forward& f;
  int64_t begin;

  // What the pair has gathered before this wave, and from its i-th block of keys.
  float* total(const Block& block, int64_t pair) const {
    const int64_t index = (block.row(pair) * f.plan.heads + block.head(pair)) * (f.plan.wave + 1);
    return f.workspace + f.plan.records() + index * f.plan.record();
  }
  float* part(const Block& block, int64_t pair, int64_t i) const { return total(block, pair) + (1 + i) * f.plan.record(); }
};

// The i-th block of keys of a block of pairs.
void runPart(const Wave& wave, const Block& block, int64_t i, float* room) {
  const Forward& f = wave.f;
  const KeyBlocks seen = keyBlocks(f, block, block.begin, block.end);
  const int64_t line = f.plan.line, stride = f.plan.record(), b = seen.first + wave.begin + i;
  if (b > seen.last) return;
  float* parts = room + f.plan.parts();
  placeQueries(f, block, room + f.plan.query());
  eachPart(f, block, b * cpu::KeyBlock, room, [&](int64_t pair, int count) {
    for (int k = 0; k < count; k++)
      std::memcpy(wave.part(block, pair + k, i), parts + k * stride, sizeof(float) * static_cast<size_t>(line + 2));
  });
}

void mergeParts(const Wave& wave, const Block& block) {
  const Forward& f = wave.f;
  const KeyBlocks all = keyBlocks(f, block, block.begin, block.end);
  const int64_t first = all.first + wave.begin, end = first + f.plan.wave;
  if (first > all.last) return;
  for (int64_t pair = block.begin; pair < block.end; pair++) {
    float* total = wave.total(block, pair);
    if (wave.begin == 0) clear(total, f.plan.line);
    const KeyBlocks own = keyBlocks(f, block, pair, pair + 1);
    for (int64_t b = own.first > first ? own.first : first; b < end && b <= own.last; b++)
      merge(total, wave.part(block, pair, b - first), f.plan.line);
    if (end > all.last) finish(f, block, pair, total);
  }
}

// Rows of a sequence go to its ring. Positions that it overwrites are outside the window of all its rows.
void writeRing(const Forward& f, const cpu::Sequence& sequence, int64_t kvHead) {
  const ops::Heads& heads = f.all.heads;
  const size_t bytes = static_cast<size_t>(heads.headDim) * (f.all.halves ? 2 : 4);
  for (std::byte* to : {f.all.keys, f.all.values}) {
    std::byte* ring = to + f.all.ringOffset(sequence, kvHead);
    const int64_t column = to == f.all.keys ? heads.keyColumn(kvHead) : heads.valueColumn(kvHead);
    const float* from = f.all.qkv + sequence.begin * heads.packed() + column;
    for (int64_t row = 0; row < sequence.rows; row++, from += heads.packed()) {
      std::byte* slot = ring + static_cast<size_t>((sequence.position + row) % f.all.capacity) * bytes;
      if (!f.all.halves) std::memcpy(slot, from, bytes);
      else
        for (int64_t d = 0; d < heads.headDim; d++) reinterpret_cast<uint16_t*>(slot)[d] = toBf16(from[d]);
    }
  }
}

void writeRings(const Forward& f) {
  cpu::parallel(f.plan.count * f.plan.kvHeads, [&](int64_t task) {
    const cpu::Sequence sequence = f.all.sequence(task / f.plan.kvHeads);
    if (sequence.ring > 0) writeRing(f, sequence, task % f.plan.kvHeads);
  });
}

void attendAll(const Forward& f) {
  const int64_t blocks = f.cut.blocks, workers = f.plan.workers();
  if (!f.cut.split)
    return cpu::overTasks(blocks, workers, [&](int64_t task, int64_t worker) { runBlock(f, blockAt(f, task), f.room(worker)); });
  for (int64_t begin = 0; begin < f.cut.across; begin += f.plan.wave) {
    const Wave wave{f, begin};
    const int64_t parts = f.plan.wave < f.cut.across - begin ? f.plan.wave : f.cut.across - begin;
    cpu::overTasks(blocks * parts, workers, [&](int64_t task, int64_t worker) {
      runPart(wave, blockAt(f, task / parts), task % parts, f.room(worker));
    });
    cpu::overTasks(blocks, workers, [&](int64_t task, int64_t) { mergeParts(wave, blockAt(f, task)); });
  }
}

}  // namespace

void slidingAttention(const Call& call) {
  const auto [qkv, segments, rings, keys, values] = call.in<5>();
  const auto [y, lse] = call.out<2>();
  const cpu::Attention all(call, qkv, segments, rings, keys, values);
  Forward f{all, cpu::AttentionPlan(all.heads, qkv, segments, keys), y.f32(), lse.f32(), reinterpret_cast<float*>(call.workspace), {}};
  f.cut = f.plan.cut(all, f.firsts());
  if (f.y || f.lse) attendAll(f);
  if (rings) writeRings(f);
  cpu::zeroSpareRows(segments, all.rows, all.heads.width(), f.y);
  cpu::zeroSpareRows(segments, all.rows, all.heads.heads, f.lse);
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

KERNEL(slidingAttention, cpu, "qkv segments rings? keys?* values?* -> y lse; heads kvHeads headDim window precision",
       .run = DISPATCH(slidingAttention), .limit = ops::attentionLimit,
       .workspaceBytes = [](const Call& call) {
         return AttentionPlan(ops::headsOf(call.attributes), call.inputs[0], call.inputs[1], call.inputs[3]).sizeBytes();
       },
       .checkInputs = ops::checkAttention)

}  // namespace selscan::cpu
#endif
