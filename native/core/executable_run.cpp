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

void Executable::checkSizes(const std::vector<Bytes>& inputs, const Steps& steps) const {
  check(inputs.size() == inputIds_.size(), "BAD_INPUT", program_.name, ": takes ", inputIds_.size(), " inputs, got ", inputs.size());
  for (size_t i = 0; i < inputs.size(); i++) {
    const ProgramValue& value = program_.values[inputIds_[i]];
    check(inputs[i].size() / steps.count == value.sizeBytes() && inputs[i].size() % steps.count == 0, "BAD_INPUT", program_.name, ": input ",
          value.name, " is ", value.sizeBytes(), " bytes", steps.count > 1 ? " in each of " + std::to_string(steps.count) + " steps" : "",
          ", got ", inputs[i].size());
  }
  if (steps.count == 1) return;
  const auto among = [](int index, const std::vector<int>& ids) { return index >= 0 && index < static_cast<int>(ids.size()); };
  check(among(steps.output, program_.outputs) && among(steps.input, inputIds_), "BAD_INPUT", program_.name,
        ": steps hand an output on to an input, got output ", steps.output, " of ", program_.outputs.size(), " and input ", steps.input, " of ",
        inputIds_.size());
  const ProgramValue &from = program_.values[program_.outputs[steps.output]], &to = program_.values[inputIds_[steps.input]];
  check(from.dtype == Dtype::i32 && to.dtype == Dtype::i32 && from.sizeBytes() == to.sizeBytes(), "BAD_INPUT", program_.name,
        ": an i32 output is handed on to an i32 input of as many elements, got ", name(from.dtype), " ", text(from.shape), " for ",
        name(to.dtype), " ", text(to.shape));
}

// Judges the indices of one step, whose inputs lie where `at` says by their place in inputIds_; or those of nodes that read input `only`.
template <class At>
void Executable::checkValues(At&& at, int only) {
  for (size_t index = 0; index < steps_.size(); index++) {
    Step& step = steps_[index];
    const std::vector<int>& ids = program_.nodes[index].inputs;
    if (!step.kernel->info.checkInputs || (only != Absent && std::find(ids.begin(), ids.end(), inputIds_[only]) == ids.end())) continue;
    seen_ = step.inputs;
    for (size_t i = 0; i < seen_.size(); i++) {
      const auto found = std::find(inputIds_.begin(), inputIds_.end(), ids[i]);
      seen_[i].data = found == inputIds_.end() ? nullptr : const_cast<std::byte*>(at(found - inputIds_.begin()));
    }
    named(index, [&] { step.kernel->info.checkInputs(Call{seen_, step.outputs, program_.nodes[index].attributes, store_->device}); });
  }
}

void Executable::stage(const std::vector<Bytes>& inputs, size_t step) {
  for (size_t i = 0; i < inputs.size(); i++) {
    const size_t bytes = program_.values[inputIds_[i]].sizeBytes();
    std::memcpy(staged_.data() + offsets_[inputIds_[i]], inputs[i].data() + step * bytes, bytes);
  }
}

// By way of the host, where all inputs of a step lie already and go to the device in one copy: whether a step follows is decided there.
void Executable::handOn(const Steps& steps, const std::byte* said) {
  const int id = inputIds_[steps.input];
  std::memcpy(staged_.data() + offsets_[id], said, program_.values[id].sizeBytes());
  checkValues([&](size_t i) { return staged_.data() + offsets_[inputIds_[i]]; }, steps.input);
}

void Executable::runOnce(size_t step, std::vector<Bytes>& results, const std::atomic<bool>& abort) {
  Device& device = store_->device;
  if (step == 0 || updatesWeights_) {
    bind();
    refresh(abort);
    bind();
  }
  if (inputBlock_ != Absent) device.toDevice(bound_ + plan_.offsets[inputBlock_], staged_.data(), staged_.size());
  execute(abort);
  for (size_t i = 0; i < results.size(); i++) {
    const size_t bytes = program_.values[program_.outputs[i]].sizeBytes();
    device.toHost(results[i].data() + step * bytes, address(program_.outputs[i]), bytes);
  }
  device.synchronize();
}

// Whether the step that said this is the last, whatever follows was given.
static bool isLast(const Steps& steps, const std::byte* said, size_t bytes) {
  for (size_t at = 0; at < bytes; at += sizeof(int32_t)) {
    int32_t id = 0;
    std::memcpy(&id, said + at, sizeof id);
    if (id < 0 || std::find(steps.ends.begin(), steps.ends.end(), id) != steps.ends.end()) return true;
  }
  return steps.waiting && *steps.waiting > 0;
}

std::vector<Executable::Bytes> Executable::run(const std::vector<Bytes>& inputs, const std::atomic<bool>& abort, const Steps& steps) {
  const auto began = std::chrono::steady_clock::now();
  checkSizes(inputs, steps);
  check(!abort, "ABORTED", program_.name, ": aborted before it began");
  // Indices are judged on the host's copy, before anything is computed: a refused run changes nothing.
  for (size_t step = 0; step < steps.count; step++)
    checkValues([&](size_t i) { return inputs[i].data() + step * program_.values[inputIds_[i]].sizeBytes(); });

  // All of them at first: once a copy to one is under way, none may fail to be made.
  std::vector<Bytes> results;
  for (const int id : program_.outputs) results.emplace_back(steps.count * program_.values[id].sizeBytes());
  const size_t saidBytes = steps.count > 1 ? program_.values[program_.outputs[steps.output]].sizeBytes() : 0;
  stopwatch_.reset();  // of a run that failed
  size_t done = 0;
  for (;;) {
    const std::byte* said = done > 0 ? results[steps.output].data() + (done - 1) * saidBytes : nullptr;
    stage(inputs, done);
    if (said) handOn(steps, said);
    runOnce(done++, results, abort);
    if (done == steps.count || isLast(steps, results[steps.output].data() + (done - 1) * saidBytes, saidBytes)) break;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (steps.secondsMost > 0 && seconds / static_cast<double>(done) * static_cast<double>(done + 1) > steps.secondsMost) break;
  }
  for (Bytes& result : results) result.resize(result.size() / steps.count * done);
  addSeconds();
  return results;
}

void Executable::addSeconds() {
  if (!stopwatch_) return;
  const std::vector<double> times = stopwatch_->seconds();
  // Steps follow one another without a mark between the end of one and the beginning of the next.
  for (size_t i = 0; i < times.size(); i++)
    if (i % (seconds_.size() + 1) < seconds_.size()) seconds_[i % (seconds_.size() + 1)] += times[i];
  stopwatch_.reset();
}

// Node by node, looking at the abort flag; or, where the device records, the second run makes a recording that all later runs
// replay. The first run is not recorded: many programs run once, and its errors name their node.
void Executable::execute(const std::atomic<bool>& abort) {
  Device& device = store_->device;
  if (!device.records() || profiled_ || !warm_) {
    if (!stopwatch_ && (!device.records() || profiled_)) stopwatch_ = device.stopwatch();
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
