// Runs all native tests; exits 1 when one fails. Tests live in the files beside this one.
#include <exception>

#include "check.h"
#include "cpu/isa.h"

int main() {
  using namespace selscan;
  int passed = 0, failed = 0;
  for (const auto& [title, run] : test::tests()) {
    test::failures().clear();
    try {
      run();
    } catch (const std::exception& error) {
      test::failures().push_back(std::string("threw: ") + error.what());
    }
    const auto& failures = test::failures();
    failures.empty() ? passed++ : failed++;
    std::cout << (failures.empty() ? "ok   " : "FAIL ") << title << "\n";
    for (size_t i = 0; i < failures.size() && i < 10; i++) std::cout << "     " << failures[i] << "\n";
    if (failures.size() > 10) std::cout << "     and " << failures.size() - 10 << " more\n";
  }
  std::cout << "instruction set " << cpu::name(cpu::isa()) << "\n" << passed << " passed, " << failed << " failed\n";
  return failed == 0 ? 0 : 1;
}
