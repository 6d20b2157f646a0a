// The one error of the native side. It crosses the border as a SelscanError with the same code and sentence.
#pragma once
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

namespace selscan {

struct Error : std::runtime_error {
  std::string code;  // one of ErrorCode in lib/errors.ts
  Error(std::string code, const std::string& message) : std::runtime_error(message), code(std::move(code)) {}
};

// Throws Error(code, all parts of the message joined) unless the condition holds.
template <class... Parts>
void check(bool condition, const char* code, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw Error(code, message.str());
}

// Code and sentence of whatever was thrown.
inline Error asError(const std::exception& thrown) {
  if (const auto* error = dynamic_cast<const Error*>(&thrown)) return *error;
  if (dynamic_cast<const std::bad_alloc*>(&thrown))
    return {"OUT_OF_MEMORY", "the host's memory is exhausted; use a smaller model, batch or length"};
  return {"NATIVE", thrown.what()};
}

}  // namespace selscan
