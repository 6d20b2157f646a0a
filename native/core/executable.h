// A program compiled for a store: a kernel for every node, memory planned, ready to run any number of times.
#pragma once
#include <atomic>
#include <chrono>

#include "core/plan.h"
#include "core/program.h"
#include "core/store.h"

namespace selscan {

class Executable {
 public:
  Executable(std::shared_ptr<Store> store, Program program);

  // inputs: host bytes of every input value, in rising id; results: host bytes of every output. The abort flag is looked at
  // between nodes (ABORTED). Throws before anything is computed when an input is of the wrong size or holds bad indices.
  std::vector<std::vector<std::byte>> run(const std::vector<std::vector<std::byte>>& inputs, const std::atomic<bool>& abort);

  const Program& program() const { return program_; }
  const Store& store() const { return *store_; }
  const std::vector<int>& inputIds() const { return inputIds_; }
  size_t peakBytes() const { return plan_.peakBytes; }

  // What was placed where, for tests and for people: value id (or −1 − node for workspaces), offset, bytes, first, last.
  struct Placement {
    int value;
    size_t offset, bytes;
    int first, last;
  };
  std::vector<Placement> placements() const;

  // Seconds spent in each node over all runs so far.
  const std::vector<double>& seconds() const { return seconds_; }

 private:
  struct Step {
    const Kernel* kernel;
    std::vector<Tensor> inputs, outputs;
    int workspace = Absent;                      // block of the arena
    std::vector<const Preparation*> preparations;  // per input, or null
    std::vector<int> preparedBlocks;             // per input: block of the arena when the input is not a weight
    std::vector<Derived*> preparedForms;         // per input: kept form of a weight
    bool constant = false;                       // computed from weights alone: kept, and made anew when they change
    std::vector<Derived*> kept;                  // outputs of a constant step
    std::vector<std::byte*> prepared;
  };

  void match();
  void placeConstants();
  void findLifetimes();
  void bind();
  void runStep(size_t index);
  uint64_t inputVersions(const ProgramNode&) const;
  uint64_t version(int value) const;
  Call call(Step& step, size_t index);
  int addBlock(size_t bytes, int first, int last, int label);

  std::shared_ptr<Store> store_;
  Program program_;
  std::vector<Step> steps_;
  std::vector<int> inputIds_;
  std::vector<Entry*> entries_;        // per value: its stored entry, or null
  std::vector<Derived*> constants_;    // per value: where a constant step keeps it, or null
  std::vector<std::string> expressions_;  // per value: how it is computed from weights; empty if it is not
  std::vector<int> blocks_;            // per value: its block of the arena, or Absent
  std::vector<Lifetime> lifetimes_;
  std::vector<int> labels_;
  Plan plan_;
  std::byte* bound_ = nullptr;  // the arena that the tensors point into
  std::vector<double> seconds_;
};

}  // namespace selscan
