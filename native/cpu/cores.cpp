// Threads of one core share its units of arithmetic, which our kernels keep full: a second one adds waiting, not speed. Linux says in
// /sys/devices/system/cpu which processors belong together, sched_getaffinity which of them a process may use, and control groups how
// much of their time. A quota stands in the process's own group or in any above it, in files of version 2 (cpu.max) or of version 1
// (cpu.cfs_quota_us, cpu.cfs_period_us); /proc/self/cgroup names the group of each hierarchy, /proc/self/mountinfo where it lies.
#include "cpu/cores.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string_view>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace selscan::cpu {
namespace {

constexpr size_t FileMax = 1 << 20;  // more of a file is not read: mountinfo has a line of some 100 bytes for every mount

std::string readFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  char piece[4096];
  while (text.size() < FileMax && (file.read(piece, sizeof piece), file.gcount() > 0)) text.append(piece, static_cast<size_t>(file.gcount()));
  return text;
}

std::vector<std::string_view> divide(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(at, begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view Space(" \t\r\n\0", 5);
  const size_t begin = text.find_first_not_of(Space);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(Space) - begin + 1);
}

std::optional<int64_t> wholeNumber(std::string_view text) {
  text = trimmed(text);
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

// The lowest number of a list such as "0-3,8", if `member` is in it.
std::optional<int64_t> lowestBeside(int member, std::string_view list) {
  std::optional<int64_t> lowest;
  bool found = false;
  for (const std::string_view range : divide(trimmed(list), ',')) {
    const size_t dash = range.find('-');
    const auto first = wholeNumber(range.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : wholeNumber(range.substr(dash + 1));
    if (!first || !last) return std::nullopt;
    found |= *first <= member && member <= *last;
    lowest = std::min(lowest.value_or(*first), *first);
  }
  return found ? lowest : std::nullopt;
}

// A name that processors of one core, and no others, have in common.
std::string coreOf(const std::string& folder, int processor) {
  for (const char* file : {"thread_siblings_list", "core_cpus_list"})
    if (const auto lowest = lowestBeside(processor, readFile(folder + file))) return "beside " + std::to_string(*lowest);
  const auto core = wholeNumber(readFile(folder + "core_id")), package = wholeNumber(readFile(folder + "physical_package_id"));
  if (core && package && *core >= 0) return std::to_string(*package) + " " + std::to_string(*core);
  return "alone " + std::to_string(processor);
}

// mountinfo writes blanks of paths as \040 and the like.
std::string unescaped(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); i++) {
    int code = 0;
    const bool escape = text[i] == '\\' && i + 3 < text.size() &&
                        std::from_chars(text.data() + i + 1, text.data() + i + 4, code, 8).ptr == text.data() + i + 4;
    out += escape ? static_cast<char>(code) : text[i];
    if (escape) i += 3;
  }
  return out;
}

bool contains(std::string_view list, std::string_view word) {
  const auto words = divide(list, ',');
  return std::find(words.begin(), words.end(), word) != words.end();
}

// Processors' worth of time that one group has by itself; 0 for no limit.
double quotaOf(const std::string& folder, bool unified) {
  std::optional<int64_t> quota, period;
  if (unified) {
    const std::string text = readFile(folder + "/cpu.max");
    const auto words = divide(trimmed(text), ' ');
    if (words.size() == 2) quota = wholeNumber(words[0]), period = wholeNumber(words[1]);  // "max" is no number
  } else {
    quota = wholeNumber(readFile(folder + "/cpu.cfs_quota_us"));
    period = wholeNumber(readFile(folder + "/cpu.cfs_period_us"));
  }
  if (!quota || !period || *quota <= 0 || *period <= 0) return 0;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

double smaller(double a, double b) { return a == 0 || b == 0 ? std::max(a, b) : std::min(a, b); }

// A line of mountinfo: number, parent, device, root, mount point, options, …, -, type, source, options of the file system.
struct Mount {
  std::string root, point;
  bool unified = false;
};
std::optional<Mount> groupMount(std::string_view line) {
  const size_t dash = line.find(" - ");
  if (dash == std::string_view::npos) return std::nullopt;
  const auto before = divide(line.substr(0, dash), ' '), after = divide(line.substr(dash + 3), ' ');
  if (before.size() < 6 || after.size() < 3) return std::nullopt;
  const bool unified = after[0] == "cgroup2", first = after[0] == "cgroup" && contains(trimmed(after[2]), "cpu");
  if (!unified && !first) return std::nullopt;
  return Mount{unescaped(before[3]), unescaped(before[4]), unified};
}

// The smallest quota from the process's group up to where the hierarchy is mounted.
double quotaUnder(const std::string& root, const Mount& mount, std::string_view group) {
  // A mount may show a part of the hierarchy, below its root; what lies outside of it cannot be read.
  std::string inside(group);
  if (mount.root != "/") {
    const size_t above = mount.root.size();
    const bool below = inside.starts_with(mount.root) && (inside.size() == above || inside[above] == '/');
    inside = below ? inside.substr(above) : "";
  }
  if (inside.find("..") != std::string::npos || inside.size() > 4096) inside.clear();
  double quota = 0;
  for (;;) {
    quota = smaller(quota, quotaOf(root + mount.point + inside, mount.unified));
    const size_t slash = inside.rfind('/');
    if (slash == std::string::npos) return quota;
    inside.resize(slash);
  }
}

double quotaUnder(const std::string& root) {
  const std::string groups = readFile(root + "/proc/self/cgroup"), mounts = readFile(root + "/proc/self/mountinfo");
  double quota = 0;
  for (const std::string_view line : divide(mounts, '\n')) {
    const auto mount = groupMount(line);
    if (!mount) continue;
    for (const std::string_view entry : divide(groups, '\n')) {  // "0::/a/b" of version 2, "4:cpu,cpuacct:/a/b" of version 1
      const size_t first = entry.find(':'), second = first == std::string_view::npos ? first : entry.find(':', first + 1);
      if (second == std::string_view::npos) continue;
      const std::string_view controllers = entry.substr(first + 1, second - first - 1);
      if (mount->unified ? controllers.empty() : contains(controllers, "cpu"))
        quota = smaller(quota, quotaUnder(root, *mount, trimmed(entry.substr(second + 1))));
    }
  }
  return quota;
}

// Numbers of the processors that this process may run on.
std::vector<int> allowedProcessors() {
  std::vector<int> processors;
#if defined(__linux__)
  for (size_t count = CPU_SETSIZE; count <= (1 << 16); count *= 2) {  // the kernel refuses a set that its processors do not fit into
    std::vector<cpu_set_t> set((count + CPU_SETSIZE - 1) / CPU_SETSIZE);
    const size_t bytes = set.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, set.data()) != 0) continue;
    for (size_t i = 0; i < count; i++)
      if (CPU_ISSET_S(i, bytes, set.data())) processors.push_back(static_cast<int>(i));
    return processors;
  }
#endif
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); i++) processors.push_back(static_cast<int>(i));
  return processors;
}

}  // namespace

int Cores::usable() const {
  if (quota == 0 || quota >= cores) return cores;
  return std::max(1, static_cast<int>(quota));
}

Cores coresUnder(const std::string& root, const std::vector<int>& processors) {
  std::set<std::string> names;
  int online = 0;
  for (const int processor : processors) {
    const std::string folder = root + "/sys/devices/system/cpu/cpu" + std::to_string(processor) + "/";
    if (wholeNumber(readFile(folder + "online")) == 0) continue;
    online++;
    names.insert(coreOf(folder + "topology/", processor));
  }
  return {std::max(1, online), std::max(1, static_cast<int>(names.size())), quotaUnder(root)};
}

const Cores& cores() {
  static const Cores found = coresUnder("", allowedProcessors());
  return found;
}

int usableCores() { return cores().usable(); }

}  // namespace selscan::cpu
