// What the kernels of cast share on the host. See lib/ops/cast.ts.
#pragma once
#include "core/dims.h"

namespace selscan::ops {

inline std::string castLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call, {"float ..."}, {"float ..."});
  if (!wrong.empty()) return wrong;
  const std::string& word = call.attributes.word("dtype");
  const std::string got = name(call.outputs[0].dtype);
  return word == got || (word == "same" && call.inputs[0].dtype == call.outputs[0].dtype)
             ? ""
             : "the output has the dtype of the attribute, " + word + ", got " + got;
}

}  // namespace selscan::ops
