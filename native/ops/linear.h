// What linear layers and the gradients of their products are on every device: attributes and limits.
#pragma once
#include <string>

#include "core/device.h"
#include "core/dims.h"

namespace selscan::ops {

// What products are made of. int8: of weights in 8 bits, whatever the attribute says. bf16x3 and bf16x2: the split of the cpu's
// tiles (cpu/gemm.h), of an f32 weight and of a bf16 one.
enum class Precision : uint8_t { f32, bf16, int8, bf16x3, bf16x2 };
// What is no product of a linear has no split: bf16x3 is f32 to it.
inline Precision precisionOf(const Attributes& attributes) {
  return attributes.word("precision") == "bf16" ? Precision::bf16 : Precision::f32;
}
// For .limit of kernels with the attribute `precision`.
inline std::string precisionLimit(const Call& call) {
  const std::string &word = call.attributes.word("precision"), device = call.device.name();
  if (word == "f32" || word == "bf16" || (word == "bf16x3" && device == "cpu")) return "";
  if (word != "bf16x3") return "precision is f32, bf16 or bf16x3, got " + word;
  return "precision bf16x3 is the cpu's alone, got it on " + device + "; use f32, whose linears are six products of bf16 there";
}

enum class Activation : uint8_t { none, silu, softplus, gelu };
inline Activation activationOf(const Attributes& attributes) {
  const std::string& word = attributes.word("activation");
  return word == "silu"       ? Activation::silu
         : word == "softplus" ? Activation::softplus
         : word == "gelu"     ? Activation::gelu
                              : Activation::none;
}
inline std::string activationLimit(const Call& call) {
  const std::string& word = call.attributes.word("activation");
  const bool known = word == "none" || word == "silu" || word == "softplus" || word == "gelu";
  return known ? "" : "activation is none, silu, softplus or gelu, got " + word;
}

// The pattern of a tensor that, where the device stores activations as bf16, is f32 or bf16 whatever the others of the call are,
// and f32 elsewhere.
inline const char* each(const Call& call, const char* halves, const char* floats) {
  return call.device.storesBf16Activations() ? halves : floats;
}

// Where the device multiplies by weights in 8 bits, such a weight and the scales of its groups of 32; elsewhere, and of others, none.
inline const char* weightPattern(const Call& call, int weight, const char* eights, const char* floats) {
  return call.inputs[weight].dtype == Dtype::i8 && call.device.multipliesInt8() ? eights : floats;
}
inline std::string scalesLimit(const Call& call, int weight, int scales) {
  const Tensor &matrix = call.inputs[weight], &given = call.inputs[scales];
  if (matrix.dtype != Dtype::i8)
    return given.given ? "scales come with a weight of i8, got them with one of " + std::string(name(matrix.dtype)) : "";
  if (!given.given) return "a weight of i8 comes with scales, got none";
  const int64_t groups = (matrix[1] + 31) / 32;
  if (given[1] == groups) return "";
  return "scales are one for each 32 of " + std::to_string(matrix[1]) + ", " + std::to_string(groups) + ", got " + std::to_string(given[1]);
}

inline std::string linearLimit(const Call& call) {
  const char* out = each(call, "float rows out", "rows out");
  std::string wrong = dimsMismatch(
      call, {each(call, "float rows in", "rows in"), weightPattern(call, 1, "i8 out in", "float out in"), "? out",
             each(call, "? float rows out", "? rows out"), "? bf16 out groups"},
      {out, out});
  if (wrong.empty()) wrong = scalesLimit(call, 1, 4);
  if (wrong.empty()) wrong = precisionLimit(call);
  return wrong.empty() ? activationLimit(call) : wrong;
}
inline std::string inputGradLimit(const Call& call) {
  const std::string wrong =
      dimsMismatch(call, {each(call, "float rows out", "rows out"), "float out in"}, {each(call, "float rows in", "rows in")});
  return wrong.empty() ? precisionLimit(call) : wrong;
}
inline std::string weightGradLimit(const Call& call) {
  const std::string wrong =
      dimsMismatch(call, {each(call, "float rows out", "rows out"), each(call, "float rows in", "rows in")}, {"out in"});
  return wrong.empty() ? precisionLimit(call) : wrong;
}
inline std::string activationGradLimit(const Call& call) {
  const char* any = each(call, "float ...", "...");
  const std::string wrong = dimsMismatch(call, {any, any}, {any});
  return wrong.empty() ? activationLimit(call) : wrong;
}

}  // namespace selscan::ops
