// The one line that ends a process whose kernel did what no GPU allows.
#pragma once
#include "emulated/block.h"

namespace selscan::emulator {

const char* nameOf(WarpOperation operation);
// For report(): null outside a kernel; the thread is null when the complaint is about a whole block.
const void* runningKernel();
const Thread* runningThread();

}  // namespace selscan::emulator
