#include "core/executable.h"

#include <algorithm>
#include <iomanip>
#include <set>

namespace selscan {

static std::string where(const ProgramNode& node) { return node.path.empty() ? node.op : node.path + ": " + node.op; }

static std::string bare(const std::string& name) { return name.ends_with('?') ? name.substr(0, name.size() - 1) : name; }

Executable::Executable(std::shared_ptr<Store> store, Program program) : store_(std::move(store)), program_(std::move(program)) {
  const size_t values = program_.values.size();
  entries_.resize(values);
  constants_.resize(values);
  expressions_.resize(values);
  blocks_.assign(values, Absent);
  seconds_.resize(program_.nodes.size());
  for (size_t id = 0; id < values; id++) {
    const ProgramValue& value = program_.values[id];
    if (value.storage == Storage::input) inputIds_.push_back(static_cast<int>(id));
    if (value.storage < Storage::weight) continue;
    entries_[id] = &store_->entry(value.storage, value.name, value.dtype, value.shape);
    // The length makes names and operators of an expression distinct, whatever a name spells.
    if (value.storage == Storage::weight) expressions_[id] = std::to_string(value.name.size()) + ":" + value.name;
  }
  match();
  placeConstants();
  findLifetimes();
  plan_ = planArena(lifetimes_);
}

// Finds a kernel for every node and asks it whether it can do these shapes.
void Executable::match() {
  for (const ProgramNode& node : program_.nodes) {
    Step step;
    step.kernel = findKernel(store_->device.name(), node.op);
    check(step.kernel, "NO_KERNEL", where(node), ": device ", store_->device.name(), " has no kernel for it");
    const Kernel& kernel = *step.kernel;
    check(node.inputs.size() == kernel.inputs.size() && node.outputs.size() == kernel.outputs.size(), "BAD_FILE", where(node),
          ": kernel has the signature ", kernel.signature, ", got ", node.inputs.size(), " inputs and ", node.outputs.size(), " outputs");
    for (size_t i = 0; i < kernel.inputs.size(); i++)
      check(node.inputs[i] != Absent || kernel.inputs[i].ends_with('?'), "BAD_FILE", where(node), ": input ", kernel.inputs[i], " is missing");
    for (const auto& name : kernel.attributes)
      check(std::any_of(node.attributes.entries.begin(), node.attributes.entries.end(), [&](const auto& entry) { return entry.first == name; }),
            "BAD_FILE", where(node), ": attribute ", name, " is missing");
    const auto tensor = [&](int id) {
      if (id == Absent) return Tensor{};
      const ProgramValue& value = program_.values[id];
      return Tensor{nullptr, value.dtype, value.storage, value.shape};
    };
    for (const int id : node.inputs) step.inputs.push_back(tensor(id));
    for (const int id : node.outputs) step.outputs.push_back(tensor(id));
    step.prepared.resize(node.inputs.size());
    step.preparations.resize(node.inputs.size());
    step.preparedBlocks.assign(node.inputs.size(), Absent);
    step.preparedForms.resize(node.inputs.size());
    steps_.push_back(std::move(step));
    Step& kept = steps_.back();
    if (kernel.info.limit) {
      const std::string limit = kernel.info.limit(call(kept, steps_.size() - 1));
      check(limit.empty(), "BAD_SHAPE", where(node), ": ", limit);
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
  std::set<const Entry*> updated;
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
      }
    }
    for (size_t i = 0; i < node.inputs.size(); i++) {
      if (!step.preparations[i] || expressions_[node.inputs[i]].empty()) continue;
      Tensor shape = step.inputs[i];
      step.preparedForms[i] = &store_->derived(expressions_[node.inputs[i]] + "|" + step.preparations[i]->name, step.preparations[i]->bytes(shape));
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

  for (const int id : inputIds_) blocks_[id] = addBlock(program_.values[id].sizeBytes(), 0, std::max(0, lastUse[id]), id);
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

// Points every tensor into the arena, which may have moved since the last run.
void Executable::bind() {
  std::byte* arena = store_->arena(std::max<size_t>(plan_.peakBytes, 64));
  if (arena == bound_) return;
  bound_ = arena;
  const auto address = [&](int id) -> std::byte* {
    if (id == Absent) return nullptr;
    if (entries_[id]) return entries_[id]->buffer.data();
    if (constants_[id]) return constants_[id]->buffer.data();
    return arena + plan_.offsets[blocks_[id]];
  };
  for (size_t index = 0; index < steps_.size(); index++) {
    const ProgramNode& node = program_.nodes[index];
    Step& step = steps_[index];
    for (size_t i = 0; i < node.inputs.size(); i++) {
      step.inputs[i].data = address(node.inputs[i]);
      if (step.preparedForms[i]) step.prepared[i] = step.preparedForms[i]->buffer.data();
      if (step.preparedBlocks[i] != Absent) step.prepared[i] = arena + plan_.offsets[step.preparedBlocks[i]];
    }
    for (size_t o = 0; o < node.outputs.size(); o++) step.outputs[o].data = address(node.outputs[o]);
  }
}

uint64_t Executable::version(int value) const {
  return entries_[value] ? entries_[value]->version : constants_[value]->version;
}

// Grows with every change of what a constant step is computed from.
uint64_t Executable::inputVersions(const ProgramNode& node) const {
  uint64_t sum = 0;
  for (const int id : node.inputs)
    if (id != Absent) sum += version(id);
  return sum;
}

void Executable::runStep(size_t index) {
  const ProgramNode& node = program_.nodes[index];
  Step& step = steps_[index];
  const uint64_t current = step.constant ? inputVersions(node) : 0;
  const auto isStale = [&](const Derived* kept) { return kept && kept->version != current; };
  if (step.constant && std::none_of(step.kept.begin(), step.kept.end(), isStale)) return;
  for (size_t i = 0; i < node.inputs.size(); i++) {
    if (!step.preparations[i]) continue;
    Derived* form = step.preparedForms[i];
    if (form && form->version == version(node.inputs[i])) continue;
    step.preparations[i]->run(step.inputs[i], step.prepared[i], store_->device);
    if (form) form->version = version(node.inputs[i]);
  }
  Call ready = call(step, index);
  if (step.workspace != Absent) ready.workspace = bound_ + plan_.offsets[step.workspace];
  step.kernel->info.run(ready);
  for (Derived* kept : step.kept)  // only now: a kernel that threw has left nothing to keep
    if (kept) kept->version = current;
  for (const int update : node.updates)
    if (node.inputs[update] != Absent) entries_[node.inputs[update]]->version++;
}

std::vector<std::vector<std::byte>> Executable::run(const std::vector<std::vector<std::byte>>& inputs, const std::atomic<bool>& abort) {
  check(inputs.size() == inputIds_.size(), "BAD_INPUT", program_.name, ": takes ", inputIds_.size(), " inputs, got ", inputs.size());
  for (size_t i = 0; i < inputs.size(); i++) {
    const ProgramValue& value = program_.values[inputIds_[i]];
    check(inputs[i].size() == value.sizeBytes(), "BAD_INPUT", program_.name, ": input ", value.name, " is ", value.sizeBytes(), " bytes, got ",
          inputs[i].size());
  }
  check(!abort, "ABORTED", program_.name, ": aborted before it began");

  // Indices are judged on the host's copy, before anything is computed: a refused run changes nothing.
  for (size_t index = 0; index < steps_.size(); index++) {
    Step& step = steps_[index];
    if (!step.kernel->info.checkInputs) continue;
    std::vector<Tensor> seen = step.inputs;
    for (size_t i = 0; i < seen.size(); i++) {
      seen[i].data = nullptr;
      const auto at = std::find(inputIds_.begin(), inputIds_.end(), program_.nodes[index].inputs[i]);
      if (at != inputIds_.end()) seen[i].data = const_cast<std::byte*>(inputs[at - inputIds_.begin()].data());
    }
    try {
      step.kernel->info.checkInputs(Call{seen, step.outputs, program_.nodes[index].attributes, store_->device});
    } catch (const Error& error) {
      throw Error(error.code, where(program_.nodes[index]) + ": " + error.what());
    }
  }

  bind();
  for (size_t i = 0; i < inputs.size(); i++)
    store_->device.toDevice(bound_ + plan_.offsets[blocks_[inputIds_[i]]], inputs[i].data(), inputs[i].size());
  for (size_t index = 0; index < steps_.size(); index++) {
    check(!abort, "ABORTED", program_.name, ": aborted at node ", index, " of ", steps_.size());
    const auto begin = std::chrono::steady_clock::now();
    runStep(index);
    seconds_[index] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  std::vector<std::vector<std::byte>> results;
  for (const int id : program_.outputs) {
    std::byte* from = entries_[id] ? entries_[id]->buffer.data() : constants_[id] ? constants_[id]->buffer.data() : bound_ + plan_.offsets[blocks_[id]];
    results.emplace_back(program_.values[id].sizeBytes());
    store_->device.toHost(results.back().data(), from, results.back().size());
  }
  store_->device.synchronize();
  return results;
}

std::vector<Executable::Placement> Executable::placements() const {
  std::vector<Placement> out;
  for (size_t i = 0; i < lifetimes_.size(); i++)
    out.push_back({labels_[i], plan_.offsets[i], lifetimes_[i].bytes, lifetimes_[i].first, lifetimes_[i].last});
  return out;
}

}  // namespace selscan
