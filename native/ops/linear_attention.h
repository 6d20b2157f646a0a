// What gated linear attention is on every device, forward and backward: chunks of rows, what a slot holds, limits and checks. See
// lib/ops/linear-attention.ts.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>

#include "core/dims.h"
#include "core/segments.h"
#include "ops/whole.h"

namespace selscan::ops {

// Rows of a chunk, which begins at a multiple of as many positions, and rows between two states saved for the gradient.
// lib/ops/linear-attention.ts has the same numbers.
constexpr int ChunkRows = 16, TailRows = ChunkRows - 1;
constexpr int SaveRows = 64;
constexpr int KeyMax = 256, ValueMax = 512;

// How a segment falls into chunks. `at` is the place of its first row in its chunk; rows below count from its first row.
struct Chunks {
  int64_t rows;
  int at;

  constexpr Chunks(int64_t begin, int64_t end, int64_t position) : rows(end - begin), at(static_cast<int>(position % ChunkRows)) {}
  constexpr int64_t count() const { return rows > 0 ? (at + rows - 1) / ChunkRows + 1 : 0; }
  constexpr int64_t ended() const { return (at + rows) / ChunkRows; }                         // chunks whose last row is here
  constexpr int left() const { return static_cast<int>((at + rows) % ChunkRows); }            // rows of the chunk after those
  constexpr int64_t row(int64_t chunk) const { return chunk == 0 ? 0 : chunk * ChunkRows - at; }  // the chunk's first row here
  // The place in its chunk of the first row here, and of the one after the last.
  constexpr int first(int64_t chunk) const { return chunk == 0 ? at : 0; }
  constexpr int last(int64_t chunk) const { return static_cast<int>(std::min<int64_t>(ChunkRows, at + rows - chunk * ChunkRows)); }
  // Which saved state the gradient of a chunk begins with, and the first chunk of that state.
  constexpr int64_t save(int64_t chunk) const { return row(chunk) / SaveRows; }
  constexpr int64_t firstOf(int64_t save) const { return save == 0 ? 0 : (save * SaveRows + at + ChunkRows - 1) / ChunkRows; }
};
// Chunks of one saved state: 64 rows, and a chunk begun before them.
constexpr int ChunksOfSave = SaveRows / ChunkRows + 1;

// Where the first saved state of segment s is kept; its others follow. A save begins in every 64 rows at most.
constexpr int64_t savedState(int64_t begin, int64_t s) { return begin / SaveRows + s; }
inline int64_t savedStates(int64_t rows, int64_t segments) { return (rows + SaveRows - 1) / SaveRows + segments; }

// The factor a of head h in multi-scale retention, exact for h < 20; above, the nearest f32 is 1.
inline float retentionDecay(int64_t h) {
  return static_cast<float>(1.0 - std::ldexp(1.0, -5 - static_cast<int>(std::min<int64_t>(h, 1000))));
}

// What is wrong with attributes and sizes, in words; empty when nothing is. State is any of "… heads key value", or absent.
inline std::string headLimit(const Call& call, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& state) {
  const double asked = call.attributes.number("heads");
  const auto heads = static_cast<int64_t>(asked >= 1 && asked <= static_cast<double>(k[1]) ? asked : 0);
  if (heads == 0 || asked != static_cast<double>(heads) || k[1] % heads != 0 || v[1] % heads != 0)
    return "heads divides the columns of q, k and v, got " + numberText(asked);
  const int64_t key = k[1] / heads, value = v[1] / heads;
  if (key > KeyMax || value > ValueMax)
    return "a head has at most 256 keys and 512 values, got " + std::to_string(key) + " and " + std::to_string(value);
  if (call.attributes.flag("retention") && g.shape.rank > 0) return "g is not given with retention, got both";
  if (state.shape.rank == 0 || (state[1] == heads && state[2] == key && state[3] == value)) return {};
  return "a state is (heads, keys, values) of each head, got " + text(state.shape);
}
inline std::string savesLimit(const Tensor& saved, const Tensor& segments, int64_t rows) {
  const int64_t saves = savedStates(rows, segments[0]);
  if (saved.shape.rank == 0 || saved[0] == saves) return {};
  return "saved has " + std::to_string(saves) + " states, got " + std::to_string(saved[0]);
}

inline std::string linearAttentionLimit(const Call& call) {
  std::string wrong = dimsMismatch(call,
                                   {"activation rows keys", "activation rows keys", "activation rows values", "? activation rows keys",
                                    "i32 segments 5", "? segments heads key value", "? slots heads key value", "? slots 15 columns"},
                                   {"activation rows values", "segments heads key value", "saves heads key value"});
  const Tensor &k = call.inputs[1], &v = call.inputs[2], &g = call.inputs[3], &segments = call.inputs[4];
  const Tensor &initial = call.inputs[5], &carried = call.inputs[6], &tail = call.inputs[7], &saved = call.outputs[2];
  for (const Tensor* state : {&initial, &carried, &call.outputs[1], &saved})
    if (wrong.empty()) wrong = headLimit(call, k, v, g, *state);
  if (wrong.empty()) wrong = savesLimit(saved, segments, k[0]);
  if (!wrong.empty()) return wrong;
  const bool carries = carried.shape.rank > 0;
  if (carries != (tail.shape.rank > 0)) return "carried and tail are given together, got one";
  if (carries && initial.shape.rank > 0) return "initial or carried is given, got both";
  const int64_t columns = k[1] + v[1] + (g.shape.rank > 0 ? k[1] : 0);
  if (carries && tail[2] != columns) return "tail has " + std::to_string(columns) + " columns, got " + std::to_string(tail[2]);
  return {};
}
inline void checkLinearAttention(const Call& call) {
  const Tensor& carried = call.inputs[6];
  checkSegments(call, call.inputs[4], call.inputs[0][0], carried.shape.rank > 0 ? carried[0] : 0);
}

inline std::string linearAttentionGradLimit(const Call& call) {
  std::string wrong = dimsMismatch(call,
                                   {"? activation rows values", "? segments heads key value", "activation rows keys",
                                    "activation rows keys", "activation rows values", "? activation rows keys", "i32 segments 5",
                                    "saves heads key value"},
                                   {"activation rows keys", "activation rows keys", "activation rows values", "activation rows keys",
                                    "segments heads key value"});
  const Tensor &k = call.inputs[3], &v = call.inputs[4], &g = call.inputs[5], &saved = call.inputs[7];
  for (const Tensor* state : {&saved, &call.inputs[1], &call.outputs[4]})
    if (wrong.empty()) wrong = headLimit(call, k, v, g, *state);
  return wrong.empty() ? savesLimit(saved, call.inputs[6], k[0]) : wrong;
}
inline void checkLinearAttentionGrad(const Call& call) { checkSegments(call, call.inputs[6], call.inputs[2][0], 0); }

}  // namespace selscan::ops
