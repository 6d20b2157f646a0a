// What the forward and the backward pass of attention share on the cpu: where keys and values lie, and how rows are cut into work.
#pragma once
#include <algorithm>
#include <cmath>

#include "cpu/plan.h"
#include "cpu/spare_rows.h"
#include "cpu/threads.h"
#include "ops/attention.h"

namespace selscan::cpu {

// Keys of one softmax: blocks begin at multiples of this position. 2048 keys of 8 kv heads are 64 tasks for one decoding row, and
// a block of keys and values of headDim 128 fits L2.
constexpr int64_t KeyBlock = 256;
// Pairs of a row and a query head in one task, at most and at least: what keys and values are brought into place for.
constexpr int64_t PairBlock = 512, PairBlockMin = 64;

// A segment as attention sees it: rows [begin, begin + rows) at positions from `position` on, before them what `ring` holds.
struct Sequence {
  int64_t begin, rows, position, ring;
  int64_t first() const { return ring > 0 ? 0 : position; }  // first position that there is
};

// The keys, or the values, of one sequence and kv head by position.
struct Vectors {
  const float* own;  // at the first row; the next one is `stride` further
  int64_t stride, position;
  const std::byte* ring;  // [capacity][headDim]; null: none
  int64_t capacity, headDim;
  bool halves;  // the ring is bf16, and so are own rows once rounded
};

struct Attention {
  ops::Heads heads;
  const float* qkv;
  const int32_t *segments, *rings;  // rings, keys, values null: none
  std::byte *keys, *values;
  int64_t rows, count, capacity;  // count: segments
  bool halves;

  Attention(const Call& call, const Tensor& qkv, const Tensor& segments, const Tensor& rings, const Tensor& keys, const Tensor& values)
      : heads(ops::headsOf(call.attributes)), qkv(qkv.f32()), segments(segments.i32()), rings(rings.i32()), keys(keys.data),
        values(values.data), rows(qkv[0]), count(segments[0]), capacity(keys.shape.rank > 0 ? keys[2] : 0),
        halves(ops::precisionOf(call.attributes) == ops::Precision::bf16) {}

  Sequence sequence(int64_t s) const {
    const Segment segment = segmentAt(segments, s);
    return {segment.begin, segment.end - segment.begin, segment.position, rings ? rings[s] : 0};
  }
  // First position that the query at `position` sees.
  int64_t firstSeen(const Sequence& sequence, int64_t position) const {
    return std::max(sequence.first(), heads.firstSeen(position));
  }
  size_t ringOffset(const Sequence& sequence, int64_t kvHead) const {
    const int64_t elements = (sequence.ring * heads.kvHeads + kvHead) * capacity * heads.headDim;
    return static_cast<size_t>(elements) * (halves ? 2 : 4);
  }
  Vectors vectors(const Sequence& sequence, int64_t kvHead, int64_t column, const std::byte* from) const {
    const std::byte* ring = sequence.ring > 0 ? from + ringOffset(sequence, kvHead) : nullptr;
    return {qkv + sequence.begin * heads.packed() + column, heads.packed(), sequence.position, ring, capacity, heads.headDim, halves};
  }
  Vectors keysOf(const Sequence& sequence, int64_t kvHead) const { return vectors(sequence, kvHead, heads.keyColumn(kvHead), keys); }
  Vectors valuesOf(const Sequence& sequence, int64_t kvHead) const { return vectors(sequence, kvHead, heads.valueColumn(kvHead), values); }
};

// Work of all segments, blocks(s) of segment s, is numbered through and found by its number. Returns how many there are; `firsts`
// has room for count + 1 numbers.
template <class Blocks>
int64_t numberBlocks(int64_t count, int64_t* firsts, Blocks&& blocks) {
  firsts[0] = 0;
  for (int64_t s = 0; s < count; s++) firsts[s + 1] = firsts[s] + blocks(s);
  return firsts[count];
}
// The segment to which block `block` belongs.
inline int64_t segmentOfBlock(const int64_t* firsts, int64_t count, int64_t block) {
  int64_t low = 0, high = count;  // firsts[low] ≤ block < firsts[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (firsts[middle] <= block ? low : high) = middle;
  }
  return low;
}

// Calls body(task, worker) for tasks [0, count); each worker takes neighbours, which share rows or keys.
template <class Body>
void overTasks(int64_t count, int64_t workers, Body&& body) {
  const int64_t used = std::min(count, workers);
  parallel(used, [&](int64_t worker) {
    for (int64_t task = worker * count / used; task < (worker + 1) * count / used; task++) body(task, worker);
  });
}

// How the forward pass of one run is cut. No bit depends on it, for a pair's record of a block of keys is one chain and records are
// merged in rising order: so it may follow the number of threads.
struct AttentionCut {
  int64_t pairs;       // of a task
  int64_t blocks = 0;  // of so many pairs, of all segments and kv heads
  int64_t across = 1;  // most blocks of keys that a segment sees
  bool split = false;  // every block of keys is a task of its own
};

// What the forward pass may be cut into and where things lie in its workspace, in floats; from shapes alone.
//
// A record is what a pair has gathered: a [headDim, padded], m, l. Where rows and kv heads alone are too few tasks, blocks of keys are
// tasks too, `wave` of them at a time: that bounds the records that wait to be merged.
struct AttentionPlan {
  static constexpr int64_t Together = 24;            // pairs at a time: their weights of a block are 24 KB
  static constexpr int64_t WaveFloats = 1 << 19;  // of records that wait: a second-level cache

  int64_t rows, count, line, pairs, kvHeads, heads, wave = 0;  // wave 0: keys are not cut
  int64_t tasksMax;

  AttentionPlan(const ops::Heads& heads, const Tensor& qkv, const Tensor& segments, const Tensor& keys)
      : rows(qkv[0]), count(segments[0]), line(padded(heads.headDim)), pairs(std::min(PairBlock, rows * heads.group())),
        kvHeads(heads.kvHeads), heads(heads.heads), tasksMax((rows * heads.group() / PairBlockMin + count) * kvHeads) {
    const int64_t held = keys.shape.rank > 0 ? std::max(keys[2], rows) : rows;
    const int64_t seen = heads.window == 0 ? held : std::min(held, heads.window);
    const int64_t keyBlocks = (seen - 1 + KeyBlock - 1) / KeyBlock + 1;  // that one row sees, wherever they begin
    if (rows * heads.group() / PairBlockMin * kvHeads >= 2 * WorkersMax || keyBlocks == 1) return;
    wave = std::clamp<int64_t>(WaveFloats / (rows * heads.heads * record()), 1, keyBlocks);
    tasksMax *= wave;
  }
  // Blocks of so many pairs, which are numbered in `firsts`.
  AttentionCut numbered(const Attention& all, int64_t pairs, int64_t* firsts) const {
    AttentionCut cut{.pairs = pairs};
    cut.blocks = kvHeads * numberBlocks(count, firsts, [&](int64_t s) {
      const Sequence sequence = all.sequence(s);
      if (sequence.rows == 0) return int64_t{0};
      const int64_t first = all.firstSeen(sequence, sequence.position) / KeyBlock;
      cut.across = std::max(cut.across, (sequence.position + sequence.rows - 1) / KeyBlock - first + 1);
      return (sequence.rows * all.heads.group() + pairs - 1) / pairs;
    });
    return cut;
  }
  // The cut that ends first, if every task takes as long as a full one. In units of one pair beside one block of keys, bringing the
  // block into place takes 12, and a record that waits 0.18: medians of headDim 64 to 256, AMD EPYC (Zen 5), 2026-11-22.
  AttentionCut cut(const Attention& all, int64_t* firsts) const {
    const int64_t threads = std::min<int64_t>(threadCount(), WorkersMax);
    AttentionCut best{};
    double least = INFINITY;
    for (int64_t pairs = PairBlock; pairs >= PairBlockMin; pairs /= 2) {
      AttentionCut one = numbered(all, pairs, firsts);
      const auto full = static_cast<double>(std::min(pairs, this->pairs));
      const auto rounds = [&](int64_t tasks) { return (tasks + threads - 1) / threads; };
      const auto consider = [&](bool split, int64_t beside, double pair) {
        const double time = static_cast<double>(beside) * (full * pair + 12);
        if (time >= least) return;
        least = time;
        one.split = split;
        best = one;
      };
      consider(false, rounds(one.blocks) * one.across, 1);
      if (wave == 0 || one.across == 1) continue;
      consider(true, one.across / wave * rounds(one.blocks * wave) + rounds(one.blocks * (one.across % wave)), 1.18);
    }
    numbered(all, best.pairs, firsts);
    return best;
  }
  int64_t workers() const { return std::min(WorkersMax, tasksMax); }
  int64_t record() const { return line + Width; }

  int64_t firsts() const { return 0; }
  int64_t records() const { return padded(2 * (count + 1)); }  // [row][head]: its total, and of the blocks of keys of a wave
  int64_t room(int64_t worker) const {
    return records() + (wave > 0 ? rows * heads * (wave + 1) * record() : 0) + worker * roomFloats();
  }
  int64_t roomFloats() const { return query() + pairs * line; }
  // In a task's room:
  int64_t columns() const { return 0; }                                     // keys: [dim][key of the block]
  int64_t values() const { return line * KeyBlock; }                        // [key][dim]
  int64_t scores() const { return values() + KeyBlock * line; }             // [pair of those together][key]
  int64_t parts() const { return scores() + Together * KeyBlock; }          // [pair of those together] records
  int64_t totals() const { return parts() + Together * record(); }          // [pair] records
  int64_t query() const { return totals() + pairs * record(); }             // [pair][dim], scaled
  size_t sizeBytes() const { return sizeof(float) * static_cast<size_t>(room(workers())); }
};

// How the backward pass of one run is cut; no bit depends on it either, see AttentionGradPlan.
struct AttentionGradCut {
  int64_t stripe;  // keys, and rows; a multiple of the tile
  int64_t phases;
};

// What the backward pass may be cut into and where things lie in its workspace, in floats; from shapes alone.
//
// A segment's rows, and the keys of a ring before them, are cut into stripes of one length. A task is a cell: a stripe of keys beside a
// stripe of rows, of one kv head. Cells (i, i + d) of all i run together, for none shares keys or rows with another, and the phases
// d = 0, 1, 2 … one after another. Inside a cell tiles of keys are taken from the last to the first. So dq of a row adds up tiles
// from its own downwards, and dk and dv of a key rows in rising order, however long the stripes are.
struct AttentionGradPlan {
  static constexpr int64_t Tile = 128;  // keys at a time
  static constexpr int64_t Chunk = 60;  // pairs at a time: p and ds of a chunk and a tile are 60 KB

  int64_t rows, count, line, heads, kvHeads, tasksMax;

  AttentionGradPlan(const ops::Heads& heads, const Tensor& qkv, const Tensor& segments)
      : rows(qkv[0]), count(segments[0]), line(padded(heads.headDim)), heads(heads.heads), kvHeads(heads.kvHeads),
        tasksMax((rows / Tile + count) * kvHeads) {}

  // Stripes of what a ring holds for a segment, which begin at multiples of 64 positions as its slots do.
  static int64_t heldFirst(const Attention& all, const Sequence& sequence) {
    return all.firstSeen(sequence, sequence.position) / ops::KeyTile * ops::KeyTile;
  }
  static int64_t heldStripes(const Attention& all, const Sequence& sequence, int64_t stripe) {
    if (all.firstSeen(sequence, sequence.position) == sequence.position) return 0;
    return (sequence.position - heldFirst(all, sequence) + stripe - 1) / stripe;
  }
  // The longest stripes that are tasks enough: with eight for every thread the phases, which have fewer and fewer, leave it idle for
  // an eighth of the time at most.
  AttentionGradCut cut(const Attention& all) const {
    const auto most = [&](auto&& of) {
      int64_t most = 0;
      for (int64_t s = 0; s < count; s++) most = std::max(most, of(all.sequence(s)));
      return most;
    };
    const auto stripes = [&](int64_t length) {
      int64_t total = 0;
      for (int64_t s = 0; s < count; s++) total += (all.sequence(s).rows + length - 1) / length;
      return total * kvHeads;
    };
    const int64_t threads = threadCount(), enough = threads == 1 ? 1 : 8 * threads;
    int64_t stripe = Tile;
    for (const int64_t longest = most([](const Sequence& sequence) { return sequence.rows; });
         stripe < longest && stripes(2 * stripe) >= enough;)
      stripe *= 2;
    const int64_t phases = most([&](const Sequence& sequence) {
      if (sequence.rows == 0) return int64_t{0};
      const int64_t held = heldStripes(all, sequence, stripe), window = all.heads.window;
      const int64_t last = (sequence.rows + stripe - 1) / stripe + held - 1;
      // A stripe held ends up to a stripe nearer than its number says.
      return 1 + (window == 0 ? last : std::min(last, (window + stripe - 2) / stripe + (held > 0 ? 1 : 0)));
    });
    return {stripe, phases};
  }
  int64_t workers() const { return std::min(WorkersMax, tasksMax); }
  int64_t group() const { return heads / kvHeads; }
  // Of a kv head, pair by pair; a pair's number is row·group + its place in the group.
  int64_t pair(int64_t kvHead, int64_t row) const { return (kvHead * rows + row) * group(); }

  int64_t firsts() const { return 0; }
  int64_t products() const { return padded(2 * (count + 1)); }                 // dy·y of every pair
  int64_t dq() const { return products() + padded(rows * heads); }             // dq·√headDim of every pair
  int64_t room(int64_t worker) const { return dq() + rows * heads * line + worker * roomFloats(); }
  // In a task's room:
  int64_t keyColumns() const { return 0; }                               // [dim][key of the tile]
  int64_t valueColumns() const { return keyColumns() + line * Tile; }    // [dim][key]
  int64_t keyRows() const { return valueColumns() + line * Tile; }       // [key][dim]
  int64_t dk() const { return keyRows() + Tile * line; }                 // [key][dim]
  int64_t dv() const { return dk() + Tile * line; }                      // [key][dim]
  int64_t query() const { return dv() + Tile * line; }                   // [pair of the chunk][dim], scaled
  int64_t dy() const { return query() + Chunk * line; }                  // [pair][dim]
  int64_t p() const { return dy() + Chunk * line; }                      // [pair][key]
  int64_t ds() const { return p() + Chunk * Tile; }                      // [pair][key]
  int64_t roomFloats() const { return ds() + Chunk * Tile; }
  size_t sizeBytes() const { return sizeof(float) * static_cast<size_t>(room(workers())); }
};

}  // namespace selscan::cpu
