/**
 * In place of the addon, for what no machine without a GPU can show: SELSCAN_ADDON names this file. CUDA_MISSING says why cuda
 * cannot be used; without it, it can. CUDA_USABLE names a GPU that can be used all the same. Every device is lost as soon as
 * a program is run on it.
 */
const missing = process.env.CUDA_MISSING

function lost() {
  return Promise.reject(
    Object.assign(new Error("device cuda: it was lost; start the process anew"), { code: "DEVICE_LOST" }),
  )
}

let isLost = false
function refused(device) {
  return Object.assign(new Error(`device ${device}: ${missing}`), { code: "NO_DEVICE" })
}

module.exports = {
  devices: () => [
    { name: "cpu", description: "cpu", instructionSet: "portable", threads: 1 },
    { name: "cuda", description: "one GPU", ...(missing && { missing }) },
  ],
  // The first GPU can be too old, and the second not.
  describe: (device) => {
    if (missing && device !== process.env.CUDA_USABLE) throw refused(device)
    return { name: device, description: "one GPU" }
  },
  kernels: () => [],
  open: () => 1,
  upload: () => (isLost ? lost() : Promise.resolve()),
  copySlot: () => (isLost ? lost() : Promise.resolve()),
  compile: () => (isLost ? lost() : Promise.resolve({ program: 2, peakBytes: 0, placements: [] })),
  run: () => {
    isLost = true
    return lost()
  },
  dispose: () => Promise.resolve(),
}
