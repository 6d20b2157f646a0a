// Shapes held against named dimensions, natively: a program may come from a file, and a kernel that indexes by a shape it was
// not given would end the process.
#pragma once
#include <initializer_list>
#include <string>

#include "core/kernel.h"

namespace selscan {

// For .limit: how the call's shapes or dtypes differ from patterns as in lib/graph/op.ts ("i32 segments 5", "rows inner",
// "float out in", "...", "" for a scalar), in words; empty when they agree. `activation` before the sizes is f32 or, where
// the device stores them so, bf16, the same for all tensors of the call that are marked so. One pattern per input and output, in
// order; inputs that begin with '?' may be absent, as any output may.
// `attribute` names the attribute that states the first size of the first output, where no input does.
std::string dimsMismatch(const Call&, std::initializer_list<const char*> inputs, std::initializer_list<const char*> outputs,
                         const char* attribute = nullptr);

}  // namespace selscan
