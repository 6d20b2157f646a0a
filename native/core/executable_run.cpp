// How a compiled program runs.
#include <algorithm>

#include "core/executable.h"

namespace selscan {

std::byte* Executable::address(int id) const {
  if (id == Absent) return nullptr;
  if (entries_[id]) return entries_[id]->buffer.data();
  if (constants_[id]) return constants_[id]->buffer.data();
  return bound_ + plan_.offsets[blocks_[id]] + offsets_[id];
}

// Points every tensor to where it lies: the arena may have moved since the last run, and what is kept of weights.
void Executable::bind() {
  std::byte* arena = store_->arena(std::max<size_t>(plan_.peakBytes, 64));
  if (arena == bound_ && store_->moves() == boundMoves_) return;
  bool moved = arena != bound_;
  const auto point = [&](std::byte*& at, std::byte* to) {
    moved |= at != to;
    at = to;
  };
  bound_ = arena;
  boundMoves_ = store_->moves();
  for (size_t index = 0; index < steps_.size(); index++) {
    const ProgramNode& node = program_.nodes[index];
    Step& step = steps_[index];
    for (size_t i = 0; i < node.inputs.size(); i++) {
      point(step.inputs[i].data, address(node.inputs[i]));
      if (step.preparedForms[i]) point(step.prepared[i], step.preparedForms[i]->buffer.data());
      if (step.preparedBlocks[i] != Absent) point(step.prepared[i], arena + plan_.offsets[step.preparedBlocks[i]]);
    }
    for (size_t o = 0; o < node.outputs.size(); o++) point(step.outputs[o].data, address(node.outputs[o]));
  }
  if (moved) recording_.reset();
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

Call Executable::ready(size_t index) {
  Call ready = call(steps_[index], index);
  if (steps_[index].workspace != Absent) ready.workspace = bound_ + plan_.offsets[steps_[index].workspace];
  return ready;
}

// Tells the device what the nodes of a step may touch. An output in the place of an input is both.
void Executable::enter(size_t index) {
  if (!store_->device.watches()) return;
  std::vector<Range> ranges;
  for (size_t i = index; i < index + steps_[index].group; i++) {
    const Step& step = steps_[i];
    for (size_t k = 0; k < step.inputs.size(); k++) {
      if (step.inputs[k]) ranges.push_back({step.inputs[k].data, step.inputs[k].sizeBytes(), false});
      if (step.preparations[k]) ranges.push_back({step.prepared[k], step.preparations[k]->bytes(step.inputs[k]), false});
    }
    for (const Tensor& output : step.outputs) {
      const bool inPlace = std::any_of(step.inputs.begin(), step.inputs.end(), [&](const Tensor& t) { return t.data == output.data; });
      if (output) ranges.push_back({output.data, output.sizeBytes(), !inPlace});
    }
    if (step.workspace != Absent) ranges.push_back({ready(i).workspace, lifetimes_[step.workspace].bytes, true});
  }
  store_->device.enter(ranges);
}

void Executable::prepare(size_t index, size_t input) {
  Step& step = steps_[index];
  const Preparation& preparation = *step.preparations[input];
  const Tensor& from = step.inputs[input];
  const Range ranges[] = {{from.data, from.sizeBytes(), false}, {step.prepared[input], preparation.bytes(from), true}};
  store_->device.enter(ranges);
  preparation.run(from, step.prepared[input], store_->device);
}

void Executable::prepareKept(size_t index, size_t input) {
  Step& step = steps_[index];
  const int id = program_.nodes[index].inputs[input];
  Derived& form = *step.preparedForms[input];
  if (entries_[id]) return store_->prepare(*entries_[id], form, *step.preparations[input]);
  step.prepared[input] = store_->reserve(form);
  prepare(index, input);
  form.version = version(id);
}

// Makes anew what is kept and stale: constants, and prepared forms of weights that the program does not change before their use.
void Executable::refresh(const std::atomic<bool>& abort) {
  for (size_t index = 0; index < steps_.size(); index++) {
    const ProgramNode& node = program_.nodes[index];
    Step& step = steps_[index];
    const uint64_t current = step.constant ? inputVersions(node) : 0;
    if (step.constant && std::none_of(step.kept.begin(), step.kept.end(), [&](const Derived* d) { return d && d->version != current; })) continue;
    for (size_t i = 0; i < node.inputs.size(); i++) {
      const Derived* form = step.preparedForms[i];
      const bool stale = form && !step.preparedLate[i] && form->version != version(node.inputs[i]);
      if (form && !stale && entries_[node.inputs[i]]) store_->settle(*entries_[node.inputs[i]]);
      if (!stale && !(step.constant && step.preparations[i] && !form)) continue;
      check(!abort, "ABORTED", program_.name, ": aborted while its weights were prepared");
      named(index, [&] { form ? prepareKept(index, i) : prepare(index, i); });
    }
    if (!step.constant) continue;
    check(!abort, "ABORTED", program_.name, ": aborted while its weights were prepared");
    bind();
    named(index, [&] {
      enter(index);
      step.kernel->info.run(ready(index));
    });
    for (Derived* kept : step.kept)  // only now: a kernel that threw has left nothing to keep
      if (kept) kept->version = current;
  }
}

// Versions are told only where the work is done, not where it is noted down.
void Executable::runStep(size_t index, bool recording) {
  Step& step = steps_[index];
  for (size_t i = 0; i < step.preparations.size(); i++) {
    if (!step.preparations[i] || (step.preparedForms[i] && !step.preparedLate[i])) continue;
    prepare(index, i);
    if (step.preparedForms[i] && !recording) step.preparedForms[i]->version = version(program_.nodes[index].inputs[i]);
  }
  if (!recording) adoptUpdates(index);
  enter(index);
  if (step.group == 1) return step.kernel->info.run(ready(index));
  std::vector<Call> calls;
  for (size_t i = index; i < index + step.group; i++) calls.push_back(ready(i));
  step.kernel->info.runAll(calls);
}

void Executable::runBody(const std::atomic<bool>* abort, Stopwatch* stopwatch) {
  if (stopwatch) stopwatch->mark();
  for (size_t index = 0; index < steps_.size(); index++) {
    check(!abort || !*abort, "ABORTED", program_.name, ": aborted at node ", index, " of ", steps_.size());
    if (!steps_[index].constant && steps_[index].group > 0) named(index, [&] { runStep(index, !abort); });
    if (stopwatch) stopwatch->mark();
  }
}

// What the nodes of a step update has a new version: told before they run, for one that fails half-way has changed it too.
void Executable::adoptUpdates(size_t index) {
  for (size_t i = index; i < index + steps_[index].group; i++) {
    const ProgramNode& node = program_.nodes[i];
    for (const int update : node.updates)
      if (node.inputs[update] != Absent) entries_[node.inputs[update]]->version++;
  }
}

// An error of the work says at which node.
template <class Work>
void Executable::named(size_t index, Work&& work) const {
  try {
    work();
  } catch (const Error& error) {
    throw Error(error.code, program_.nodes[index].where() + ": " + error.what());
  }
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
    named(index, [&] { step.kernel->info.checkInputs(Call{seen, step.outputs, program_.nodes[index].attributes, store_->device}); });
  }

  // All of them at first: once a copy to one is under way, none may fail to be made.
  std::vector<std::vector<std::byte>> results;
  for (const int id : program_.outputs) results.emplace_back(program_.values[id].sizeBytes());
  Device& device = store_->device;
  bind();
  refresh(abort);
  bind();
  for (size_t i = 0; i < inputs.size(); i++) std::memcpy(staged_.data() + offsets_[inputIds_[i]], inputs[i].data(), inputs[i].size());
  if (inputBlock_ != Absent) device.toDevice(bound_ + plan_.offsets[inputBlock_], staged_.data(), staged_.size());
  execute(abort);
  for (size_t i = 0; i < results.size(); i++) device.toHost(results[i].data(), address(program_.outputs[i]), results[i].size());
  device.synchronize();
  if (!stopwatch_) return results;
  const std::vector<double> times = stopwatch_->seconds();
  for (size_t i = 0; i < seconds_.size(); i++) seconds_[i] += times[i];
  stopwatch_.reset();
  return results;
}

// Node by node, looking at the abort flag; or, where the device records, the second run makes a recording that all later runs
// replay. The first run is not recorded: many programs run once, and its errors name their node.
void Executable::execute(const std::atomic<bool>& abort) {
  Device& device = store_->device;
  if (!device.records() || profiled_ || !warm_) {
    if (!device.records() || profiled_) stopwatch_ = device.stopwatch();
    runBody(&abort, stopwatch_.get());
    warm_ = true;
    return;
  }
  check(!abort, "ABORTED", program_.name, ": aborted before it began");
  if (!recording_) recording_ = device.record([&] { runBody(nullptr, nullptr); });
  for (size_t index = 0; index < steps_.size(); index++) adoptUpdates(index);
  recording_->replay();
}

}  // namespace selscan
