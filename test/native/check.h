// The tests' few words: TEST("a sentence") { CHECK(condition, "what was", value); }
#pragma once
#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace selscan::test {

struct Test {
  const char* title;
  void (*run)();
};
inline std::vector<Test>& tests() {
  static std::vector<Test> list;
  return list;
}
struct Add {
  Add(const char* title, void (*run)()) { tests().push_back({title, run}); }
};

// Failures of the test that is running.
inline std::vector<std::string>& failures() {
  static std::vector<std::string> list;
  return list;
}

template <class... Parts>
void checkAt(const char* file, int line, const char* condition, bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  message << file << ":" << line << ": " << condition;
  ((message << ", " << parts), ...);
  failures().push_back(message.str());
}

}  // namespace selscan::test

#define SELSCAN_JOIN2(a, b) a##b
#define SELSCAN_JOIN(a, b) SELSCAN_JOIN2(a, b)
#define TEST(title)                                                                                              \
  static void SELSCAN_JOIN(test_, __LINE__)();                                                                   \
  static const ::selscan::test::Add SELSCAN_JOIN(add_, __LINE__){title, SELSCAN_JOIN(test_, __LINE__)};           \
  static void SELSCAN_JOIN(test_, __LINE__)()
#define CHECK(condition, ...) ::selscan::test::checkAt(__FILE__, __LINE__, #condition, (condition)__VA_OPT__(, ) __VA_ARGS__)
