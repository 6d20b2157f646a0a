// What the token shift is on every device, forward and backward: its limits and its checks. See lib/ops/token-shift.ts.
#pragma once
#include <string>

#include "core/dims.h"
#include "core/segments.h"

namespace selscan::ops {

// Columns that come from another row; the others are ⌈dim/2⌉.
inline int64_t shiftedColumns(int64_t dim) { return dim / 2; }

inline std::string shiftLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call, {"activation rows dim", "i32 segments 5", "? slots half"}, {"activation rows dim"});
  if (!wrong.empty()) return wrong;
  const int64_t dim = call.inputs[0][1];
  const Tensor& carried = call.inputs[2];
  if (dim < 2) return "dim is at least 2, got " + std::to_string(dim);
  if (carried.shape.rank > 0 && carried[1] != shiftedColumns(dim))
    return "carried is ⌊dim/2⌋ wide, got " + std::to_string(carried[1]) + " for dim " + std::to_string(dim);
  return {};
}
inline void checkShift(const Call& call) {
  const Tensor& carried = call.inputs[2];
  checkSegments(call, call.inputs[1], call.inputs[0][0], carried.shape.rank > 0 ? carried[0] : 0);
}

inline std::string shiftGradLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call, {"activation rows dim", "i32 segments 5"}, {"activation rows dim"});
  return wrong.empty() && call.inputs[0][1] < 2 ? "dim is at least 2, got " + std::to_string(call.inputs[0][1]) : wrong;
}
inline void checkShiftGrad(const Call& call) { checkSegments(call, call.inputs[1], call.inputs[0][0], 0); }

}  // namespace selscan::ops
