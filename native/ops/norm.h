// What rmsNorm and layerNorm are on every device, forward and backward: their limits. See lib/ops/norm.ts.
#pragma once
#include <string>

#include "ops/linear.h"

namespace selscan::ops {

inline std::string tooWide(int64_t dim) {
  constexpr int64_t DimMost = int64_t{1} << 30;  // what lies beyond a row's end by less than a block's width is still an int
  return dim > DimMost ? "dim is at most 2^30, got " + std::to_string(dim) : "";
}

// Of the forward pass, after the shapes: y has the dtype of the attribute.
inline std::string normLimit(const Call& call, const std::string& wrong) {
  if (!wrong.empty()) return wrong;
  const std::string& word = call.attributes.word("dtype");
  const Dtype got = call.outputs[0].dtype;
  if (call.outputs[0].shape.rank == 0 || word == name(got) || (word == "same" && got == call.inputs[0].dtype))
    return tooWide(call.inputs[0][1]);
  return "y has the dtype of the attribute, " + word + ", got " + name(got);
}
inline std::string rmsNormLimit(const Call& call) {
  const char* rows = each(call, "float rows dim", "rows dim");
  return normLimit(call, dimsMismatch(call, {rows, "? dim", "? dim", "? rows dim"}, {rows, "rows dim", "rows"}));
}
inline std::string layerNormLimit(const Call& call) {
  const char* rows = each(call, "float rows dim", "rows dim");
  return normLimit(call, dimsMismatch(call, {rows, "dim", "? dim", "? rows dim"}, {rows, "rows dim", "rows", "rows"}));
}

inline std::string rmsNormGradLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call,
                                         {each(call, "? float rows dim", "? rows dim"), "? rows dim",
                                          each(call, "float rows dim", "rows dim"), "? dim", "rows"},
                                         {"rows dim", "dim", "dim"});
  return wrong.empty() ? tooWide(call.inputs[2][1]) : wrong;
}
inline std::string layerNormGradLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call,
                                         {each(call, "? float rows dim", "? rows dim"), "? rows dim",
                                          each(call, "float rows dim", "rows dim"), "dim", "rows", "rows"},
                                         {"rows dim", "dim", "dim"});
  return wrong.empty() ? tooWide(call.inputs[2][1]) : wrong;
}

}  // namespace selscan::ops
