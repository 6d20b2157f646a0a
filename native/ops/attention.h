// What sliding-window attention is on every device, forward and backward: heads, rings of keys and values, limits and checks. See
// lib/ops/attention.ts.
#pragma once
#include <algorithm>
#include <string>

#include "core/segments.h"
#include "ops/linear.h"
#include "ops/whole.h"

namespace selscan::ops {

// Keys are taken in tiles that begin at multiples of this position, whatever the run's first row is: a row's sums have the same
// order however its sequence is cut. lib/ops/attention.ts has the same number.
constexpr int64_t KeyTile = 64;
constexpr int64_t HeadDimMax = 256;

struct Heads {
  int64_t heads, kvHeads, headDim;
  int64_t window;  // keys that a query sees, its own among them; 0: all

  int64_t group() const { return heads / kvHeads; }               // query heads of one kv head
  int64_t width() const { return heads * headDim; }               // columns of q and of y
  int64_t packed() const { return (heads + 2 * kvHeads) * headDim; }  // columns of qkv
  int64_t keyColumn(int64_t kvHead) const { return (heads + kvHead) * headDim; }
  int64_t valueColumn(int64_t kvHead) const { return (heads + kvHeads + kvHead) * headDim; }
  // First position that the query at `position` sees.
  int64_t firstSeen(int64_t position) const { return window == 0 ? 0 : std::max<int64_t>(0, position - window + 1); }
};
inline Heads headsOf(const Attributes& attributes) {
  const auto whole = [&](const char* name) { return static_cast<int64_t>(attributes.number(name)); };
  return {whole("heads"), whole("kvHeads"), whole("headDim"), whole("window")};
}

// What is wrong with the attributes and a ring, in words; empty when nothing is.
inline std::string headsLimit(const Call& call, const Tensor& qkv, const Tensor& keys) {
  for (const char* name : {"heads", "kvHeads", "headDim", "window"}) {
    const std::string wrong = wholeLimit(call, name, std::string_view(name) == "window" ? 0 : 1);
    if (!wrong.empty()) return wrong;
  }
  const Heads heads = headsOf(call.attributes);
  if (heads.headDim > HeadDimMax) return "headDim is 1 to 256, got " + std::to_string(heads.headDim);
  if (heads.heads > 65536 || heads.kvHeads > heads.heads || heads.heads % heads.kvHeads != 0)
    return "kvHeads divides heads, got " + std::to_string(heads.kvHeads) + " and " + std::to_string(heads.heads);
  if (qkv[1] != heads.packed())
    return "qkv has " + std::to_string(heads.packed()) + " columns, got " + std::to_string(qkv[1]);
  if (keys.shape.rank == 0) return {};
  if (keys[1] != heads.kvHeads || keys[3] != heads.headDim || keys[2] % KeyTile != 0)
    return "a ring is (rings, kvHeads, a multiple of 64, headDim), got " + text(keys.shape);
  const Dtype dtype = precisionOf(call.attributes) == Precision::bf16 ? Dtype::bf16 : Dtype::f32;
  return keys.dtype == dtype ? "" : std::string("a ring is of the dtype of the precision, ") + name(dtype) + ", got " + name(keys.dtype);
}

// `rings`, `keys` and `values` begin at input `at`.
inline std::string ringLimit(const Call& call, int at) {
  const bool given = call.inputs[at].shape.rank > 0;
  if (given != (call.inputs[at + 1].shape.rank > 0) || given != (call.inputs[at + 2].shape.rank > 0))
    return "rings, keys and values are given together, got some of them";
  return given && call.inputs[at + 1].dtype != call.inputs[at + 2].dtype ? "keys and values have one dtype, got two" : "";
}

inline std::string attentionLimit(const Call& call) {
  std::string wrong = dimsMismatch(call,
                                   {"activation rows packed", "i32 segments 5", "? i32 segments", "? float slots kv capacity size",
                                    "? float slots kv capacity size"},
                                   {"activation rows width", "rows heads"});
  if (wrong.empty()) wrong = precisionLimit(call);
  if (wrong.empty()) wrong = ringLimit(call, 2);
  if (wrong.empty()) wrong = headsLimit(call, call.inputs[0], call.inputs[3]);
  if (!wrong.empty()) return wrong;
  const Heads heads = headsOf(call.attributes);
  const bool y = call.outputs[0].shape.rank == 0 || call.outputs[0][1] == heads.width();
  const bool lse = call.outputs[1].shape.rank == 0 || call.outputs[1][1] == heads.heads;
  return y && lse ? "" : "y has heads·headDim columns and lse heads, got others";
}

inline std::string attentionGradLimit(const Call& call) {
  std::string wrong = dimsMismatch(call,
                                   {"activation rows width", "activation rows packed", "activation rows width", "rows heads",
                                    "i32 segments 5", "? i32 segments", "? float slots kv capacity size", "? float slots kv capacity size"},
                                   {"activation rows packed"});
  if (wrong.empty()) wrong = precisionLimit(call);
  if (wrong.empty()) wrong = ringLimit(call, 5);
  if (wrong.empty()) wrong = headsLimit(call, call.inputs[1], call.inputs[6]);
  if (!wrong.empty()) return wrong;
  const Heads heads = headsOf(call.attributes);
  const bool fits = call.inputs[0][1] == heads.width() && call.inputs[3][1] == heads.heads;
  return fits ? "" : "dy and y have heads·headDim columns and lse heads, got others";
}

// For .checkInputs: segments, and rings where they are given, each in range, used once, and large enough for what its segment sees and
// writes.
inline void checkRings(const Call& call, const Tensor& qkv, const Tensor& segments, const Tensor& rings, const Tensor& keys) {
  checkSegments(call, segments, qkv[0], 0);
  if (rings.shape.rank == 0) return;
  checkHostInput(rings, "rings");
  const Heads heads = headsOf(call.attributes);
  const int64_t capacity = keys[2];
  SlotUse use("rings", "segment");
  for (int64_t s = 0; s < segments[0]; s++) {
    const Segment segment = segmentAt(segments.i32(), s);
    const int64_t ring = rings.i32()[s], rows = segment.end - segment.begin;
    if (rows == 0) continue;
    use.add(s, ring, ring, keys[0]);
    if (ring == 0) continue;
    const int64_t before = segment.position - heads.firstSeen(segment.position);
    check(before + rows <= capacity, "BAD_INPUT", "rings: a ring of ", capacity, " positions holds what a segment sees before it and its rows, got ",
          before, " + ", rows, " in segment ", s, "; ", heads.window == 0 ? "load the model with a larger contextMax" : "run fewer rows at once");
  }
  use.check();
}
inline void checkAttention(const Call& call) { checkRings(call, call.inputs[0], call.inputs[1], call.inputs[2], call.inputs[3]); }
inline void checkAttentionGrad(const Call& call) { checkRings(call, call.inputs[1], call.inputs[4], call.inputs[5], call.inputs[6]); }

}  // namespace selscan::ops
