// What forward and backward gated linear attention share on the cpu: how rows, heads and columns of values are cut into work, and
// where things lie in the workspace.
#pragma once
#include <algorithm>
#include <cstring>
#include <utility>

#include "cpu/plan.h"
#include "cpu/spare_rows.h"
#include "ops/linear_attention.h"

namespace selscan::cpu {

using ops::ChunkRows, ops::KeyMax;

constexpr int64_t ValueBlock = 64;  // columns of values of one task: S of 256 keys × 64 values is 64 KB

// Shapes of one call.
struct LinearHeads {
  int64_t rows, keys, values, heads, key, value, line, blocks;  // line: padded keys of a head; blocks: of its values

  LinearHeads(const Tensor& k, const Tensor& v, const Attributes& attributes)
      : rows(k[0]), keys(k[1]), values(v[1]), heads(static_cast<int64_t>(attributes.number("heads"))), key(keys / heads),
        value(values / heads), line(padded(key)), blocks((value + ValueBlock - 1) / ValueBlock) {}
  int width(int64_t block) const { return static_cast<int>(std::min(ValueBlock, value - block * ValueBlock)); }
  int64_t state() const { return heads * key * value; }
};

// Workspace of the forward pass, in floats. What does not depend on the values is computed once for all blocks of them: for every
// row its decayed query and its weights for the rows of its chunk; for every chunk that moves S its decayed keys and its decay.
struct LinearPlan : LinearHeads {
  int64_t segments, moves;

  explicit LinearPlan(const Call& call)
      : LinearHeads(call.inputs[1], call.inputs[2], call.attributes), segments(call.inputs[4][0]),
        moves(rows / ChunkRows + segments + (call.outputs[1].shape.rank > 0 ? segments : 0)) {}
  int64_t tasks() const { return segments * heads * blocks; }
  int64_t workers() const { return std::min(WorkersMax, tasks()); }
  int64_t moveSize() const { return (ChunkRows + 1) * line; }
  // Where chunk `chunk` of segment s keeps its keys: those that end in order, then those that only `final` asks for.
  int64_t move(const ops::Chunks& chunks, int64_t begin, int64_t s, int64_t chunk) const {
    return chunk < chunks.ended() ? begin / ChunkRows + s + chunk : rows / ChunkRows + segments + s;
  }

  int64_t query(int64_t row, int64_t head) const { return (row * heads + head) * line; }
  int64_t weights(int64_t row, int64_t head) const { return rows * heads * line + (row * heads + head) * ChunkRows; }
  int64_t keysOf(int64_t move, int64_t head) const { return weights(rows, 0) + (move * heads + head) * moveSize(); }
  int64_t decayOf(int64_t move, int64_t head) const { return keysOf(move, head) + ChunkRows * line; }
  int64_t tile(int64_t worker) const { return keysOf(moves, 0) + worker * key * ValueBlock; }
  size_t sizeBytes() const { return sizeof(float) * static_cast<size_t>(tile(workers())); }
};

// Workspace of the backward pass: for each worker dS of one head, S of a block of values at the start of a saved state's chunks, and
// these chunks.
struct LinearGradPlan : LinearHeads {
  int64_t segments;

  explicit LinearGradPlan(const Call& call) : LinearHeads(call.inputs[3], call.inputs[4], call.attributes), segments(call.inputs[6][0]) {}
  int64_t tasks() const { return segments * heads; }
  int64_t workers() const { return std::min(WorkersMax, tasks()); }
  int64_t carrySize() const { return value * line; }
  int64_t statesSize() const { return ops::ChunksOfSave * ValueBlock * line; }
  int64_t chunkSize() const { return (5 * ChunkRows + 2) * line + 2 * ChunkRows * ChunkRows; }
  int64_t tileSize() const { return carrySize() + statesSize() + ops::ChunksOfSave * chunkSize(); }
  size_t sizeBytes() const { return sizeof(float) * static_cast<size_t>(workers() * tileSize()); }
};

// A slot's rows of the chunk that has not ended: lines of k, v and, where there is one, g.
struct TailLine {
  const float *k, *v, *g;  // null without g

  TailLine(const float* tail, int64_t columns, int64_t slot, int64_t at, int64_t keys, int64_t values) {
    k = tail + (slot * ops::TailRows + at) * columns;
    v = k + keys;
    g = columns > keys + values ? v + values : nullptr;
  }
};

}  // namespace selscan::cpu
