// The memory of a model on one device: weights, states and training values by name, what is derived from weights, and the
// arena that all its programs share. Used by one job of the device queue at a time.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "core/device.h"

namespace selscan {

// Something kept beside the weights it was computed from; stale when their versions have moved.
struct Derived {
  size_t bytes;
  Buffer buffer = {};  // had when it is first computed
  uint64_t version = 0;
};

struct Entry {
  Buffer buffer;
  Dtype dtype = Dtype::f32;
  Shape shape;
  uint64_t version = 1;  // grows whenever the contents change
  // A weight that every program reads in one prepared form is kept in that form alone; its buffer is then empty.
  std::atomic<int> readers = 0;  // programs that read it as it lies
  Derived* form = nullptr;
  const Preparation* preparation = nullptr;

  Tensor tensor() const { return {buffer.data(), dtype, Storage::weight, shape, true}; }
  size_t sizeBytes() const { return tensor().sizeBytes(); }
};

class Store {
 public:
  explicit Store(Device& device) : device(device) {}

  // The entry of that name, made with zeros if it is new; throws BAD_SHAPE if it is known with another dtype or shape.
  Entry& entry(Storage storage, const std::string& name, Dtype dtype, const Shape& shape);
  Entry& existing(Storage storage, const std::string& name);
  void write(Entry& entry, size_t offset, std::span<const std::byte> bytes);
  // Bytes of the entry, wherever they lie; there after device.synchronize().
  void read(const Entry& entry, size_t offset, std::span<std::byte> to);
  // The entry as it lies, brought back from its form where need be.
  std::byte* plain(Entry& entry);
  // Computes a form. Of a weight that nobody reads as it lies, only the form stays, in the same memory if it fits.
  void prepare(Entry& entry, Derived& form, const Preparation& preparation);
  // Gives up a weight whose form has all of it, where nobody reads it as it lies.
  void settle(Entry& entry);
  // Copies slot `from` of every state to slot `to`; rings are not slots.
  void copySlot(int64_t from, int64_t to);
  std::byte* arena(size_t bytes);
  Derived& derived(const std::string& key, size_t bytes);
  std::byte* reserve(Derived& derived);

  // The only form of a weight counts as the weight, and as derived in so far as it is larger.
  size_t sizeBytes(Storage storage) const;
  size_t derivedBytes() const;
  // Grows whenever something has another address than before.
  uint64_t moves() const { return moves_; }
  size_t arenaBytes() const { return arena_.sizeBytes(); }

  Device& device;

 private:
  std::map<std::pair<Storage, std::string>, std::unique_ptr<Entry>> entries_;
  std::map<std::string, std::unique_ptr<Derived>> derived_;
  Buffer arena_;
  uint64_t moves_ = 0;

  bool packsInPlace(const Entry& entry, const Preparation& preparation) const;
  void packInPlace(Entry& entry, const Preparation& preparation);
};

}  // namespace selscan
