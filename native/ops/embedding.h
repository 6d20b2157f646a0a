// What the embedding and its gradient are on every device: their limits, and which ids they take.
#pragma once
#include <string>

#include "core/dims.h"
#include "ops/linear.h"

namespace selscan::ops {

// Ids that the host knows are judged before the run; of ids computed on the way, those outside the table give NaN.
inline void checkIds(const Tensor& ids, int64_t vocab) {
  if (ids.storage != Storage::input || !ids) return;
  for (int64_t row = 0; row < ids[0]; row++) {
    const int32_t id = ids.i32()[row];
    check(id >= -1 && id < vocab, "BAD_INPUT", "embedding: ids are in [0, ", vocab, ") or -1 for a spare row, got ", id,
          " in row ", row, "; was the text encoded with another tokenizer?");
  }
}

inline std::string embeddingLimit(const Call& call) {
  const std::string wrong = dimsMismatch(
      call, {"i32 rows", weightPattern(call, 1, "i8 vocab dim", "float vocab dim"), "? bf16 vocab groups"}, {"rows dim"});
  return wrong.empty() ? scalesLimit(call, 1, 2) : wrong;
}
inline void checkEmbedding(const Call& call) { checkIds(call.inputs[0], call.inputs[1][0]); }

inline std::string embeddingGradLimit(const Call& call) {
  return dimsMismatch(call, {"rows dim", "i32 rows"}, {"vocab dim"}, "vocab");
}
inline void checkEmbeddingGrad(const Call& call) { checkIds(call.inputs[1], call.outputs[0][0]); }

}  // namespace selscan::ops
