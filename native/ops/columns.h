// What the kernels of split, concat, gatherRows and scatterRows share on the host: a program read from a file may claim
// anything, so widths are held against the shapes, and indices against the rows, before the first copy. See lib/ops/columns.ts.
#pragma once
#include "core/dims.h"
#include "core/segments.h"

namespace selscan::ops {

// A side that nobody reads, or that is absent, has no shape.
inline bool hasColumns(const Tensor& side, double columns) {
  return side.shape.rank == 0 || static_cast<double>(side[1]) == columns;
}

inline std::string splitLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call, {"activation rows width"}, {"activation rows first", "activation rows second"});
  if (!wrong.empty()) return wrong;
  const auto [a, b] = call.out<2>();
  const double width = static_cast<double>(call.inputs[0][1]), first = call.attributes.number("first");
  const bool all = first >= 0 && first <= width && hasColumns(a, first) && hasColumns(b, width - first);
  return all ? "" : "first + second is the width of x, got " + text(a.shape) + " and " + text(b.shape);
}

inline std::string concatLimit(const Call& call) {
  const std::string wrong =
      dimsMismatch(call, {"? activation rows first", "? activation rows second"}, {"activation rows width"});
  if (!wrong.empty()) return wrong;
  const auto [a, b] = call.in<2>();
  const double first = call.attributes.number("first"), second = call.attributes.number("second");
  const bool sides = first >= 0 && second >= 0 && hasColumns(a, first) && hasColumns(b, second);
  const bool fits = sides && static_cast<double>(call.outputs[0][1]) == first + second;
  return fits ? "" : "first + second is the width of y, got " + text(call.outputs[0].shape);
}

inline std::string gatherLimit(const Call& call) {
  return dimsMismatch(call, {"activation rows dim", "i32 picks"}, {"activation picks dim"});
}
inline std::string scatterLimit(const Call& call) {
  return dimsMismatch(call, {"activation picks dim", "i32 picks"}, {"activation rows dim"}, "rows");
}

inline void checkIndex(const Tensor& index, int64_t rows, const char* where) {
  checkHostInput(index, where);
  for (int64_t i = 0; i < index[0]; i++)
    check(index.i32()[i] >= -1 && index.i32()[i] < rows, "BAD_INPUT", where, ": index is a row in [0, ", rows, ") or -1, got ",
          index.i32()[i], " at ", i);
}
inline void checkGather(const Call& call) { checkIndex(call.inputs[1], call.inputs[0][0], "gatherRows"); }
inline void checkScatter(const Call& call) { checkIndex(call.inputs[1], call.outputs[0][0], "scatterRows"); }

}  // namespace selscan::ops
