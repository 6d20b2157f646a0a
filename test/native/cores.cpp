// Which threads are worth starting: files of machines and containers that this one is not.
#include "cpu/cores.h"

#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "check.h"
#include "cpu/threads.h"

namespace selscan::test {
namespace {

namespace fs = std::filesystem;

// A folder in the place of "/", gone with its owner.
class Machine {
 public:
  Machine() : root_(fs::temp_directory_path() / ("selscan-cores-" + std::to_string(std::random_device{}()))) { fs::create_directories(root_); }
  ~Machine() {
    std::error_code none;
    fs::remove_all(root_, none);
  }
  Machine& file(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path, std::ios::binary) << text;
    return *this;
  }
  Machine& topology(int processor, const std::string& name, const std::string& text) {
    return file("sys/devices/system/cpu/cpu" + std::to_string(processor) + "/topology/" + name, text + "\n");
  }
  // Processors [0, count), each with the siblings that the lists name in turn.
  Machine& siblings(const std::vector<std::string>& lists) {
    for (size_t i = 0; i < lists.size(); i++) topology(static_cast<int>(i), "thread_siblings_list", lists[i]);
    return *this;
  }
  // A process in that group of version 2, whose hierarchy is mounted as it mostly is.
  Machine& group(const std::string& path) {
    return file("proc/self/cgroup", "0::" + path + "\n")
        .file("proc/self/mountinfo",
              "22 1 0:20 / /proc rw - proc proc rw\n"
              "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
  }
  cpu::Cores cores(int processors) const {
    std::vector<int> all(processors);
    std::iota(all.begin(), all.end(), 0);
    return cores(all);
  }
  cpu::Cores cores(const std::vector<int>& processors) const { return cpu::coresUnder(root_.string(), processors); }

 private:
  fs::path root_;
};

}  // namespace

TEST("threads of one core are counted once") {
  Machine machine;
  machine.siblings({"0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"});
  const cpu::Cores all = machine.cores(8);
  CHECK(all.processors == 8 && all.cores == 4 && all.quota == 0 && all.usable() == 4, all.processors, all.cores, all.quota);
  CHECK(machine.cores({0, 1, 4, 5}).cores == 2);  // of an affinity that leaves two whole cores
  CHECK(machine.cores({2, 3, 4}).cores == 3);     // and of one that leaves halves
  CHECK(Machine().siblings({"0-1", "0-1", "2-3", "2-3"}).cores(4).cores == 2);
}

TEST("cores of two sockets are told apart where only their numbers are known") {
  Machine machine;
  for (int i = 0; i < 8; i++) {  // processors 0-3 on socket 0, 4-7 on socket 1, two threads a core
    machine.topology(i, "core_id", std::to_string(i % 4 / 2));
    machine.topology(i, "physical_package_id", std::to_string(i / 4));
  }
  CHECK(machine.cores(8).cores == 4, machine.cores(8).cores);
}

TEST("a processor that is offline is none") {
  Machine machine;
  machine.siblings({"0", "1", "2", "3"}).file("sys/devices/system/cpu/cpu2/online", "0\n").file("sys/devices/system/cpu/cpu3/online", "1\n");
  CHECK(machine.cores(4).processors == 3 && machine.cores(4).cores == 3, machine.cores(4).cores);
}

TEST("where nothing is told of cores, every processor is one, and one there is always") {
  CHECK(Machine().cores(6).cores == 6);
  CHECK(Machine().cores(0).usable() == 1);
  Machine machine;
  machine.siblings({"", "garbage", "0-", "-3", "7", "99999999999999999999", std::string(5000, ','), "4-3"});
  CHECK(machine.cores(8).cores == 8, machine.cores(8).cores);  // the list of processor 4 lacks 4 itself
}

TEST("a quota is that of the process's own group, in whole processors") {
  const auto usable = [](const std::string& text, int processors) {
    return Machine().group("/a/b").file("sys/fs/cgroup/a/b/cpu.max", text).cores(processors).usable();
  };
  CHECK(usable("150000 100000\n", 8) == 1);
  CHECK(usable("400000 100000\n", 8) == 4);
  CHECK(usable("399999 100000\n", 8) == 3);
  CHECK(usable("25000 50000\n", 8) == 1);
  CHECK(usable("1600000 100000\n", 8) == 8);
  CHECK(usable("max 100000\n", 8) == 8);
}

TEST("the smallest quota counts, of the group and of all above it") {
  Machine machine;
  machine.group("/pods/one/main").file("sys/fs/cgroup/pods/one/main/cpu.max", "max 100000").file("sys/fs/cgroup/pods/one/cpu.max", "600000 100000");
  CHECK(machine.cores(16).usable() == 6, machine.cores(16).usable());
  machine.file("sys/fs/cgroup/pods/cpu.max", "1200000 100000");
  CHECK(machine.cores(16).usable() == 6, machine.cores(16).usable());
  machine.file("sys/fs/cgroup/cpu.max", "300000 100000");
  CHECK(machine.cores(16).usable() == 3, machine.cores(16).usable());
}

TEST("a quota of version 1 is read where its hierarchy is mounted") {
  Machine machine;
  machine.file("proc/self/cgroup", "9:cpuset:/x\n4:cpu,cpuacct:/docker/abc\n0::/\n")
      .file("proc/self/mountinfo",
            "33 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
            "32 31 0:29 / /sys/fs/cgroup/my\\040cpus rw - cgroup cgroup rw,cpu,cpuacct\n")
      .file("sys/fs/cgroup/my cpus/docker/abc/cpu.cfs_quota_us", "250000\n")
      .file("sys/fs/cgroup/my cpus/docker/abc/cpu.cfs_period_us", "50000\n")
      .file("sys/fs/cgroup/my cpus/docker/cpu.cfs_quota_us", "-1\n")
      .file("sys/fs/cgroup/my cpus/docker/cpu.cfs_period_us", "100000\n")
      .file("sys/fs/cgroup/cpuset/x/cpu.cfs_quota_us", "100000\n")
      .file("sys/fs/cgroup/cpuset/x/cpu.cfs_period_us", "100000\n");
  CHECK(machine.cores(8).usable() == 5, machine.cores(8).usable());
}

TEST("a container that sees its own group as the top of the hierarchy has its quota there") {
  Machine machine;
  machine.file("proc/self/cgroup", "0::/docker/abc/inner\n")
      .file("proc/self/mountinfo", "31 23 0:28 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
      .file("sys/fs/cgroup/cpu.max", "200000 100000\n");
  CHECK(machine.cores(8).usable() == 2, machine.cores(8).usable());
  for (const char* outside : {"0::/../elsewhere\n", "0::/docker/abcd\n"}) {
    machine.file("proc/self/cgroup", outside);
    CHECK(machine.cores(8).usable() == 2, outside, machine.cores(8).usable());
  }
}

TEST("files that make no sense are no quota") {
  std::string noise(100'000, '\0');
  std::mt19937 random(1);
  for (char& byte : noise) byte = static_cast<char>(random());
  for (const std::string& text : {std::string(), std::string("\n"), std::string("0 0"), std::string("-5 100000"), std::string("100000 0"),
                                  std::string("nan inf"), std::string("1e5 100000"), std::string("99999999999999999999 1"), noise}) {
    CHECK(Machine().group("/a").file("sys/fs/cgroup/a/cpu.max", text).cores(4).usable() == 4, text.substr(0, 30));
    Machine machine;
    machine.file("proc/self/cgroup", text).file("proc/self/mountinfo", text).file("sys/fs/cgroup/cpu.max", "100000 100000").siblings({text, text});
    CHECK(machine.cores(2).usable() == 2, text.substr(0, 30));
  }
  CHECK(Machine().group(std::string(200'000, '/')).cores(4).usable() == 4);
}

TEST("this process may use a core at least, and no more than it has processors") {
  const cpu::Cores& here = cpu::cores();
  CHECK(here.cores >= 1 && here.cores <= here.processors && here.usable() <= here.cores, here.processors, here.cores, here.quota);
  CHECK(cpu::usableCores() == here.usable());
}

}  // namespace selscan::test
