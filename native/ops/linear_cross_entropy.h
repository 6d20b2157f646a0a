// What the head and its loss are on every device: attributes, limits, and which targets are refused.
#pragma once
#include "ops/linear.h"

namespace selscan::ops {

// The loss against target ids: which rows count, and how the target's share is smoothed over the vocabulary.
struct TargetLoss {
  const int32_t* targets;
  int32_t ignore;
  int64_t vocab;
  float smoothing;
};
inline TargetLoss targetLossOf(const Call& call, const Tensor& targets, int64_t vocab) {
  return {targets.i32(), static_cast<int32_t>(call.attributes.number("ignore")), vocab,
          static_cast<float>(call.attributes.number("smoothing"))};
}

inline std::string crossEntropyLimit(const Call& call) {
  std::string wrong = dimsMismatch(call,
                                   {each(call, "float rows dim", "rows dim"), weightPattern(call, 1, "i8 vocab dim", "float vocab dim"),
                                    "? vocab", "i32 rows", "? bf16 vocab groups"},
                                   {"rows", "rows"});
  if (wrong.empty()) wrong = scalesLimit(call, 1, 4);
  return wrong.empty() ? precisionLimit(call) : wrong;
}
inline std::string crossEntropyGradLimit(const Call& call) {
  const char* x = each(call, "float rows dim", "rows dim");
  const std::string wrong = dimsMismatch(call, {"rows", x, "float vocab dim", "? vocab", "i32 rows", "rows"}, {x, "vocab dim", "vocab"});
  return wrong.empty() ? precisionLimit(call) : wrong;
}

// For .checkInputs: throws BAD_INPUT for a target outside the vocabulary that is not to be ignored. Targets that the program
// computes are not seen here: the loss of a bad one is NaN.
inline void checkTargets(const Call& call, const Tensor& targets, int64_t vocab) {
  if (targets.storage != Storage::input || !targets) return;
  const auto ignore = static_cast<int32_t>(call.attributes.number("ignore"));
  for (int64_t row = 0; row < targets[0]; row++) {
    const int32_t target = targets.i32()[row];
    check((target >= 0 && target < vocab) || target == ignore, "BAD_INPUT", "linearCrossEntropy: targets are in [0, ", vocab,
          ") or ", ignore, " to be ignored, got ", target, " in row ", row);
  }
}

}  // namespace selscan::ops
