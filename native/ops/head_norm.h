// What the gated normalisation of heads is on every device, forward and backward: its limits. See lib/ops/head-norm.ts.
#pragma once
#include <string>

#include "core/dims.h"

namespace selscan::ops {

constexpr int64_t HeadNormMax = 1024;  // columns of one head

// Empty when `inner` columns are heads of weight's size, and rstd, where it is there, has one column for each.
inline std::string headNormSizes(int64_t inner, const Tensor& weight, const Tensor& rstd) {
  if (weight[0] > HeadNormMax || inner % weight[0] != 0)
    return "weight has the columns of one head, at most 1024 and a divisor of inner " + std::to_string(inner) + ", got " +
           std::to_string(weight[0]);
  if (rstd.shape.rank == 0 || rstd[1] == inner / weight[0]) return {};
  return "rstd has " + std::to_string(inner / weight[0]) + " columns, got " + std::to_string(rstd[1]);
}
inline std::string headNormLimit(const Call& call) {
  const std::string wrong =
      dimsMismatch(call, {"activation rows inner", "activation rows inner", "value"}, {"activation rows inner", "rows heads"});
  return wrong.empty() ? headNormSizes(call.inputs[0][1], call.inputs[2], call.outputs[1]) : wrong;
}
inline std::string headNormGradLimit(const Call& call) {
  const std::string wrong =
      dimsMismatch(call, {"activation rows inner", "activation rows inner", "activation rows inner", "value", "rows heads"},
                   {"activation rows inner", "activation rows inner", "value"});
  return wrong.empty() ? headNormSizes(call.inputs[1][1], call.inputs[3], call.inputs[4]) : wrong;
}

}  // namespace selscan::ops
