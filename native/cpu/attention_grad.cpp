// Sliding-window attention, backward. See lib/ops/attention.ts for the equations.
//
// The weights p are computed again from lse, once: five products for each pair of a query and a key. A task is a stripe of keys beside
// one of rows, of one kv head (cpu/attention.h). It goes through its keys by tiles of 128 and, for each, through the pairs of a row and
// a query head that see any of them, by chunks of 60: p and ds of the chunk, then dq += ds·K, and dk += dsᵀ·q and dv += pᵀ·dy, which
// so sum over the query heads of the group too. Every sum has one order, given by the segment alone.
//
// AMD EPYC (Zen 5), AVX-512, one core, 2026-11-22, share of the peak of multiply-adds: 16 × 512 rows, window 256, 4 heads of 64
// 0.52, 8 of 32 0.46, 8 heads on 2 of 64 0.6. Forward and backward together take 0.8 and 0.9 of the time of the layer's two linears.
// Tried: tiles of 64 keys: 5 % slower; of 256: 3 %.
//
// Queries are scaled by log₂e/√headDim when they are put into place: then p = exp2(s − lse·log₂e), and dk is that sum times ln 2.
// D = dy·y is one chain of multiply-adds over headDim as dy·v is: where a query sees one key alone, y is v and ds is exactly 0.
#include "cpu/attention.h"

#define EACH_ISA "cpu/attention_grad.cpp"
#include "cpu/each_isa.h"

#ifdef ISA
#include "cpu/attention_tile.h"

namespace selscan::ISA {
namespace {

struct Backward {
  cpu::Attention all;
  cpu::AttentionGradPlan plan;
  const float *dy, *y, *lse;
  float *dqkv, *workspace;

  int64_t* firsts() const { return reinterpret_cast<int64_t*>(workspace + plan.firsts()); }
};

// Keys [first, end) by position, of one sequence and kv head, beside rows [rows, rowsEnd), counted from the sequence's first.
struct Cell {
  cpu::Sequence sequence;
  int64_t kvHead, first, end, rows, rowsEnd;
  bool more;                                               // dk and dv of the keys go on from what dqkv has
  bool held() const { return first < sequence.position; }  // by a ring
};

// Some pairs, numbered from the sequence's first row on, beside a tile of keys that begins at position `start`.
struct Chunk {
  int64_t begin, end;
  int64_t start;
  int keys;
};

int lanesLeft(int64_t left) { return left < Lanes ? static_cast<int>(left) : Lanes; }

// The keys of the tile that a pair sees.
Span keysSeen(const Backward& b, const Cell& cell, const Chunk& chunk, int64_t pair) {
  const int64_t position = cell.sequence.position + pair / b.plan.group();
  const int64_t first = b.all.firstSeen(cell.sequence, position) - chunk.start, last = position + 1 - chunk.start;
  return {static_cast<int>(first > 0 ? first : 0), static_cast<int>(last < chunk.keys ? last : chunk.keys)};
}

// The pairs of the chunk that see a key.
Span pairsSeeing(const Backward& b, const Cell& cell, const Chunk& chunk, int key) {
  const int64_t row = chunk.start + key - cell.sequence.position, group = b.plan.group(), window = b.all.heads.window;
  const int64_t first = row * group - chunk.begin, last = (row + window) * group - chunk.begin, count = chunk.end - chunk.begin;
  const int64_t end = window > 0 && last < count ? (last > 0 ? last : 0) : count;
  return {static_cast<int>(first < 0 ? 0 : first < count ? first : count), static_cast<int>(end)};
}

// Queries, scaled, and dy of the chunk.
void placePairs(const Backward& b, const Cell& cell, const Chunk& chunk, float* room) {
  const ops::Heads& heads = b.all.heads;
  const F32 scale = set(1.4426950408889634f / std::sqrt(static_cast<float>(heads.headDim)));
  const int64_t ahead = (8 + b.plan.group() - 1) / b.plan.group();  // rows, which are a page apart: no prefetcher follows them
  float *query = room + b.plan.query(), *dy = room + b.plan.dy();
  for (int64_t pair = chunk.begin; pair < chunk.end; pair++, query += b.plan.line, dy += b.plan.line) {
    const int64_t row = cell.sequence.begin + pair / b.plan.group();
    const int64_t head = cell.kvHead * b.plan.group() + pair % b.plan.group();
    const Vector q{b.all.qkv + row * heads.packed() + head * heads.headDim, nullptr, b.all.halves};
    const float* from = b.dy + row * heads.width() + head * heads.headDim;
    for (int64_t d = 0; d < heads.headDim; d += Lanes) {
      const int n = lanesLeft(heads.headDim - d);
      __builtin_prefetch(q.floats + d + ahead * heads.packed());
      __builtin_prefetch(from + d + ahead * heads.width());
      store(query + d, q.at(d, n) * scale);
      store(dy + d, load(from + d, n));
    }
    for (int64_t d = (heads.headDim + Lanes - 1) / Lanes * Lanes; d < b.plan.line; d += Lanes) {
      store(query + d, set(0.0f));
      store(dy + d, set(0.0f));
    }
  }
}

// p and ds of a pair: scores and dy·v are in their places. Lanes beside the span hold anything: nobody reads them.
void weigh(float* scores, float* ds, Span span, float lse, float product) {
  const F32 shift = set(lse * 1.4426950408889634f), D = set(product);
  const int begin = span.begin / Lanes * Lanes, end = (span.end + Lanes - 1) / Lanes * Lanes;
  for (int key = begin; key < end; key += Lanes) {
    const F32 p = exp2(load(scores + key) - shift);
    store(ds + key, p * (load(ds + key) - D));
    store(scores + key, p);
  }
}

// p, ds and dq of the chunk.
void gradQueries(const Backward& b, const Cell& cell, const Chunk& chunk, float* room, float* dq) {
  constexpr int64_t Tile = cpu::AttentionGradPlan::Tile;
  const int64_t line = b.plan.line, first = b.plan.pair(cell.kvHead, cell.sequence.begin) + chunk.begin;
  const float* products = b.workspace + b.plan.products();
  for (int64_t i = 0; i < chunk.end - chunk.begin; i += TileRows) {
    const int count = chunk.end - chunk.begin - i < TileRows ? static_cast<int>(chunk.end - chunk.begin - i) : TileRows;
    Span spans[TileRows];
    for (int r = 0; r < count; r++) spans[r] = keysSeen(b, cell, chunk, chunk.begin + i + r);
    const int begin = spans[0].begin / Lanes * Lanes, vectors = (spans[count - 1].end - begin + Lanes - 1) / Lanes;
    float *p = room + b.plan.p() + i * Tile, *ds = room + b.plan.ds() + i * Tile;
    const auto dots = [&](int64_t rows, int64_t columns, float* to) {
      multiply(Product<>{.a = room + rows + i * line, .aRow = line, .aStep = 1, .b = room + columns + begin, .bStep = Tile, .c = to + begin,
                         .cRow = Tile, .steps = b.all.heads.headDim, .continued = false},
               count, vectors);
    };
    dots(b.plan.query(), b.plan.keyColumns(), p);
    dots(b.plan.dy(), b.plan.valueColumns(), ds);
    for (int r = 0; r < count; r++) {
      const int64_t pair = chunk.begin + i + r, head = cell.kvHead * b.plan.group() + pair % b.plan.group();
      const int64_t row = cell.sequence.begin + pair / b.plan.group();
      weigh(p + r * Tile, ds + r * Tile, spans[r], b.lse[row * b.plan.heads + head], products[first + i + r]);
    }
    multiplySpans(Product<>{.a = ds, .aRow = Tile, .aStep = 1, .b = room + b.plan.keyRows(), .bStep = line, .c = dq + (first + i) * line,
                            .cRow = line, .steps = 0, .continued = true},
                  spans, count, line / Lanes);
  }
}

// dk and dv of the tile, as far as they come from the chunk.
void gradKeys(const Backward& b, const Cell& cell, const Chunk& chunk, float* room) {
  constexpr int64_t Tile = cpu::AttentionGradPlan::Tile;
  const int64_t line = b.plan.line;
  for (int key = 0; key < chunk.keys; key += TileRows) {
    const int count = chunk.keys - key < TileRows ? chunk.keys - key : TileRows;
    Span spans[TileRows];
    for (int r = 0; r < count; r++) spans[r] = pairsSeeing(b, cell, chunk, key + r);
    const auto sums = [&](int64_t weights, int64_t rows, int64_t to) {
      multiplySpans(Product<>{.a = room + weights + key, .aRow = 1, .aStep = Tile, .b = room + rows, .bStep = line,
                              .c = room + to + key * line, .cRow = line, .steps = 0, .continued = true},
                    spans, count, line / Lanes);
    };
    sums(b.plan.ds(), b.plan.query(), b.plan.dk());
    sums(b.plan.p(), b.plan.dy(), b.plan.dv());
  }
}

// Calls body(row of dk, row of dv, their places in dqkv) for the keys of a tile.
template <class Body>
void overKeys(const Backward& b, const Cell& cell, int64_t start, int keys, float* room, Body&& body) {
  const ops::Heads& heads = b.all.heads;
  for (int key = 0; key < keys; key++) {
    float* row = b.dqkv + (cell.sequence.begin + start + key - cell.sequence.position) * heads.packed();
    const int64_t at = key * b.plan.line;
    body(room + b.plan.dk() + at, room + b.plan.dv() + at, row + heads.keyColumn(cell.kvHead), row + heads.valueColumn(cell.kvHead));
  }
}

// dk, in units of 1/log₂e, and dv as earlier phases have left them; zeros in the first.
void takeKeys(const Backward& b, const Cell& cell, int64_t start, int keys, float* room) {
  std::memset(room + b.plan.dk(), 0, sizeof(float) * static_cast<size_t>(b.plan.query() - b.plan.dk()));
  if (!cell.more) return;
  const size_t bytes = sizeof(float) * static_cast<size_t>(b.all.heads.headDim);
  overKeys(b, cell, start, keys, room, [=](float* dk, float* dv, const float* fromKey, const float* fromValue) {
    std::memcpy(dk, fromKey, bytes);
    std::memcpy(dv, fromValue, bytes);
  });
}
void putKeys(const Backward& b, const Cell& cell, int64_t start, int keys, float* room) {
  const size_t bytes = sizeof(float) * static_cast<size_t>(b.all.heads.headDim);
  overKeys(b, cell, start, keys, room, [=](const float* dk, const float* dv, float* toKey, float* toValue) {
    std::memcpy(toKey, dk, bytes);
    std::memcpy(toValue, dv, bytes);
  });
}

void gradTile(const Backward& b, const Cell& cell, int64_t start, int keys, float* room) {
  const cpu::Sequence& sequence = cell.sequence;
  // Rows that see any key of the tile.
  const int64_t window = b.all.heads.window, after = start - sequence.position, reach = after + keys - 1 + window;
  const int64_t first = after > cell.rows ? after : cell.rows, last = window > 0 && reach < cell.rowsEnd ? reach : cell.rowsEnd;
  if (first >= last) return;
  const cpu::Vectors k = b.all.keysOf(sequence, cell.kvHead), v = b.all.valuesOf(sequence, cell.kvHead);
  placeColumns(k, start, {0, keys}, cpu::AttentionGradPlan::Tile, room + b.plan.keyColumns());
  placeColumns(v, start, {0, keys}, cpu::AttentionGradPlan::Tile, room + b.plan.valueColumns());
  placeRows(k, start, {0, keys}, b.plan.line, room + b.plan.keyRows());
  if (!cell.held()) takeKeys(b, cell, start, keys, room);
  const int64_t group = b.plan.group();
  for (int64_t pair = first * group; pair < last * group; pair += cpu::AttentionGradPlan::Chunk) {
    const int64_t end = pair + cpu::AttentionGradPlan::Chunk < last * group ? pair + cpu::AttentionGradPlan::Chunk : last * group;
    const Chunk chunk{pair, end, start, keys};
    placePairs(b, cell, chunk, room);
    gradQueries(b, cell, chunk, room, b.workspace + b.plan.dq());
    if (!cell.held()) gradKeys(b, cell, chunk, room);
  }
  if (!cell.held()) putKeys(b, cell, start, keys, room);
}

Cell cellAt(const Backward& b, int64_t stripe, int64_t phase, int64_t index) {
  const int64_t block = index / b.plan.kvHeads, s = cpu::segmentOfBlock(b.firsts(), b.plan.count, block);
  const cpu::Sequence sequence = b.all.sequence(s);
  const int64_t held = b.plan.heldStripes(b.all, sequence, stripe), number = block - b.firsts()[s] - (held < phase ? held : phase);
  const int64_t keys = number < 0 ? b.plan.heldFirst(b.all, sequence) + (held + number) * stripe : sequence.position + number * stripe;
  const int64_t limit = sequence.position + (number < 0 ? 0 : sequence.rows), rows = (number + phase) * stripe;
  const auto within = [stripe](int64_t begin, int64_t end) { return begin + stripe < end ? begin + stripe : end; };
  return {sequence, index % b.plan.kvHeads, keys, within(keys, limit), rows, within(rows, sequence.rows), phase > 0};
}

void gradCells(const Backward& b) {
  const auto [stripe, phases] = b.plan.cut(b.all);
  for (int64_t phase = 0; phase < phases; phase++) {
    const int64_t cells = b.plan.kvHeads * cpu::numberBlocks(b.plan.count, b.firsts(), [&, stripe = stripe](int64_t s) {
      const cpu::Sequence sequence = b.all.sequence(s);
      const int64_t held = b.plan.heldStripes(b.all, sequence, stripe);
      const int64_t left = (sequence.rows + stripe - 1) / stripe - phase + (held < phase ? held : phase);
      return sequence.rows > 0 && left > 0 ? left : 0;
    });
    cpu::overTasks(cells, b.plan.workers(), [&, stripe = stripe](int64_t task, int64_t worker) {
      constexpr int64_t Tile = cpu::AttentionGradPlan::Tile;
      const Cell cell = cellAt(b, stripe, phase, task);
      for (int64_t start = cell.first + (cell.end - cell.first - 1) / Tile * Tile; start >= cell.first; start -= Tile)
        gradTile(b, cell, start, static_cast<int>(cell.end - start < Tile ? cell.end - start : Tile), b.workspace + b.plan.room(worker));
    });
  }
}

// Rows at a time where every row is a little work.
constexpr int64_t RowBlock = 32;

// D = dy·y, four pairs side by side; and zeros where dq is summed.
void prepareRow(const Backward& b, int64_t row) {
  const int64_t headDim = b.all.heads.headDim, width = b.all.heads.width(), group = b.plan.group();
  for (int64_t head = 0; head < b.plan.heads; head += 4) {
    const int count = b.plan.heads - head < 4 ? static_cast<int>(b.plan.heads - head) : 4;
    const float *dy = b.dy + row * width + head * headDim, *y = b.y + row * width + head * headDim;
    F32 sums[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
    for (int64_t d = 0; d < headDim; d++)
      for (int i = 0; i < 4; i++) {
        const int64_t at = (i < count ? i : 0) * headDim + d;
        sums[i] = fma(set(dy[at]), set(y[at]), sums[i]);
      }
    for (int i = 0; i < count; i++)
      store(b.workspace + b.plan.products() + b.plan.pair((head + i) / group, row) + (head + i) % group, sums[i], 1);
  }
  const size_t bytes = sizeof(float) * static_cast<size_t>(group * b.plan.line);
  for (int64_t kvHead = 0; kvHead < b.plan.kvHeads; kvHead++)
    std::memset(b.workspace + b.plan.dq() + b.plan.pair(kvHead, row) * b.plan.line, 0, bytes);
}

// dq as it is to be, and dk, whose sums took queries times log₂e.
void finishRow(const Backward& b, int64_t row) {
  const ops::Heads& heads = b.all.heads;
  const F32 scale = set(1.0f / std::sqrt(static_cast<float>(heads.headDim)));
  float* to = b.dqkv + row * heads.packed();
  for (int64_t head = 0; head < heads.heads; head++) {
    const float* dq = b.workspace + b.plan.dq() + (b.plan.pair(head / b.plan.group(), row) + head % b.plan.group()) * b.plan.line;
    for (int64_t d = 0; d < heads.headDim; d += Lanes)
      store(to + head * heads.headDim + d, load(dq + d) * scale, lanesLeft(heads.headDim - d));
  }
  float* dk = to + heads.keyColumn(0);
  for (int64_t d = 0; d < heads.kvHeads * heads.headDim; d += Lanes) {
    const int n = lanesLeft(heads.kvHeads * heads.headDim - d);
    store(dk + d, load(dk + d, n) * set(0.6931471805599453f), n);
  }
}

template <class Body>
void eachRow(int64_t rows, Body&& body) {
  cpu::parallel((rows + RowBlock - 1) / RowBlock, [&](int64_t block) {
    const int64_t end = (block + 1) * RowBlock < rows ? (block + 1) * RowBlock : rows;
    for (int64_t row = block * RowBlock; row < end; row++) body(row);
  });
}

}  // namespace

void slidingAttentionGrad(const Call& call) {
  const auto [dy, qkv, y, lse, segments, rings, keys, values] = call.in<8>();
  const auto [dqkv] = call.out<1>();
  if (!dqkv) return;
  const cpu::Attention all(call, qkv, segments, rings, keys, values);
  const Backward b{all,       cpu::AttentionGradPlan(all.heads, qkv, segments), dy.f32(), y.f32(), lse.f32(), dqkv.f32(),
                   reinterpret_cast<float*>(call.workspace)};
  eachRow(all.rows, [&](int64_t row) { prepareRow(b, row); });
  gradCells(b);
  eachRow(all.rows, [&](int64_t row) { finishRow(b, row); });
  cpu::zeroSpareRows(segments, all.rows, all.heads.packed(), b.dqkv);
}

}  // namespace selscan::ISA
#else
namespace selscan::cpu {

KERNEL(slidingAttentionGrad, cpu,
       "dy qkv y lse segments rings? keys? values? -> dqkv; heads kvHeads headDim window precision",
       .run = DISPATCH(slidingAttentionGrad), .limit = ops::attentionGradLimit,
       .workspaceBytes = [](const Call& call) {
         return AttentionGradPlan(ops::headsOf(call.attributes), call.inputs[1], call.inputs[4]).sizeBytes();
       },
       .checkInputs = ops::checkAttentionGrad)

}  // namespace selscan::cpu
#endif
