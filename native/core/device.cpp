#include "core/device.h"

#include <algorithm>

namespace selscan {
namespace {

// A function-local static: safe to use from registrars that run before main.
std::vector<DeviceKind>& registry() {
  static std::vector<DeviceKind> list;
  return list;
}

const DeviceKind* findKind(const std::string& name) {
  for (const DeviceKind& kind : registry())
    if (kind.name == name) return &kind;
  return nullptr;
}

struct HostStopwatch final : Stopwatch {
  std::vector<std::chrono::steady_clock::time_point> marks;
  void mark() override { marks.push_back(std::chrono::steady_clock::now()); }
  std::vector<double> seconds() override {
    std::vector<double> out;
    for (size_t i = 1; i < marks.size(); i++) out.push_back(std::chrono::duration<double>(marks[i] - marks[i - 1]).count());
    return out;
  }
};

}  // namespace

std::unique_ptr<Stopwatch> Device::stopwatch() { return std::make_unique<HostStopwatch>(); }

RegisterDevice::RegisterDevice(DeviceKind kind) { registry().push_back(std::move(kind)); }

const std::vector<DeviceKind>& deviceKinds() { return registry(); }

std::string missingDevice(const std::string& name) {
  const DeviceKind* kind = findKind(name);
  if (kind) return kind->count() > 0 ? "" : kind->missing();
  if (name == "cuda") {
    return "this addon has no CUDA kernels; that of the npm package @selscan/linux-x64-cuda is taken where an NVIDIA driver is found, and "
           "selscan build --device cuda makes one where nvcc is";
  }
  return "there is no such device; choose cpu or cuda";
}

Device& device(const std::string& name) {
  const size_t colon = name.find(':');
  const std::string kindName = name.substr(0, colon), ordinal = colon == std::string::npos ? "0" : name.substr(colon + 1);
  const bool number = !ordinal.empty() && ordinal.size() < 4 && ordinal.find_first_not_of("0123456789") == std::string::npos;
  check(number, "NO_DEVICE", "device ", name, ": a kind and a number are expected, such as cuda:1");
  const std::string missing = missingDevice(kindName);
  check(missing.empty(), "NO_DEVICE", "device ", name, ": ", missing);
  const DeviceKind& kind = *findKind(kindName);
  const int index = std::stoi(ordinal), count = kind.count();
  check(index < count, "NO_DEVICE", "device ", name, ": there ", count == 1 ? "is 1, " + kindName + ":0" : "are " + std::to_string(count) + ", numbered from 0",
        ", got ", index);
  return kind.open(index);
}

}  // namespace selscan
