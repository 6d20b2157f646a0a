#include "core/program.h"

namespace selscan {
namespace {

constexpr uint32_t Magic = 0x31505353;  // "SSP1"
constexpr int64_t ElementsMax = int64_t{1} << 44;
constexpr uint32_t CountMax = 1u << 22;

uint32_t count(Reader& reader) {
  const auto n = reader.value<uint32_t>();
  check(n <= CountMax && n <= reader.left(), "BAD_FILE", "program: a list has ", n, " entries, more than there are bytes left");
  return n;
}

ProgramValue decodeValue(Reader& reader) {
  const int storage = reader.value<uint8_t>(), dtype = reader.value<uint8_t>(), rank = reader.value<uint8_t>();
  check(storage < StorageCount && dtype < DtypeCount && rank <= RankMax, "BAD_FILE", "program: a value has unknown storage ",
        storage, ", dtype ", dtype, " or rank ", rank);
  ProgramValue value{static_cast<Storage>(storage), static_cast<Dtype>(dtype), Shape{.rank = rank}, {}};
  int64_t elements = 1;
  for (int i = 0; i < rank; i++) {
    const auto size = reader.value<int64_t>();
    check(size >= 1 && size <= ElementsMax / elements, "BAD_FILE", "program: a value has size ", size, " in dimension ", i);
    elements *= size;
    value.shape.dims[i] = size;
  }
  value.name = reader.string();
  return value;
}

std::vector<int> decodeIds(Reader& reader, size_t values) {
  std::vector<int> ids(count(reader));
  for (int& id : ids) {
    id = reader.value<int32_t>();
    check(id >= Absent && id < static_cast<int64_t>(values), "BAD_FILE", "program: value ", id, " does not exist");
  }
  return ids;
}

Attribute decodeAttribute(Reader& reader) {
  const int tag = reader.value<uint8_t>();
  if (tag == 0) return reader.value<double>();
  if (tag == 1) return reader.value<uint8_t>() != 0;
  check(tag == 2, "BAD_FILE", "program: an attribute has unknown type ", tag);
  return reader.string();
}

ProgramNode decodeNode(Reader& reader, size_t values) {
  ProgramNode node;
  node.op = reader.string();
  node.path = reader.string();
  node.inputs = decodeIds(reader, values);
  node.outputs = decodeIds(reader, values);
  node.updates.resize(count(reader));
  for (int& update : node.updates) {
    update = reader.value<int32_t>();
    check(update >= 0 && update < static_cast<int64_t>(node.inputs.size()), "BAD_FILE", "program: ", node.op, " updates input ",
          update, ", which it does not have");
  }
  const auto attributes = count(reader);
  for (uint32_t i = 0; i < attributes; i++) {
    auto key = reader.string();
    node.attributes.entries.emplace_back(std::move(key), decodeAttribute(reader));
  }
  return node;
}

void checkOrder(const Program& program) {
  std::vector<bool> written(program.values.size());
  for (size_t i = 0; i < program.values.size(); i++) written[i] = program.values[i].storage != Storage::temporary;
  for (const auto& node : program.nodes) {
    for (const int id : node.inputs)
      check(id == Absent || written[id], "BAD_FILE", "program: ", node.op, " reads value ", id, " before it is written");
    for (const int id : node.outputs) {
      check(id == Absent || !written[id], "BAD_FILE", "program: ", node.op, " writes value ", id, ", which already has a value");
      if (id != Absent) written[id] = true;
    }
    for (const int update : node.updates) {
      const int id = node.inputs[update];
      check(id == Absent || program.values[id].storage >= Storage::weight, "BAD_FILE", "program: ", node.op,
            " updates value ", id, ", which is not a stored one");
    }
  }
  for (const int id : program.outputs)
    check(id != Absent && written[id], "BAD_FILE", "program: output ", id, " is never written");
}

}  // namespace

uint64_t fnv1a(std::span<const std::byte> bytes) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const std::byte byte : bytes) hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001b3u;
  return hash;
}

Program decodeProgram(std::span<const std::byte> bytes) {
  check(bytes.size() >= 12, "BAD_FILE", "program: is ", bytes.size(), " bytes long, too short to be one");
  const auto body = bytes.first(bytes.size() - 8);
  check(Reader(bytes.last(8)).value<uint64_t>() == fnv1a(body), "BAD_FILE", "program: checksum differs; the bytes were damaged");
  Reader reader(body);
  check(reader.value<uint32_t>() == Magic, "BAD_FILE", "program: does not begin with SSP1");
  Program program;
  program.name = reader.string();
  const auto values = count(reader);
  for (uint32_t i = 0; i < values; i++) program.values.push_back(decodeValue(reader));
  const auto nodes = count(reader);
  for (uint32_t i = 0; i < nodes; i++) program.nodes.push_back(decodeNode(reader, values));
  program.outputs = decodeIds(reader, values);
  check(reader.left() == 0, "BAD_FILE", "program: ", reader.left(), " bytes follow its end");
  checkOrder(program);
  return program;
}

}  // namespace selscan
