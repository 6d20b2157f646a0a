// A program compiled for a store: a kernel for every node, memory planned, ready to run any number of times.
#pragma once
#include <atomic>
#include <chrono>

#include "core/plan.h"
#include "core/program.h"
#include "core/store.h"

namespace selscan {

// Several runs of a program as one: what each takes is given at first, but for one i32 value that a run says and the next takes.
struct Steps {
  size_t count = 1;
  int output = Absent, input = Absent;        // of the program's outputs and inputs: the value that is handed on
  std::vector<int32_t> ends;                  // no step follows one that says any of these, or a negative number
  double secondsMost = 0;                     // nor one that would likely end later than this; 0: whenever that is
  const std::atomic<int>* waiting = nullptr;  // nor one while others wait for the device
};

class Executable {
 public:
  // profiled: every node is timed, at the cost of a device's recording (a captured graph has no nodes to time).
  Executable(std::shared_ptr<Store> store, Program program, bool profiled = false);
  ~Executable();

  // inputs: host bytes of every input value, in rising id, those of all steps one after another; results: host bytes of every
  // output, of as many steps as were done, at least one. The abort flag is looked at between nodes (ABORTED). Throws before anything is
  // computed when an input is of the wrong size or holds bad indices; of what a step says, before the next begins.
  using Bytes = std::vector<std::byte>;
  std::vector<Bytes> run(const std::vector<Bytes>& inputs, const std::atomic<bool>& abort, const Steps& steps = {});

  const Program& program() const { return program_; }
  Store& store() const { return *store_; }
  const std::vector<int>& inputIds() const { return inputIds_; }
  size_t peakBytes() const { return plan_.peakBytes; }

  // What was placed where, for tests and for people: value id (or −1 − node for workspaces), offset, bytes, first, last.
  struct Placement {
    int value;
    size_t offset, bytes;
    int first, last;
  };
  std::vector<Placement> placements() const;

  // Seconds spent in each node over all runs so far; zeros where the device records and profiling was not asked for.
  const std::vector<double>& seconds() const { return seconds_; }

 private:
  struct Step {
    const Kernel* kernel;
    std::vector<Tensor> inputs, outputs;
    int workspace = Absent;                      // block of the arena
    std::vector<const Preparation*> preparations;  // per input, or null
    std::vector<int> preparedBlocks;             // per input: block of the arena when the input is not a weight
    std::vector<Derived*> preparedForms;         // per input: kept form of a weight
    std::vector<bool> preparedLate;              // per input: the program updates that weight before this node
    bool constant = false;                       // computed from weights alone: kept, and made anew when they change
    size_t group = 1;                            // nodes that run at once from here on; 0 inside a group
    std::vector<Derived*> kept;                  // outputs of a constant step
    std::vector<std::byte*> prepared;
  };

  void match();
  void pin();
  void placeConstants();
  void findLifetimes();
  void bind();
  void groupSteps();
  bool joins(size_t first, size_t index) const;
  void checkSizes(const std::vector<Bytes>& inputs, const Steps& steps) const;
  template <class At>
  void checkValues(At&& at, int only = Absent);
  void stage(const std::vector<Bytes>& inputs, size_t step);
  void handOn(const Steps& steps, const std::byte* said);
  void runOnce(size_t step, std::vector<Bytes>& results, const std::atomic<bool>& abort);
  void addSeconds();
  void refresh(const std::atomic<bool>& abort);
  void runBody(const std::atomic<bool>* abort, Stopwatch* stopwatch);
  void runStep(size_t index, bool recording);
  template <class Work>
  void named(size_t index, Work&& work) const;
  void prepare(size_t index, size_t input);
  void prepareKept(size_t index, size_t input);
  void enter(size_t index);
  void adoptUpdates(size_t index);
  void execute(const std::atomic<bool>& abort);
  Call ready(size_t index);
  std::byte* address(int value) const;
  uint64_t inputVersions(const ProgramNode&) const;
  uint64_t version(int value) const;
  Call call(Step& step, size_t index);
  int addBlock(size_t bytes, int first, int last, int label);

  std::shared_ptr<Store> store_;
  Program program_;
  std::vector<Step> steps_;
  std::vector<int> inputIds_;
  std::vector<Tensor> seen_;           // inputs of the node whose indices are judged
  std::vector<Entry*> entries_;        // per value: its stored entry, or null
  std::vector<Derived*> constants_;    // per value: where a constant step keeps it, or null
  std::vector<std::string> expressions_;  // per value: how it is computed from weights; empty if it is not
  std::vector<int> blocks_;            // per value: its block of the arena, or Absent
  std::vector<Lifetime> lifetimes_;
  std::vector<int> labels_;
  Plan plan_;
  std::vector<size_t> offsets_;        // per value: where it begins in its block
  std::vector<std::byte> staged_;      // all inputs, as they lie in their one block of the arena
  int inputBlock_ = Absent;
  std::byte* bound_ = nullptr;  // the arena that the tensors point into
  uint64_t boundMoves_ = 0;     // the store's when they were bound
  std::vector<Entry*> pinned_;  // weights that are read as they lie
  std::unique_ptr<Recording> recording_;
  std::unique_ptr<Stopwatch> stopwatch_;  // of the steps under way
  bool warm_ = false, profiled_;
  bool updatesWeights_ = false;  // what is kept of weights may be stale from one step to the next
  std::vector<double> seconds_;
};

}  // namespace selscan
