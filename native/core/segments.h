// How the rows of a run fall into sequences: the lines of an input `segments: "i32 segments 5"`.
#pragma once
#include "core/kernel.h"

namespace selscan {

// One line. Rows [begin, end) continue, from absolute position `position`, the sequence whose state is in slot `from`
// (0: a fresh one); its state at the end goes to slot `to` (0: nowhere). begin == end marks a line that is not used.
struct Segment {
  int32_t begin, end, position, from, to;
};
inline Segment segmentAt(const int32_t* segments, int64_t s) {
  const int32_t* line = segments + 5 * s;
  return {line[0], line[1], line[2], line[3], line[4]};
}

// For .checkInputs: throws BAD_INPUT unless the used lines are disjoint, in rising order and inside [0, rows), positions
// are ≥ 0, slots are inside [0, slots), no slot is written twice, and none is read by one segment and written by another.
// slots ≤ 0: the op carries no state, `from` and `to` are not looked at.
void checkSegments(const Call&, const Tensor& segments, int64_t rows, int64_t slots);

// Throws BAD_INPUT unless the values of `tensor` can be judged before the run: indices come from the host.
void checkHostInput(const Tensor& tensor, const char* name);

// Collects who reads and writes which slot in one run; refuses two writers, and a reader beside another's write: kernels
// run over sequences in any order. Slot 0 is nobody's.
class SlotUse {
 public:
  SlotUse(const char* where, const char* one) : where_(where), one_(one) {}
  void add(int64_t index, int64_t from, int64_t to, int64_t slots);
  void check() const;

 private:
  struct Use {
    int64_t slot, index;
    bool operator<(const Use& other) const { return slot != other.slot ? slot < other.slot : index < other.index; }
  };
  const char *where_, *one_;
  std::vector<Use> reads_, writes_;
};

}  // namespace selscan
