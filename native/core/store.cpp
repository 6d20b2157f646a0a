#include "core/store.h"

#include <algorithm>
#include <cstring>

namespace selscan {

static const char* name(Storage storage) {
  constexpr const char* Names[] = {"temporary", "input", "weight", "training", "state", "ring"};
  return Names[static_cast<int>(storage)];
}

// Matrices have room for whole blocks of so many rows, as prepared forms have.
static constexpr int64_t BlockRows = 16;

static size_t roomFor(Storage storage, Dtype dtype, Shape shape) {
  if (storage == Storage::weight && shape.rank == 2) shape.dims[0] = (shape[0] + BlockRows - 1) / BlockRows * BlockRows;
  return static_cast<size_t>(shape.elements()) * sizeBytes(dtype);
}

// Rows of a matrix, from one of them on.
static Tensor rowsOf(const Tensor& all, int64_t first, int64_t rows) {
  Tensor part = all;
  part.shape.dims[0] = std::min(rows, all[0] - first);
  if (part.data) part.data += all.sizeBytes() / static_cast<size_t>(all[0]) * static_cast<size_t>(first);
  return part;
}

static size_t blockBytes(const Entry& entry, const Preparation& preparation) {
  Tensor block = entry.tensor();
  block.shape.dims[0] = preparation.blockRows;
  return preparation.bytes(block);
}

Entry& Store::entry(Storage storage, const std::string& label, Dtype dtype, const Shape& shape) {
  auto& slot = entries_[{storage, label}];
  if (!slot) {
    try {
      slot = std::make_unique<Entry>(Buffer(device, roomFor(storage, dtype, shape)), dtype, shape);
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
  check(offset <= entry.sizeBytes() && bytes.size() <= entry.sizeBytes() - offset, "BAD_SHAPE", "upload: ", bytes.size(), " bytes at ",
        offset, " do not fit into ", entry.sizeBytes());
  std::byte* to = plain(entry) + offset;
  entry.version++;  // before the copy: one that fails half-way has changed it too
  entry.form = nullptr;
  device.toDevice(to, bytes.data(), bytes.size());
}

void Store::read(const Entry& entry, size_t offset, std::span<std::byte> to) {
  check(offset <= entry.sizeBytes() && to.size() <= entry.sizeBytes() - offset, "BAD_SHAPE", "download: ", to.size(), " bytes at ", offset,
        " are not among ", entry.sizeBytes());
  if (entry.buffer.data()) return device.toHost(to.data(), entry.buffer.data() + offset, to.size());
  const Preparation& preparation = *entry.preparation;
  const size_t formBytes = blockBytes(entry, preparation), rowBytes = entry.sizeBytes() / static_cast<size_t>(entry.shape[0]);
  const size_t plainBytes = rowBytes * static_cast<size_t>(preparation.blockRows);
  std::vector<std::byte> rows(plainBytes);
  for (size_t done = 0; done < to.size();) {
    const size_t block = (offset + done) / plainBytes, begin = (offset + done) % plainBytes, count = std::min(plainBytes - begin, to.size() - done);
    Tensor part = rowsOf(entry.tensor(), static_cast<int64_t>(block) * preparation.blockRows, preparation.blockRows);
    part.data = rows.data();
    preparation.restore(entry.form->buffer.data() + block * formBytes, part);
    std::memcpy(to.data() + done, rows.data() + begin, count);
    done += count;
  }
}

std::byte* Store::plain(Entry& entry) {
  if (entry.buffer.data()) return entry.buffer.data();
  Buffer buffer(device, roomFor(Storage::weight, entry.dtype, entry.shape));
  Tensor tensor = entry.tensor();
  tensor.data = buffer.data();
  entry.preparation->restore(entry.form->buffer.data(), tensor);
  entry.buffer = std::move(buffer);
  moves_++;
  return entry.buffer.data();
}

bool Store::packsInPlace(const Entry& entry, const Preparation& preparation) const {
  const size_t rowBytes = entry.sizeBytes() / static_cast<size_t>(entry.shape[0]);
  return blockBytes(entry, preparation) == rowBytes * static_cast<size_t>(preparation.blockRows) &&
         preparation.bytes(entry.tensor()) <= entry.buffer.sizeBytes();
}

// Some blocks at a time, through memory of their own: a large table is never there twice.
void Store::packInPlace(Entry& entry, const Preparation& preparation) {
  constexpr size_t ChunkBytes = 1 << 20;
  const Tensor all = entry.tensor();
  const size_t bytes = blockBytes(entry, preparation);
  const int64_t rows = static_cast<int64_t>(std::max<size_t>(1, ChunkBytes / bytes)) * preparation.blockRows;
  const Buffer room(device, preparation.bytes(rowsOf({nullptr, all.dtype, all.storage, all.shape, true}, 0, rows)));
  for (int64_t first = 0; first < all[0]; first += rows) {
    const Tensor part = rowsOf(all, first, rows);
    preparation.run(part, room.data(), device);
    device.copy(part.data, room.data(), preparation.bytes(part));
  }
}

void Store::prepare(Entry& entry, Derived& form, const Preparation& preparation) {
  plain(entry);
  const bool holds = preparation.blockRows > 0 && preparation.holds(entry.tensor());
  if (holds && entry.readers == 0 && packsInPlace(entry, preparation)) {
    packInPlace(entry, preparation);
    form.buffer = std::move(entry.buffer);
    entry.buffer = Buffer();  // the form's old one, if it had any
    moves_++;
  } else {
    reserve(form);
    const Range ranges[] = {{entry.buffer.data(), entry.sizeBytes(), false}, {form.buffer.data(), form.bytes, true}};
    device.enter(ranges);
    preparation.run(entry.tensor(), form.buffer.data(), device);
  }
  form.version = entry.version;
  if (holds) {
    entry.form = &form;
    entry.preparation = &preparation;
  }
  settle(entry);
}

void Store::settle(Entry& entry) {
  // A form of before the last change has all of what the weight was, not of what it is.
  if (!entry.form || entry.form->version != entry.version || entry.readers > 0 || !entry.buffer.data()) return;
  entry.buffer = Buffer();
  moves_++;
}

void Store::copySlot(int64_t from, int64_t to) {
  for (auto& [key, entry] : entries_) {
    if (key.first != Storage::state || entry->shape.rank == 0) continue;
    const int64_t slots = entry->shape[0];
    check(from >= 0 && from < slots && to > 0 && to < slots, "BAD_INPUT", "copySlot: slots are 0 to ", slots - 1, ", got ", from, " and ", to);
    const size_t bytes = entry->sizeBytes() / static_cast<size_t>(slots);
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
      slot = std::make_unique<Derived>(bytes);
    } catch (...) {
      derived_.erase(key);
      throw;
    }
  }
  check(slot->bytes == bytes, "BAD_FILE", key, ": is kept with ", slot->bytes, " bytes, got ", bytes);
  return *slot;
}

std::byte* Store::reserve(Derived& derived) {
  if (!derived.buffer.data()) {
    derived.buffer = Buffer(device, derived.bytes);
    moves_++;
  }
  return derived.buffer.data();
}

size_t Store::sizeBytes(Storage storage) const {
  size_t total = 0;
  for (const auto& [key, entry] : entries_)
    if (key.first == storage) total += entry->sizeBytes();
  return total;
}

size_t Store::derivedBytes() const {
  size_t total = 0;
  for (const auto& [key, derived] : derived_) total += derived->buffer.sizeBytes();
  for (const auto& [key, entry] : entries_)
    if (!entry->buffer.data()) total -= std::min(entry->form->buffer.sizeBytes(), roomFor(key.first, entry->dtype, entry->shape));
  return total;
}

}  // namespace selscan
