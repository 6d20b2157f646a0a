// What all kernels of sliding-window attention share: how queries are packed into tiles, which keys a tile sees and where they
// lie, and how partial softmaxes become one.
//
// The query heads of a group read the same keys, so they are rows of one tile: packed row i of a segment is its row i / group,
// head i mod group of the group. A tile is a number of consecutive packed rows of one segment and one kv head.
//
// A packed row's sums have one order, however its sequence is cut and whichever rows share its tile. Keys come in tiles of 64 at
// absolute positions, and 2 tiles are a key block: 128 positions from a multiple of that. Within a block the softmax runs online,
// from nothing; finished blocks are merged in rising order by `merge`. A tile or block in which a row sees nothing changes none
// of its bits: it multiplies by 2⁰ and adds zeros. So a block of threads that goes through all key blocks, and many that take
// one each and leave the merging to another kernel, give the same bits.
//
// The length of a key block is part of these bits. Longer ones leave one decoded row fewer blocks of threads (17 for each kv head
// at a window of 2048), shorter ones cost more merging: of the instructions of two tiles it is a tenth. Both are counted, not
// measured.
//
// All this is of finite numbers: a value of ∞ or NaN makes y NaN in every row whose tile of keys holds it, seen or not (0·∞).
#pragma once
#include "cuda/any_float.cuh"
#include "cuda/math.cuh"
#include "cuda/segments.cuh"
#include "ops/attention.h"

namespace selscan::cuda::attention {

constexpr int KeyTile = static_cast<int>(ops::KeyTile);
constexpr int BlockTiles = 2, KeyBlock = BlockTiles * KeyTile;
constexpr float Nothing = -__builtin_huge_valf();  // the greatest score of no keys

// Sizes and lines of a call. Rings are (slots, kvHeads, capacity, headDim).
struct Geometry {
  const int32_t *segments, *rings;  // rings: null: absent
  int64_t capacity, window;         // window 0: all keys
  int rows, lines, heads, kvHeads, group, headDim;
  float scale;  // 1/√headDim

  __host__ __device__ int64_t width() const { return int64_t{heads} * headDim; }
  __host__ __device__ int64_t packed() const { return int64_t{heads + 2 * kvHeads} * headDim; }
  __device__ __forceinline__ int64_t keyColumn(int kvHead) const { return int64_t{heads + kvHead} * headDim; }
  __device__ __forceinline__ int64_t valueColumn(int kvHead) const { return int64_t{heads + kvHeads + kvHead} * headDim; }
};

inline Geometry geometryOf(const Call& call, const Tensor& qkv, const Tensor& segments, const Tensor& rings, const Tensor& keys) {
  const ops::Heads heads = ops::headsOf(call.attributes);
  return {.segments = segments.i32(),
          .rings = rings.i32(),
          .capacity = keys.shape.rank > 0 ? keys[2] : 0,
          .window = heads.window,
          .rows = static_cast<int>(qkv[0]),
          .lines = static_cast<int>(segments[0]),
          .heads = static_cast<int>(heads.heads),
          .kvHeads = static_cast<int>(heads.kvHeads),
          .group = static_cast<int>(heads.group()),
          .headDim = static_cast<int>(heads.headDim),
          .scale = 1.0f / std::sqrt(static_cast<float>(heads.headDim))};
}

// The columns that a kernel's tiles have in shared memory: headDim, filled up with zeros.
inline int paddedHead(int64_t headDim) { return headDim <= 32 ? 32 : headDim <= 64 ? 64 : headDim <= 128 ? 128 : 256; }

// One segment with rows, as the kernels need it; rows 0: none.
struct Sequence {
  int begin, rows;
  int64_t position;  // of the first row
  int64_t low;       // the first position that there is: 0 with a ring
  int64_t ring;      // 0: none

  // The first key that the query at `position` sees.
  __device__ __forceinline__ int64_t firstSeen(const Geometry& g, int64_t position) const {
    return g.window == 0 ? low : max(low, position - g.window + 1);
  }
};
__device__ __forceinline__ Sequence sequenceAt(const Geometry& g, int s) {
  if (s < 0) return {0, 0, 0, 0, 0};
  const Segment segment = readSegment(g.segments, s);
  const int64_t ring = g.rings ? g.rings[s] : 0;
  return {segment.begin, segment.end - segment.begin, segment.position, ring > 0 ? 0 : int64_t{segment.position}, ring};
}

// The segment that holds the row.
__device__ __forceinline__ Sequence sequenceOf(const Geometry& g, int row) {
  return sequenceAt(g, lineWhere(g.segments, g.lines, [row](const Segment& segment, int) { return segment.begin <= row && row < segment.end; }));
}

// Tiles of `size` entries, of which a row has `perRow`, lie in slots: those of line s from ⌊begin·perRow / size⌋ + s on. n entries
// are ⌈n / size⌉ ≤ ⌊n / size⌋ + 1 tiles, so the slots of two lines never meet, and there are tileSlots of them whatever the lines
// say.
inline int64_t tileSlots(const Geometry& g, int64_t size, int64_t perRow) { return g.rows * perRow / size + g.lines; }

// `count` entries of a sequence from `first` on; no entries where the slot holds no tile.
struct Place {
  Sequence sequence;
  int first, count;
};
template <int Size>
__device__ __forceinline__ Place placeOf(const Geometry& g, int64_t slot, int perRow) {
  const auto firstSlot = [&](int begin, int s) { return int64_t{begin} * perRow / Size + s; };
  const int s = lineWhere(g.segments, g.lines, [&](const Segment& segment, int line) {
    const int64_t tile = slot - firstSlot(segment.begin, line);
    return tile >= 0 && tile * Size < int64_t{segment.end - segment.begin} * perRow;
  });
  Place place{sequenceAt(g, s), 0, 0};
  if (s < 0) return place;
  place.first = static_cast<int>(slot - firstSlot(place.sequence.begin, s)) * Size;
  place.count = min(Size, place.sequence.rows * perRow - place.first);
  return place;
}

// Positions of keys, or packed rows of queries: [first, end), counted from some start.
struct Range {
  int first, end;
  __device__ __forceinline__ Range from(int start) const { return {first - start, end - start}; }
};

// What a block of threads does forward and in the gradient of q: a tile of packed rows of a kv head against tiles of keys, whose
// positions count from `start`.
struct Work {
  Place place;
  int kvHead, part;  // part: of the launch's key blocks
  int64_t start;  // a multiple of KeyTile
  int tiles;      // of keys
  Range seen;     // keys that any row of the tile sees
  int own;        // where the segment's own rows begin: keys before it are the ring's

  __device__ __forceinline__ int64_t row(const Geometry& g, int i) const {
    return place.sequence.begin + (place.first + i) / g.group;
  }
  __device__ __forceinline__ int head(const Geometry& g, int i) const { return kvHead * g.group + (place.first + i) % g.group; }
  // The keys that row i of the tile sees: none beyond its rows.
  __device__ __forceinline__ Range keysOf(const Geometry& g, int i) const {
    if (i >= place.count) return {0, 0};
    const int64_t position = place.sequence.position + (place.first + i) / g.group;
    return {static_cast<int>(place.sequence.firstSeen(g, position) - start), static_cast<int>(position - start) + 1};
  }
};

// The key blocks that a launch takes where they are split: `count` of them, from the one `first` after the first that a segment
// sees. Count 0: not split.
struct Parts {
  int first = 0, count = 0;
};

// Blocks of threads go through slots, kv heads and, where they are split, key blocks.
template <int Size>
__device__ __forceinline__ Work workOf(const Geometry& g, unsigned block, Parts parts = {}) {
  const bool split = parts.count > 0;
  const auto kvHeads = static_cast<unsigned>(g.kvHeads), count = static_cast<unsigned>(split ? parts.count : 1);
  const unsigned pair = block / count;
  Work work{placeOf<Size>(g, pair / kvHeads, g.group), static_cast<int>(pair % kvHeads), static_cast<int>(block % count),
            0, 0, {0, 0}, 0};
  const Place& place = work.place;
  if (place.count == 0) return work;
  const Sequence& sequence = place.sequence;
  const int64_t top = sequence.position + (place.first + place.count - 1) / g.group;
  const int64_t bottom = sequence.firstSeen(g, sequence.position + place.first / g.group);
  int64_t from = bottom / KeyTile, to = top / KeyTile + 1;
  if (split) {
    const int64_t block = sequence.firstSeen(g, sequence.position) / KeyBlock + parts.first + work.part;
    from = max(from, block * BlockTiles);
    to = min(to, (block + 1) * BlockTiles);
  }
  work.start = from * KeyTile;
  work.tiles = static_cast<int>(max(int64_t{0}, to - from));
  work.seen = {static_cast<int>(bottom - work.start), static_cast<int>(top - work.start) + 1};
  work.own = static_cast<int>(sequence.position - work.start);
  return work;
}

// Where the keys of a tile that begins `at` positions after the work's start lie, as lines of headDim elements: those the ring
// has are neighbours there, because a tile never straddles its end, and those of the run are `stride` apart.
struct KeyLines {
  int64_t ring, own, stride;  // elements to line 0; that of the run may lie before its first element
  Range seen;                 // lines; others are zeros
  int split;                  // lines before it are the ring's
};
__device__ __forceinline__ KeyLines keyLines(const Geometry& g, const Work& work, int at, int64_t stride, int64_t column) {
  const Sequence& sequence = work.place.sequence;
  const int64_t position = work.start + at, capacity = g.capacity;
  const int64_t slot = sequence.ring > 0 ? position % capacity : 0;
  return {.ring = ((sequence.ring * g.kvHeads + work.kvHead) * capacity + slot) * g.headDim,
          .own = (sequence.begin + position - sequence.position) * stride + column,
          .stride = stride,
          .seen = work.seen.from(at),
          .split = work.own - at};
}

// The softmax of a row over some keys: the greatest score in units of log 2, and Σ 2^(score − greatest).
struct Softmax {
  float greatest = Nothing, sum = 0.0f;
};
// What 2^(score − greatest) subtracts: never −∞, so that no keys give 0 and not NaN.
__device__ __forceinline__ float offsetOf(float greatest) { return greatest == Nothing ? 0.0f : greatest; }

// Adds later keys to earlier ones. Sums over keys, of values too, become before·kept + after·added.
struct Weights {
  float kept, added;
  __device__ __forceinline__ float operator()(float before, float after) const { return fmaf(before, kept, __fmul_rn(after, added)); }
};
__device__ __forceinline__ Weights weightsOf(float before, float after, float greatest) {
  const float offset = offsetOf(greatest);
  return {exp2Fast(before - offset), exp2Fast(after - offset)};
}
__device__ __forceinline__ Weights merge(Softmax& before, const Softmax& after) {
  const float greatest = fmaxf(before.greatest, after.greatest);
  const Weights weights = weightsOf(before.greatest, after.greatest, greatest);
  before = {greatest, weights(before.sum, after.sum)};
  return weights;
}
__device__ __forceinline__ float logOf(const Softmax& all) { return fmaf(all.greatest, Ln2, logf(all.sum)); }
// y from the sum of weighted values; a zero is positive, whichever path it came by.
__device__ __forceinline__ float finished(float sum, float inverse) { return __fadd_rn(__fmul_rn(sum, inverse), 0.0f); }

// Softmaxes and sums of single key blocks, (rows, heads, entries) and (rows, heads, entries, headDim). A launch takes parts.count of
// them; where there are several, two entries more are for what is merged so far.
struct Partial {
  Softmax* softmax = nullptr;  // null: not split
  AnyFloat sums = {};          // f32
  Parts parts;
  int entries = 0;
  __device__ __forceinline__ int64_t at(const Geometry& g, int64_t row, int head, int entry) const {
    return (row * g.heads + head) * entries + entry;
  }
};

// Inputs and outputs of the forward kernels; planes are of precision bf16.
struct Forward {
  Geometry g;
  AnyFloat qkv, y;
  const bf16* plane;  // qkv in bf16, rows `stride` apart
  int64_t stride;
  const std::byte *keys, *values;  // of the precision's dtype
  float* lse;
  Partial partial;
  bool vectors;  // heads are moved 16 bytes at a time
};

// Stores columns `column` and the next one, as far as there are `columns`, at element `at` and the next.
__device__ __forceinline__ void storePair(const AnyFloat& to, int64_t at, int column, int columns, float first, float second) {
  if (columns % 2 == 0) {
    if (column < columns) to.store<2>(at, {first, second});
  } else {
    if (column < columns) to.store<1>(at, {first});
    if (column + 1 < columns) to.store<1>(at + 1, {second});
  }
}

}  // namespace selscan::cuda::attention
