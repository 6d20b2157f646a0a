// What the kernels of sample and recordTokens share on the host, and the bits of the history. See lib/ops/sample.ts.
#pragma once
#include "core/dims.h"
#include "core/segments.h"

namespace selscan::ops {

// An element of the history: how often the token was generated, and a bit that says that it was in the prompt.
constexpr int32_t InPrompt = 1 << 24, CountMask = InPrompt - 1;

inline std::string sampleLimit(const Call& call) {
  return dimsMismatch(call, {"samples vocab", "samples 6", "i32 samples 5", "i32 samples", "? i32 slots vocab"},
                      {"i32 samples", "samples"});
}
inline std::string recordLimit(const Call& call) {
  return dimsMismatch(call, {"i32 rows", "i32 segments 5", "i32 slots vocab"}, {});
}

inline void checkSample(const Call& call) {
  const auto [logits, settings, limits, position, history] = call.in<5>();
  checkHostInput(settings, "sample: settings");
  checkHostInput(limits, "sample: limits");
  checkHostInput(position, "sample: position");
  SlotUse use("sample", "sample");
  for (int64_t s = 0; s < logits[0]; s++) {
    const int32_t* line = limits.i32() + 5 * s;
    check(position.i32()[s] >= 0, "BAD_INPUT", "sample: position is at least 0, got ", position.i32()[s], " in sample ", s);
    if (history.shape.rank == 2) use.add(s, line[3], line[4], history[0]);
  }
  use.check();
}

inline void checkRecord(const Call& call) {
  const auto [ids, segments, history] = call.in<3>();
  checkHostInput(ids, "recordTokens: ids");
  checkSegments(call, segments, ids[0], history[0]);
  for (int64_t s = 0; s < segments[0]; s++) {
    const auto [begin, end, position, from, to] = segmentAt(segments.i32(), s);
    for (int64_t row = begin; row < end; row++)
      check(ids.i32()[row] >= 0 && ids.i32()[row] < history[1], "BAD_INPUT", "recordTokens: ids are in [0, ", history[1],
            "), got ", ids.i32()[row], " in row ", row);
  }
}

}  // namespace selscan::ops
