// What the selective scan is on every device, forward and backward: its limits, and where states are saved for the gradient.
#pragma once
#include <string>

#include "core/dims.h"
#include "core/segments.h"

namespace selscan::ops {

// Rows between two saved states. lib/ops/selective-scan.ts computes the number of chunks from the same value.
constexpr int ScanChunk = 64;
constexpr int ScanStateMax = 64;

// Where the state at the start of the first chunk of segment s is kept; its other chunks follow.
constexpr int64_t savedChunk(int64_t begin, int64_t s) { return begin / ScanChunk + s; }

// What is wrong with the sizes that the kernels index by, in words; empty when nothing is.
inline std::string groupsLimit(const Tensor& A, const Tensor& B) {
  const int64_t inner = A[0], state = A[1], bands = B[1];
  if (state > ScanStateMax) return "state is 1 to 64, got " + std::to_string(state);
  if (bands % state != 0 || inner % (bands / state) != 0)
    return "bands are groups·state with groups a divisor of inner, got " + std::to_string(bands) + " bands for state " +
           std::to_string(state) + " and inner " + std::to_string(inner);
  return {};
}
inline std::string chunksLimit(const Tensor& saved, const Tensor& segments, int64_t rows) {
  const int64_t chunks = (rows + ScanChunk - 1) / ScanChunk + segments[0];
  if (saved.shape.rank == 0 || saved[0] == chunks) return {};
  return "saved has " + std::to_string(chunks) + " chunks, got " + std::to_string(saved[0]);
}

inline std::string scanLimit(const Call& call) {
  std::string wrong = dimsMismatch(call,
                                   {"activation rows inner", "activation rows inner", "inner state", "activation rows bands",
                                    "activation rows bands", "? inner", "? activation rows inner", "? inner", "i32 segments 5",
                                    "? segments inner state", "? slots inner state"},
                                   {"activation rows inner", "segments inner state", "chunks inner state"});
  if (wrong.empty()) wrong = groupsLimit(call.inputs[2], call.inputs[3]);
  return wrong.empty() ? chunksLimit(call.outputs[2], call.inputs[8], call.inputs[0][0]) : wrong;
}
inline void checkScan(const Call& call) {
  const Tensor &segments = call.inputs[8], &carried = call.inputs[10];
  checkSegments(call, segments, call.inputs[0][0], carried.shape.rank > 0 ? carried[0] : 0);
}

inline std::string scanGradLimit(const Call& call) {
  std::string wrong = dimsMismatch(
      call,
      {"? activation rows inner", "? segments inner state", "activation rows inner", "activation rows inner", "inner state",
       "activation rows bands", "activation rows bands", "? inner", "? activation rows inner", "? inner", "i32 segments 5",
       "chunks inner state"},
      {"activation rows inner", "activation rows inner", "inner state", "activation rows bands", "activation rows bands", "inner",
       "activation rows inner", "inner", "segments inner state"});
  if (wrong.empty()) wrong = groupsLimit(call.inputs[4], call.inputs[5]);
  return wrong.empty() ? chunksLimit(call.inputs[11], call.inputs[10], call.inputs[2][0]) : wrong;
}
inline void checkScanGrad(const Call& call) { checkSegments(call, call.inputs[10], call.inputs[2][0], 0); }

}  // namespace selscan::ops
