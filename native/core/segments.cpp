#include "core/segments.h"

#include <algorithm>
#include <limits>

namespace selscan {

void checkHostInput(const Tensor& tensor, const char* name) {
  check(tensor.storage == Storage::input && tensor.data != nullptr, "BAD_INPUT", name,
        ": indices are an input of the run, got a value that is computed or stored; pass them as an input");
}

void SlotUse::add(int64_t index, int64_t from, int64_t to, int64_t slots) {
  const auto judge = [&](const char* end, int64_t slot) {
    selscan::check(slot >= 0 && slot < slots, "BAD_INPUT", where_, ": ", end, " is a slot in [0, ", slots, "), got ", slot, " in ",
                   one_, " ", index);
  };
  judge("from", from);
  judge("to", to);
  if (from > 0) reads_.push_back({from, index});
  if (to > 0) writes_.push_back({to, index});
}

void SlotUse::check() const {
  auto writes = writes_;
  std::sort(writes.begin(), writes.end());
  for (size_t i = 1; i < writes.size(); i++)
    selscan::check(writes[i].slot != writes[i - 1].slot, "BAD_INPUT", where_, ": every slot is written once in a run, got slot ",
                   writes[i].slot, " written by ", one_, "s ", writes[i - 1].index, " and ", writes[i].index);
  for (const Use& read : reads_) {
    const auto write = std::lower_bound(writes.begin(), writes.end(), Use{read.slot, std::numeric_limits<int64_t>::min()});
    const bool clash = write != writes.end() && write->slot == read.slot && write->index != read.index;
    selscan::check(!clash, "BAD_INPUT", where_, ": a slot that one ", one_, " reads is written by no other, got slot ", read.slot,
                   " read by ", one_, " ", read.index, " and written by ", one_, " ", clash ? write->index : 0);
  }
}

void checkSegments(const Call&, const Tensor& segments, int64_t rows, int64_t slots) {
  checkHostInput(segments, "segments");
  SlotUse use("segments", "segment");
  int64_t after = 0;
  for (int64_t s = 0; s < segments[0]; s++) {
    const auto [begin, end, position, from, to] = segmentAt(segments.i32(), s);
    check(begin >= 0 && begin <= end && end <= rows, "BAD_INPUT", "segments: rows [begin, end) lie in [0, ", rows, "), got [",
          begin, ", ", end, ") in segment ", s);
    if (begin == end) continue;
    check(begin >= after, "BAD_INPUT", "segments: rows rise from segment to segment without overlap, got begin ", begin,
          " in segment ", s, " after row ", after - 1, " was taken");
    check(position >= 0 && int64_t{position} + (end - begin) <= std::numeric_limits<int32_t>::max(), "BAD_INPUT",
          "segments: positions are in [0, 2^31), got ", position, " in segment ", s, " of ", end - begin, " rows");
    after = end;
    if (slots > 0) use.add(s, from, to, slots);
  }
  use.check();
}

}  // namespace selscan
