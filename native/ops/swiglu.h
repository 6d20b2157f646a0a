// What the gate of a SwiGLU is on every device: its limits. See lib/ops/swiglu.ts.
#pragma once
#include "core/dims.h"

namespace selscan::ops {

inline std::string swigluLimit(const Call& call) {
  return dimsMismatch(call, {"activation rows inner", "activation rows inner"}, {"activation rows inner"});
}
inline std::string swigluGradLimit(const Call& call) {
  return dimsMismatch(call, {"activation rows inner", "activation rows inner", "activation rows inner"},
                      {"activation rows inner", "activation rows inner"});
}

}  // namespace selscan::ops
