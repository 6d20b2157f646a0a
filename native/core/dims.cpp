#include "core/dims.h"

#include <algorithm>
#include <map>
#include <optional>
#include <sstream>

#include "core/device.h"

namespace selscan {
namespace {

struct Bound {
  bool bf16Activations;
  std::map<std::string, int64_t> sizes;
  std::optional<Shape> any;         // what "..." stands for
  std::optional<Dtype> activation;  // of the first tensor marked so: all others have it too
};

// Dtypes that a tensor of that pattern may have.
std::vector<Dtype> dtypesOf(const std::string& word, const Bound& bound) {
  if (word == "i32") return {Dtype::i32};
  if (word == "i8") return {Dtype::i8};
  if (word == "bf16") return {Dtype::bf16};
  if (word == "float") return {Dtype::f32, Dtype::bf16};
  if (word != "activation" || !bound.bf16Activations) return {Dtype::f32};
  return bound.activation ? std::vector{*bound.activation} : std::vector{Dtype::f32, Dtype::bf16};
}

bool sizesAgree(const Shape& shape, const std::vector<std::string>& dims, Bound& bound) {
  if (dims.size() == 1 && dims[0] == "...") {
    if (!bound.any) bound.any = shape;
    return *bound.any == shape;
  }
  if (shape.rank != static_cast<int>(dims.size())) return false;
  bool agrees = true;
  for (int i = 0; i < shape.rank; i++) {
    const bool fixed = dims[i].find_first_not_of("0123456789") == std::string::npos;
    agrees &= shape[i] == (fixed ? std::stoll(dims[i]) : bound.sizes.try_emplace(dims[i], shape[i]).first->second);
  }
  return agrees;
}

// Empty, or what is wrong with one tensor. Sizes met for the first time are bound to their names.
std::string mismatch(const Tensor& tensor, const std::string& pattern, Bound& bound) {
  std::istringstream stream(pattern);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  const std::string first = words.empty() ? "" : words[0];
  const bool typed = first == "i32" || first == "i8" || first == "bf16" || first == "float" || first == "activation";
  const std::vector<Dtype> dtypes = dtypesOf(first, bound);
  if (typed) words.erase(words.begin());
  const bool known = std::find(dtypes.begin(), dtypes.end(), tensor.dtype) != dtypes.end();
  if (known && first == "activation") bound.activation = tensor.dtype;
  const bool agrees = sizesAgree(tensor.shape, words, bound);
  if (known && agrees) return {};
  std::string expected;
  for (const Dtype dtype : dtypes) expected += (expected.empty() ? "" : " or ") + std::string(name(dtype));
  std::string dims;
  for (const std::string& word : words)
    dims += (dims.empty() ? "" : " ") + (word == "..." ? text(*bound.any) : word);
  return expected + " (" + dims + "), got " + name(tensor.dtype) + " " + text(tensor.shape);
}

}  // namespace

std::string dimsMismatch(const Call& call, std::initializer_list<const char*> inputs, std::initializer_list<const char*> outputs,
                         const char* attribute) {
  Bound bound{.bf16Activations = call.device.storesBf16Activations(), .sizes = {}, .any = {}, .activation = {}};
  const auto compare = [&](std::span<const Tensor> tensors, std::initializer_list<const char*> patterns, const char* side, bool optional) {
    check(tensors.size() == patterns.size(), "NATIVE", "kernel: has ", patterns.size(), " ", side, "s, got ", tensors.size());
    for (size_t i = 0; i < tensors.size(); i++) {
      std::string pattern = patterns.begin()[i];
      const bool marked = pattern.starts_with("? ");
      if ((marked || optional) && !tensors[i].given) continue;
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

}  // namespace selscan
