// What the causal convolution is on every device, forward and backward: its limits and its checks.
#pragma once
#include <initializer_list>
#include <string>

#include "core/dims.h"
#include "core/segments.h"

namespace selscan::ops {

// What is wrong with the taps or the length of a tail, in words; empty when nothing is.
inline std::string tapsLimit(const Tensor& weight, std::initializer_list<const Tensor*> tails) {
  const int64_t width = weight[2];
  if (width < 2 || width > 4) return "width is 2 to 4, got " + std::to_string(width);
  for (const Tensor* tail : tails)
    if (tail->shape.rank > 0 && (*tail)[2] != width - 1)
      return "a tail is width − 1 inputs long, got " + std::to_string((*tail)[2]) + " for width " + std::to_string(width);
  return {};
}

inline std::string convLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call,
                                         {"activation rows inner", "inner 1 width", "? inner", "i32 segments 5", "? segments inner tail",
                                          "? slots inner tail"},
                                         {"activation rows inner", "segments inner tail", "segments inner tail"});
  if (!wrong.empty()) return wrong;
  return tapsLimit(call.inputs[1], {&call.inputs[4], &call.inputs[5], &call.outputs[1], &call.outputs[2]});
}
inline void checkConv(const Call& call) {
  const Tensor& carried = call.inputs[5];
  checkSegments(call, call.inputs[3], call.inputs[0][0], carried.shape.rank > 0 ? carried[0] : 0);
}

inline std::string convGradLimit(const Call& call) {
  const std::string wrong = dimsMismatch(call,
                                         {"? activation rows inner", "? segments inner tail", "activation rows inner", "inner 1 width",
                                          "? inner", "i32 segments 5", "segments inner tail"},
                                         {"activation rows inner", "inner 1 width", "inner", "segments inner tail"});
  if (!wrong.empty()) return wrong;
  return tapsLimit(call.inputs[3], {&call.inputs[1], &call.inputs[6], &call.outputs[3]});
}
inline void checkConvGrad(const Call& call) { checkSegments(call, call.inputs[5], call.inputs[2][0], 0); }

}  // namespace selscan::ops
