// The one error of the native side. It crosses the border as a SelscanError with the same code and sentence.
#pragma once
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

}  // namespace selscan
