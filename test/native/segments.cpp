// checkSegments: what it accepts and each thing that it refuses.
#include "core/device.h"
#include "core/segments.h"

#include <initializer_list>
#include <limits>

#include "check.h"

namespace selscan::test {
namespace {

// The message of the refusal, or "" where the segments are accepted.
std::string refusal(std::initializer_list<Segment> lines, int64_t rows = 10, int64_t slots = 4,
                    Storage storage = Storage::input) {
  std::vector<Segment> copy(lines);
  Tensor segments;
  segments.data = reinterpret_cast<std::byte*>(copy.data());
  segments.dtype = Dtype::i32;
  segments.storage = storage;
  segments.shape = {2, {static_cast<int64_t>(copy.size()), 5}};
  const Attributes attributes;
  const Call call{{}, {}, attributes, device("cpu")};
  try {
    checkSegments(call, segments, rows, slots);
    return "";
  } catch (const Error& error) {
    return error.code == "BAD_INPUT" ? error.what() : "wrong code " + error.code;
  }
}

bool refuses(const std::string& message, const char* reason) { return message.find(reason) != std::string::npos; }

}  // namespace

TEST("segments: rising, disjoint lines with their own slots are accepted") {
  CHECK(refusal({{0, 4, 0, 0, 1}, {4, 4, 0, 0, 0}, {6, 10, 17, 2, 2}, {0, 0, 0, 0, 0}}) == "");
  CHECK(refusal({{0, 1, 0, 3, 1}, {1, 2, 0, 3, 2}}) == "");                // two continue one slot: a fork
  CHECK(refusal({{0, 1, 0, 99, 99}, {1, 2, 0, -5, 99}}, 10, 0) == "");      // nothing is carried
}

TEST("segments: each malformed line is refused with its reason") {
  const int32_t most = std::numeric_limits<int32_t>::max(), least = std::numeric_limits<int32_t>::min();
  CHECK(refuses(refusal({{-1, 4, 0, 0, 0}}), "rows [begin, end)"));
  CHECK(refuses(refusal({{0, 11, 0, 0, 0}}), "rows [begin, end)"));
  CHECK(refuses(refusal({{5, 4, 0, 0, 0}}), "rows [begin, end)"));
  CHECK(refuses(refusal({{least, most, 0, 0, 0}}), "rows [begin, end)"));
  CHECK(refuses(refusal({{4, 6, 0, 0, 0}, {0, 2, 0, 0, 0}}), "rise"));
  CHECK(refuses(refusal({{0, 4, 0, 0, 0}, {3, 6, 0, 0, 0}}), "rise"));
  CHECK(refuses(refusal({{0, 4, -1, 0, 0}}), "positions"));
  CHECK(refuses(refusal({{0, 4, most, 0, 0}}), "positions"));
  CHECK(refuses(refusal({{0, 4, 0, 4, 0}}), "from is a slot"));
  CHECK(refuses(refusal({{0, 4, 0, -1, 0}}), "from is a slot"));
  CHECK(refuses(refusal({{0, 4, 0, 0, 4}}), "to is a slot"));
  CHECK(refuses(refusal({{0, 4, 0, 0, least}}), "to is a slot"));
  CHECK(refuses(refusal({{0, 4, 0, 0, 2}, {4, 6, 0, 0, 2}}), "written once"));
  CHECK(refuses(refusal({{0, 4, 0, 2, 1}, {4, 6, 0, 3, 2}}), "reads is written by no other"));
  CHECK(refuses(refusal({{0, 4, 0, 0, 2}, {4, 6, 0, 2, 3}}), "reads is written by no other"));
  CHECK(refuses(refusal({{0, 4, 0, 0, 0}}, 10, 4, Storage::temporary), "input of the run"));
}

}  // namespace selscan::test
