// What fold, patchRows and its gradient are on every device: limits and checks. See lib/ops/patches.ts.
#pragma once
#include <string>

#include "core/dims.h"
#include "core/segments.h"
#include "ops/whole.h"

namespace selscan::ops {

inline std::string foldLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call, {"activation rows dim"}, {"activation lines width"});
  if (!wrong.empty() || call.outputs[0].shape.rank == 0) return wrong;
  const Shape &x = call.inputs[0].shape, &y = call.outputs[0].shape;
  if (static_cast<double>(y[1]) != call.attributes.number("width") || x.elements() != y.elements())
    return "y has the elements of x in rows of the attribute width, got " + text(x) + " and " + text(y);
  return {};
}

inline std::string patchRowsLimit(const Call& call) {
  std::string wrong = dimsMismatch(call, {"? patches width", "i32 patches 5", "? slots width"}, {"rows dim"}, "rows");
  if (wrong.empty()) wrong = wholeLimit(call, "rows", 1);
  if (wrong.empty()) wrong = wholeLimit(call, "patch", 1);
  if (!wrong.empty()) return wrong;
  const Shape &x = call.inputs[0].shape, &carried = call.inputs[2].shape, &y = call.outputs[0].shape;
  if (x.rank == 0 && carried.rank == 0) return "x or carried is given, got neither";
  const int64_t width = x.rank > 0 ? x[1] : carried[1], patch = static_cast<int64_t>(call.attributes.number("patch"));
  if (width % patch != 0 || (y.rank > 0 && y[1] != width / patch))
    return "a row of x or carried is " + std::to_string(patch) + " of y, got " + std::to_string(width) + " columns and y " + text(y);
  return {};
}

inline std::string patchRowsGradLimit(const Call& call) {
  std::string wrong = dimsMismatch(call, {"rows dim", "i32 patches 5"}, {"patches width"});
  if (wrong.empty()) wrong = wholeLimit(call, "patch", 1);
  if (!wrong.empty() || call.outputs[0].shape.rank == 0) return wrong;
  const int64_t dim = call.inputs[0][1], width = call.outputs[0][1], patch = static_cast<int64_t>(call.attributes.number("patch"));
  const bool fits = width % patch == 0 && width / patch == dim;
  return fits ? "" : "a row of dx is " + std::to_string(patch) + " of dy, got " + std::to_string(width) + " and " + std::to_string(dim) + " columns";
}

// For .checkInputs: throws BAD_INPUT unless segments are in order and inside their patches.
inline void checkPatches(const Call& call, const char* op, const Tensor& segments, int64_t rows, int64_t slots) {
  checkSegments(call, segments, rows, slots);
  const auto patch = static_cast<int64_t>(call.attributes.number("patch"));
  for (int64_t s = 0; s < segments[0]; s++) {
    const Segment segment = segmentAt(segments.i32(), s);
    const int64_t end = int64_t{segment.position} + (segment.end - segment.begin);
    check(segment.begin == segment.end || end <= patch + 1, "BAD_INPUT", op, ": a segment ends in its patch, at position ", patch + 1,
          " at most, got ", end, " in segment ", s);
  }
}
inline void checkPatchRows(const Call& call) {
  const auto [x, segments, carried] = call.in<3>();
  checkPatches(call, "patchRows", segments, static_cast<int64_t>(call.attributes.number("rows")), carried.shape.rank > 0 ? carried[0] : 0);
  for (int64_t s = 0; s < segments[0] && x.shape.rank == 0; s++) {
    const Segment segment = segmentAt(segments.i32(), s);
    check(segment.begin == segment.end || segment.position > 0, "BAD_INPUT",
          "patchRows: a segment at position 0 begins a patch, of which x has the row, got no x for segment ", s);
  }
}
inline void checkPatchRowsGrad(const Call& call) { checkPatches(call, "patchRowsGrad", call.inputs[1], call.inputs[0][0], 0); }

}  // namespace selscan::ops
