// Runs all tests of the emulated device; exits 1 when one fails. `fiber` and `block` measure instead; `race NAME right|wrong` and
// `devices` are what tests start.
#include <exception>

#include "support.h"

int main(int argc, char** argv) {
  using namespace selscan::test;
  if (argc == 4 && argv[1] == std::string("race")) return runRace(argv[2], argv[3] == std::string("right"));
  if (argc == 2 && argv[1] == std::string("devices")) return printDevices();
  if (argc > 1) return measure(argv[1]);
  int passed = 0, failed = 0;
  for (const auto& [title, run] : tests()) {
    failures().clear();
    skipped().clear();
    try {
      run();
    } catch (const std::exception& error) {
      failures().push_back(std::string("threw: ") + error.what());
    }
    failures().empty() ? passed++ : failed++;
    std::cout << (failures().empty() ? "ok   " : "FAIL ") << title;
    if (!skipped().empty()) std::cout << " (not checked: " << skipped() << ")";
    std::cout << "\n";
    for (size_t i = 0; i < failures().size() && i < 10; i++) std::cout << "     " << failures()[i] << "\n";
    if (failures().size() > 10) std::cout << "     and " << failures().size() - 10 << " more\n";
  }
  std::cout << passed << " passed, " << failed << " failed\n";
  return failed == 0 ? 0 : 1;
}
