// How a program is compiled: kernels matched, constants found, nodes grouped, memory planned.
#include "core/executable.h"

#include <algorithm>
#include <iomanip>
#include <set>

namespace selscan {

static std::string bare(const std::string& name) { return name.ends_with('?') ? name.substr(0, name.size() - 1) : name; }

Executable::Executable(std::shared_ptr<Store> store, Program program, bool profiled)
    : store_(std::move(store)), program_(std::move(program)), profiled_(profiled) {
  const size_t values = program_.values.size();
  entries_.resize(values);
  constants_.resize(values);
  expressions_.resize(values);
  blocks_.assign(values, Absent);
  offsets_.assign(values, 0);
  seconds_.resize(program_.nodes.size());
  for (size_t id = 0; id < values; id++) {
    const ProgramValue& value = program_.values[id];
    if (value.storage == Storage::input) inputIds_.push_back(static_cast<int>(id));
    if (value.storage < Storage::weight) continue;
    entries_[id] = &store_->entry(value.storage, value.name, value.dtype, value.shape);
    // The length makes names and operators of an expression distinct, whatever a name spells.
    if (value.storage == Storage::weight) expressions_[id] = std::to_string(value.name.size()) + ":" + value.name;
  }
  for (const ProgramNode& node : program_.nodes)
    for (const int update : node.updates)
      if (node.inputs[update] != Absent) updatesWeights_ |= program_.values[node.inputs[update]].storage == Storage::weight;
  match();
  placeConstants();
  groupSteps();
  findLifetimes();
  plan_ = planArena(lifetimes_);
  pin();
}

Executable::~Executable() {
  for (Entry* entry : pinned_) entry->readers--;
}

// Weights that some node reads as they lie must lie there: those that all nodes read prepared may be kept in that form alone.
void Executable::pin() {
  std::set<Entry*> read;
  for (size_t index = 0; index < steps_.size(); index++) {
    const ProgramNode& node = program_.nodes[index];
    const Step& step = steps_[index];
    const auto updated = [&](size_t i) { return std::count(node.updates.begin(), node.updates.end(), static_cast<int>(i)) > 0; };
    for (size_t i = 0; i < node.inputs.size(); i++) {
      const bool prepared = step.preparedForms[i] && !step.preparedLate[i] && !step.kernel->info.readsPlain;
      if (node.inputs[i] != Absent && entries_[node.inputs[i]] && (!prepared || updated(i))) read.insert(entries_[node.inputs[i]]);
    }
  }
  for (const int id : program_.outputs)
    if (entries_[id]) read.insert(entries_[id]);
  for (Entry* entry : read) store_->plain(*entry);  // may throw; what follows may not
  pinned_.assign(read.begin(), read.end());
  for (Entry* entry : pinned_) entry->readers++;
}

// Finds a kernel for every node and asks it whether it can do these shapes.
void Executable::match() {
  for (const ProgramNode& node : program_.nodes) {
    Step step;
    step.kernel = findKernel(store_->device.name(), node.op);
    check(step.kernel, "NO_KERNEL", node.where(), ": device ", store_->device.name(), " has no kernel for it");
    const Kernel& kernel = *step.kernel;
    check(node.inputs.size() == kernel.inputs.size() && node.outputs.size() == kernel.outputs.size(), "BAD_FILE", node.where(),
          ": kernel has the signature ", kernel.signature, ", got ", node.inputs.size(), " inputs and ", node.outputs.size(), " outputs");
    for (size_t i = 0; i < kernel.inputs.size(); i++)
      check(node.inputs[i] != Absent || kernel.inputs[i].ends_with('?'), "BAD_FILE", node.where(), ": input ", kernel.inputs[i], " is missing");
    // What is written must be known: inputs are judged once before a run, weights are taken for constants.
    check(std::set(node.updates.begin(), node.updates.end()) == std::set(kernel.updates.begin(), kernel.updates.end()), "BAD_FILE",
          node.where(), ": kernel has the signature ", kernel.signature, " and writes the inputs marked *, the node names others");
    for (const auto& name : kernel.attributes)
      check(std::any_of(node.attributes.entries.begin(), node.attributes.entries.end(), [&](const auto& entry) { return entry.first == name; }),
            "BAD_FILE", node.where(), ": attribute ", name, " is missing");
    const auto tensor = [&](int id) {
      if (id == Absent) return Tensor{};
      const ProgramValue& value = program_.values[id];
      return Tensor{nullptr, value.dtype, value.storage, value.shape, true};
    };
    for (const int id : node.inputs) step.inputs.push_back(tensor(id));
    for (const int id : node.outputs) step.outputs.push_back(tensor(id));
    step.prepared.resize(node.inputs.size());
    step.preparations.resize(node.inputs.size());
    step.preparedBlocks.assign(node.inputs.size(), Absent);
    step.preparedForms.resize(node.inputs.size());
    step.preparedLate.resize(node.inputs.size());
    steps_.push_back(std::move(step));
    Step& kept = steps_.back();
    for (const auto* tensors : {&kept.inputs, &kept.outputs})
      for (const Tensor& one : *tensors)
        for (int i = 0; i < one.shape.rank; i++)
          check(one[i] <= store_->device.sizeMax(), "BAD_SHAPE", node.where(), ": sizes on device ", store_->device.name(), " are at most ",
                store_->device.sizeMax(), ", got ", text(one.shape));
    if (kernel.info.limit) {
      const std::string limit = kernel.info.limit(call(kept, steps_.size() - 1));
      check(limit.empty(), "BAD_SHAPE", node.where(), ": ", limit);
    }
    if (kernel.info.prepare)
      for (size_t i = 0; i < node.inputs.size(); i++)
        if (node.inputs[i] != Absent) kept.preparations[i] = kernel.info.prepare(call(kept, steps_.size() - 1), static_cast<int>(i));
  }
}

Call Executable::call(Step& step, size_t index) {
  return Call{step.inputs, step.outputs, program_.nodes[index].attributes, store_->device, nullptr, step.prepared};
}

// Nodes that read nothing but weights are computed once per change of those weights and kept in the store, where other
// programs of the model find them by their expression. Not where the program itself updates a weight: what was computed
// before the update and after it are two values.
void Executable::placeConstants() {
  std::set<const Entry*> updated, updatedBefore;  // by any node; by those before the one at hand
  for (const ProgramNode& node : program_.nodes)
    for (const int update : node.updates)
      if (node.inputs[update] != Absent) updated.insert(entries_[node.inputs[update]]);
  for (size_t index = 0; index < steps_.size(); index++) {
    const ProgramNode& node = program_.nodes[index];
    Step& step = steps_[index];
    std::string expression = node.op + "(";
    bool constant = node.updates.empty();
    int present = 0;
    for (size_t i = 0; i < node.inputs.size(); i++) {
      const int id = node.inputs[i];
      if (id == Absent) continue;
      present++;
      constant &= !expressions_[id].empty() && !updated.contains(entries_[id]);
      expression += (present > 1 ? "," : "") + bare(step.kernel->inputs[i]) + "=" + expressions_[id];
    }
    if (constant && present > 0) {
      step.constant = true;
      for (const auto& [key, value] : node.attributes.entries) {
        expression += ";" + key + "=";
        // All digits: values that differ in the last one are two expressions.
        std::visit([&](const auto& v) { std::ostringstream s; s << std::setprecision(17) << v; expression += s.str(); }, value);
      }
      step.kept.resize(node.outputs.size());
      for (size_t i = 0; i < node.outputs.size(); i++) {
        const int id = node.outputs[i];
        if (id == Absent) continue;
        expressions_[id] = expression + ")." + step.kernel->outputs[i];
        step.kept[i] = constants_[id] = &store_->derived(expressions_[id], program_.values[id].sizeBytes());
        store_->reserve(*step.kept[i]);
      }
    }
    for (size_t i = 0; i < node.inputs.size(); i++) {
      const bool changes = step.preparations[i] && (expressions_[node.inputs[i]].empty() || updated.contains(entries_[node.inputs[i]]));
      if (changes && step.kernel->info.readsEither) step.preparations[i] = nullptr;
      if (!step.preparations[i] || expressions_[node.inputs[i]].empty()) continue;
      Tensor shape = step.inputs[i];
      step.preparedForms[i] = &store_->derived(expressions_[node.inputs[i]] + "|" + step.preparations[i]->name, step.preparations[i]->bytes(shape));
      step.preparedLate[i] = updatedBefore.contains(entries_[node.inputs[i]]);
      if (step.preparedLate[i]) store_->reserve(*step.preparedForms[i]);
    }
    for (const int update : node.updates)
      if (node.inputs[update] != Absent) updatedBefore.insert(entries_[node.inputs[update]]);
  }
}

// Whether node `index` may run together with the nodes first … index − 1.
bool Executable::joins(size_t first, size_t index) const {
  const auto stored = [&](int id) { return id == Absent ? nullptr : entries_[id]; };
  const auto updates = [&](const ProgramNode& node, const Entry* entry) {
    return std::any_of(node.updates.begin(), node.updates.end(), [&](int update) { return stored(node.inputs[update]) == entry; });
  };
  const ProgramNode& node = program_.nodes[index];
  if (steps_[index].kernel != steps_[first].kernel) return false;
  for (size_t before = first; before < index; before++) {
    const ProgramNode& other = program_.nodes[before];
    for (const int id : node.inputs)
      if (stored(id) && updates(other, stored(id))) return false;
    for (const int id : other.inputs)
      if (stored(id) && updates(node, stored(id))) return false;
  }
  return true;
}

// They run at the place of the first: nothing but updates happens between it and the last.
void Executable::groupSteps() {
  for (size_t first = 0; first < steps_.size(); first += std::max<size_t>(1, steps_[first].group)) {
    const KernelInfo& info = steps_[first].kernel->info;
    if (!info.runAll || !program_.nodes[first].outputs.empty() || info.workspaceBytes || info.prepare) continue;
    for (size_t index = first + 1; index < steps_.size() && joins(first, index); index++) {
      steps_[first].group++;
      steps_[index].group = 0;
    }
  }
}

int Executable::addBlock(size_t bytes, int first, int last, int label) {
  lifetimes_.push_back({bytes, first, last});
  labels_.push_back(label);
  return static_cast<int>(lifetimes_.size()) - 1;
}

void Executable::findLifetimes() {
  const int end = static_cast<int>(steps_.size());
  std::vector<int> lastUse(program_.values.size(), -1);
  for (int index = 0; index < end; index++)
    for (const int id : program_.nodes[index].inputs)
      if (id != Absent) lastUse[id] = index;
  for (const int id : program_.outputs) lastUse[id] = end;

  size_t inputBytes = 0;  // inputs share a block, so that one copy brings them all
  int inputsEnd = 0;
  for (const int id : inputIds_) {
    offsets_[id] = inputBytes;
    inputBytes += (program_.values[id].sizeBytes() + 63) / 64 * 64;
    inputsEnd = std::max(inputsEnd, lastUse[id]);
  }
  staged_.resize(inputBytes);
  if (!inputIds_.empty()) inputBlock_ = addBlock(inputBytes, 0, inputsEnd, inputIds_[0]);
  for (const int id : inputIds_) blocks_[id] = inputBlock_;
  for (int index = 0; index < end; index++) {
    const ProgramNode& node = program_.nodes[index];
    Step& step = steps_[index];
    std::set<int> reused;
    for (size_t o = 0; o < node.outputs.size(); o++) {
      const int id = node.outputs[o];
      if (id == Absent || constants_[id]) continue;
      for (const auto& [output, input] : step.kernel->info.inPlace) {
        const int from = output == static_cast<int>(o) ? node.inputs[input] : Absent;
        if (from == Absent || blocks_[id] != Absent || reused.contains(from) || lastUse[from] != index) continue;
        if (program_.values[from].storage != Storage::temporary || constants_[from]) continue;
        if (program_.values[from].sizeBytes() != program_.values[id].sizeBytes()) continue;
        if (std::count(node.inputs.begin(), node.inputs.end(), from) != 1) continue;
        blocks_[id] = blocks_[from];
        reused.insert(from);
      }
      if (blocks_[id] == Absent) blocks_[id] = addBlock(program_.values[id].sizeBytes(), index, index, id);
      lifetimes_[blocks_[id]].last = std::max({lifetimes_[blocks_[id]].last, index, lastUse[id]});
    }
    if (step.kernel->info.workspaceBytes) {
      const size_t bytes = step.kernel->info.workspaceBytes(call(step, index));
      if (bytes > 0) step.workspace = addBlock(bytes, index, index, -1 - index);
    }
    for (size_t i = 0; i < node.inputs.size(); i++)
      if (step.preparations[i] && !step.preparedForms[i])
        step.preparedBlocks[i] = addBlock(step.preparations[i]->bytes(step.inputs[i]), index, index, -1 - index);
  }
}

std::vector<Executable::Placement> Executable::placements() const {
  std::vector<Placement> out;
  for (size_t i = 0; i < lifetimes_.size(); i++)
    out.push_back({labels_[i], plan_.offsets[i], lifetimes_[i].bytes, lifetimes_[i].first, lifetimes_[i].last});
  return out;
}

}  // namespace selscan
