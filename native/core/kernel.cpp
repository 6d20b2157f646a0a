#include "core/kernel.h"

#include <algorithm>

namespace selscan {

std::string text(const Shape& shape) {
  std::string out = "[";
  for (int i = 0; i < shape.rank; i++) out += (i ? "," : "") + std::to_string(shape[i]);
  return out + "]";
}

const Attribute& Attributes::at(std::string_view name) const {
  for (const auto& [key, value] : entries)
    if (key == name) return value;
  throw Error("NATIVE", "attribute " + std::string(name) + " is missing");
}

// A function-local static: safe to use from registrars that run before main.
static std::vector<Kernel>& registry() {
  static std::vector<Kernel> list;
  return list;
}

const std::vector<Kernel>& kernels() { return registry(); }

const Kernel* findKernel(std::string_view device, std::string_view name) {
  for (const Kernel& kernel : registry())
    if (kernel.device == device && kernel.name == name) return &kernel;
  return nullptr;
}

static std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> out;
  std::istringstream stream{std::string(text)};
  for (std::string word; stream >> word;) out.push_back(word);
  return out;
}

Register::Register(const char* name, const char* device, const char* signature, KernelInfo info) {
  const std::string_view text = signature;
  const size_t arrow = text.find("->"), semicolon = std::min(text.find(';'), text.size());
  Kernel kernel{.name = name, .device = device, .signature = signature, .inputs = words(text.substr(0, arrow)),
                .outputs = words(text.substr(arrow + 2, semicolon - arrow - 2)),
                .attributes = semicolon < text.size() ? words(text.substr(semicolon + 1)) : std::vector<std::string>{},
                .updates = {}, .info = std::move(info)};
  for (size_t i = 0; i < kernel.inputs.size(); i++) {
    if (!kernel.inputs[i].ends_with('*')) continue;
    kernel.inputs[i].pop_back();
    kernel.updates.push_back(static_cast<int>(i));
  }
  registry().push_back(std::move(kernel));
}

}  // namespace selscan
