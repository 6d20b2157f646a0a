// The memory of a model on one device: weights, states and training values by name, what is derived from weights, and the
// arena that all its programs share. Used by one job of the device queue at a time.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "core/device.h"

namespace selscan {

// Something kept beside the weights it was computed from; stale when their versions have moved.
struct Derived {
  Buffer buffer;
  uint64_t version = 0;
};

struct Entry {
  Buffer buffer;
  Dtype dtype = Dtype::f32;
  Shape shape;
  uint64_t version = 1;  // grows whenever the contents change
};

class Store {
 public:
  explicit Store(Device& device) : device(device) {}

  // The entry of that name, made with zeros if it is new; throws BAD_SHAPE if it is known with another dtype or shape.
  Entry& entry(Storage storage, const std::string& name, Dtype dtype, const Shape& shape);
  Entry& existing(Storage storage, const std::string& name);
  void write(Entry& entry, size_t offset, std::span<const std::byte> bytes);
  // Copies slot `from` of every state to slot `to`; rings are not slots.
  void copySlot(int64_t from, int64_t to);
  std::byte* arena(size_t bytes);
  Derived& derived(const std::string& key, size_t bytes);

  size_t sizeBytes(Storage storage) const;
  size_t derivedBytes() const;
  size_t arenaBytes() const { return arena_.sizeBytes(); }

  Device& device;

 private:
  std::map<std::pair<Storage, std::string>, std::unique_ptr<Entry>> entries_;
  std::map<std::string, std::unique_ptr<Derived>> derived_;
  Buffer arena_;
};

}  // namespace selscan
