#include "core/store.h"

namespace selscan {

static const char* name(Storage storage) {
  constexpr const char* Names[] = {"temporary", "input", "weight", "training", "state", "ring"};
  return Names[static_cast<int>(storage)];
}

Entry& Store::entry(Storage storage, const std::string& label, Dtype dtype, const Shape& shape) {
  auto& slot = entries_[{storage, label}];
  if (!slot) {
    try {
      const size_t bytes = static_cast<size_t>(shape.elements()) * selscan::sizeBytes(dtype);
      slot = std::make_unique<Entry>(Entry{Buffer(device, bytes), dtype, shape});
    } catch (...) {
      entries_.erase({storage, label});
      throw;
    }
  }
  check(slot->dtype == dtype && slot->shape == shape, "BAD_SHAPE", label, ": ", name(storage), " is ", selscan::name(slot->dtype), " ",
        text(slot->shape), ", got ", selscan::name(dtype), " ", text(shape));
  return *slot;
}

Entry& Store::existing(Storage storage, const std::string& label) {
  const auto at = entries_.find({storage, label});
  check(at != entries_.end(), "NOT_FOUND", label, ": no ", name(storage), " of that name is on the device");
  return *at->second;
}

void Store::write(Entry& entry, size_t offset, std::span<const std::byte> bytes) {
  check(offset <= entry.buffer.sizeBytes() && bytes.size() <= entry.buffer.sizeBytes() - offset, "BAD_SHAPE", "upload: ", bytes.size(),
        " bytes at ", offset, " do not fit into ", entry.buffer.sizeBytes());
  entry.version++;  // before the copy: one that fails half-way has changed it too
  device.toDevice(entry.buffer.data() + offset, bytes.data(), bytes.size());
}

void Store::copySlot(int64_t from, int64_t to) {
  for (auto& [key, entry] : entries_) {
    if (key.first != Storage::state || entry->shape.rank == 0) continue;
    const int64_t slots = entry->shape[0];
    check(from >= 0 && from < slots && to > 0 && to < slots, "BAD_INPUT", "copySlot: slots are 0 to ", slots - 1, ", got ", from, " and ", to);
    const size_t bytes = entry->buffer.sizeBytes() / static_cast<size_t>(slots);
    device.copy(entry->buffer.data() + bytes * to, entry->buffer.data() + bytes * from, bytes);
  }
}

std::byte* Store::arena(size_t bytes) {
  if (arena_.sizeBytes() < bytes) {
    arena_ = Buffer();  // released first: the old and the new arena need not fit side by side
    arena_ = Buffer(device, bytes);
  }
  return arena_.data();
}

Derived& Store::derived(const std::string& key, size_t bytes) {
  auto& slot = derived_[key];
  if (!slot) {
    try {
      slot = std::make_unique<Derived>(Derived{Buffer(device, bytes)});
    } catch (...) {
      derived_.erase(key);
      throw;
    }
  }
  check(slot->buffer.sizeBytes() == bytes, "BAD_FILE", key, ": is kept with ", slot->buffer.sizeBytes(), " bytes, got ", bytes);
  return *slot;
}

size_t Store::sizeBytes(Storage storage) const {
  size_t total = 0;
  for (const auto& [key, entry] : entries_)
    if (key.first == storage) total += entry->buffer.sizeBytes();
  return total;
}

size_t Store::derivedBytes() const {
  size_t total = 0;
  for (const auto& [key, derived] : derived_) total += derived->buffer.sizeBytes();
  return total;
}

}  // namespace selscan
