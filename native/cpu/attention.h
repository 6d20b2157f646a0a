// What the forward and the backward pass of attention share on the cpu: where keys and values lie, and how rows are cut into work.
#pragma once
#include <algorithm>

#include "cpu/spare_rows.h"
#include "ops/attention.h"

namespace selscan::cpu {

// Keys of one softmax: blocks begin at multiples of this position. 2048 keys of 8 kv heads are 64 tasks for one decoding row, and
// a block of keys and values of headDim 128 fits L2.
constexpr int64_t KeyBlock = 256;
// Pairs of a row and a query head in one task: what keys and values are brought into place for.
constexpr int64_t PairBlock = 512;
constexpr int64_t Width = 16;       // lanes of the widest instruction set: sizes are the same on all
constexpr int64_t WorkersMax = 32;  // bounds the copies of a task's room

inline int64_t padded(int64_t n) { return (n + Width - 1) / Width * Width; }

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

// How the forward pass is cut and where things lie in its workspace, in floats; from shapes alone.
//
// A record is what a pair has gathered: a [headDim, padded], m, l.
struct AttentionPlan {
  static constexpr int64_t Together = 24;   // pairs at a time: their weights of a block are 24 KB
  static constexpr int64_t SplitMax = 64;   // rows × kv heads up to which keys are cut into tasks: beyond there are tasks enough

  int64_t rows, count, line, pairs, kvHeads, heads, keyBlocks;
  bool split;

  AttentionPlan(const ops::Heads& heads, const Tensor& qkv, const Tensor& segments, const Tensor& keys)
      : rows(qkv[0]), count(segments[0]), line(padded(heads.headDim)), pairs(std::min(PairBlock, rows * heads.group())),
        kvHeads(heads.kvHeads), heads(heads.heads) {
    const int64_t held = keys.shape.rank > 0 ? std::max(keys[2], rows) : rows;
    const int64_t seen = heads.window == 0 ? held : std::min(held, heads.window);
    keyBlocks = (seen - 1 + KeyBlock - 1) / KeyBlock + 1;  // that one row sees, wherever they begin
    split = rows * kvHeads <= SplitMax;
  }
  // Of all segments; a segment of n pairs has ⌈n/PairBlock⌉.
  int64_t tasks() const { return (rows * (heads / kvHeads) / PairBlock + count) * kvHeads * (split ? keyBlocks : 1); }
  int64_t workers() const { return std::min(WorkersMax, tasks()); }
  int64_t record() const { return line + Width; }

  int64_t firsts() const { return 0; }
  int64_t partials() const { return padded(2 * (count + 1)); }  // [row][head][key block] records
  int64_t room(int64_t worker) const { return partials() + (split ? rows * heads * keyBlocks * record() : 0) + worker * roomFloats(); }
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

// How the backward pass is cut and where things lie in its workspace, in floats; from shapes alone.
//
// The keys of a segment are cut into stripes at least as long as the window: a query sees keys of its own stripe and of the one
// before. A task is a stripe of one kv head; it gives dk and dv of its keys, and dq of two sets of pairs, kept apart: those of its own
// stripe, and those of the next. What a ring holds is one more stripe, before the first.
struct AttentionGradPlan {
  static constexpr int64_t StripeMin = 256;
  static constexpr int64_t Tile = 128;  // keys at a time
  static constexpr int64_t Chunk = 60;  // pairs at a time: p and ds of a chunk and a tile are 60 KB

  int64_t rows, count, line, heads, kvHeads, stripe;
  bool halo;  // whether any pair sees keys of two stripes

  AttentionGradPlan(const ops::Heads& heads, const Tensor& qkv, const Tensor& segments, const Tensor& keys)
      : rows(qkv[0]), count(segments[0]), line(padded(heads.headDim)), heads(heads.heads), kvHeads(heads.kvHeads),
        stripe(heads.window == 0 ? rows : std::min(rows, std::max(StripeMin, heads.window))), halo(stripe < rows || keys.shape.rank > 0) {}

  int64_t tasks() const { return (rows / stripe + 2 * count) * kvHeads; }
  int64_t workers() const { return std::min(WorkersMax, tasks()); }
  int64_t group() const { return heads / kvHeads; }
  // Of a kv head, pair by pair; a pair's number is row·group + its place in the group.
  int64_t pair(int64_t kvHead, int64_t row) const { return (kvHead * rows + row) * group(); }

  int64_t firsts() const { return 0; }
  int64_t products() const { return padded(2 * (count + 1)); }                 // dy·y of every pair
  int64_t own() const { return products() + padded(rows * heads); }            // dq·√headDim of every pair, from its own stripe
  int64_t before() const { return own() + rows * heads * line; }               // and from the stripe before
  int64_t room(int64_t worker) const { return before() + (halo ? rows * heads * line : 0) + worker * roomFloats(); }
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
