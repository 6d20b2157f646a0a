#include "core/dims.h"

#include <map>
#include <optional>
#include <sstream>

namespace selscan {
namespace {

struct Bound {
  std::map<std::string, int64_t> sizes;
  std::optional<Shape> any;  // what "..." stands for
};

// Empty, or what is wrong with one tensor. Sizes met for the first time are bound to their names.
std::string mismatch(const Tensor& tensor, const std::string& pattern, Bound& bound) {
  if (pattern == "...") {
    if (!bound.any) bound.any = tensor.shape;
    if (*bound.any == tensor.shape && tensor.dtype == Dtype::f32) return {};
    return "f32 " + text(*bound.any) + ", got " + name(tensor.dtype) + " " + text(tensor.shape);
  }
  std::istringstream words(pattern);
  std::string word;
  Dtype dtype = Dtype::f32;
  int rank = 0;
  bool agrees = true, half = false;
  while (words >> word) {
    if (word == "i32") {
      dtype = Dtype::i32;
      continue;
    }
    if (word == "float") {
      half = tensor.dtype == Dtype::bf16;
      continue;
    }
    const int64_t size = rank < tensor.shape.rank ? tensor[rank] : 0;
    const bool fixed = word.find_first_not_of("0123456789") == std::string::npos;
    const int64_t expected = fixed ? std::stoll(word) : bound.sizes.try_emplace(word, size).first->second;
    agrees = agrees && size == expected;
    rank++;
  }
  if (agrees && rank == tensor.shape.rank && (half || dtype == tensor.dtype)) return {};
  return "(" + pattern + "), got shape " + text(tensor.shape);
}

}  // namespace

std::string dimsMismatch(const Call& call, std::initializer_list<const char*> inputs, std::initializer_list<const char*> outputs,
                         const char* attribute) {
  Bound bound;
  const auto compare = [&](std::span<const Tensor> tensors, std::initializer_list<const char*> patterns, const char* side, bool optional) {
    check(tensors.size() == patterns.size(), "NATIVE", "kernel: has ", patterns.size(), " ", side, "s, got ", tensors.size());
    for (size_t i = 0; i < tensors.size(); i++) {
      std::string pattern = patterns.begin()[i];
      const bool marked = pattern.starts_with("? ");
      if ((marked || optional) && tensors[i].shape.rank == 0) continue;
      if (marked) pattern.erase(0, 2);
      const std::string wrong = mismatch(tensors[i], pattern, bound);
      if (!wrong.empty()) return std::string(side) + " " + std::to_string(i) + " is " + wrong;
    }
    return std::string();
  };
  std::string wrong = compare(call.inputs, inputs, "input", false);
  const Shape& first = call.outputs.empty() ? Shape{} : call.outputs[0].shape;
  if (wrong.empty() && attribute && first.rank > 0 && static_cast<double>(first[0]) != call.attributes.number(attribute))
    wrong = std::string(attribute) + " is " + std::to_string(first[0]) + " in the output, got another in the attribute";
  return wrong.empty() ? compare(call.outputs, outputs, "output", true) : wrong;
}

void checkNoScalar(const Call& call) {
  for (const auto tensors : {call.inputs, call.outputs})
    for (const Tensor& tensor : tensors)
      check(tensor.data == nullptr || tensor.shape.rank > 0, "BAD_SHAPE", "kernel: takes no scalars, got one");
}

}  // namespace selscan
