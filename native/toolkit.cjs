// Whether the addon is built with CUDA kernels, and where the compiler and the static runtime are. SELSCAN_CUDA=1 asks for them,
// SELSCAN_CUDA=0 declines; unset, they are built where both nvcc and a driver are found.
const { spawnSync } = require("node:child_process")
const fs = require("node:fs")
const path = require("node:path")

const versionMin = [12, 8]

/** nvcc, its version and the folder of libcudart_static.a, of every toolkit found. CUDA_HOME names one that is not on the path. */
function* toolkits() {
  const places = [
    process.env.CUDA_HOME && path.join(process.env.CUDA_HOME, "bin", "nvcc"),
    "nvcc",
    "/usr/local/cuda/bin/nvcc",
  ]
  for (const nvcc of places.filter(Boolean)) {
    // A dry run tells where the toolkit is, whatever wrapper or link was called.
    const { status, stderr } = spawnSync(nvcc, ["-dryrun", "-c", "-x", "cu", "/dev/null", "-o", "/dev/null"], {
      encoding: "utf8",
    })
    const root = status === 0 && /^#\$ TOP=(.*)$/m.exec(stderr)?.[1]
    if (!root) continue
    const folders = ["lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib"].map((name) =>
      path.join(root, name),
    )
    const libraries = folders.find((folder) => fs.existsSync(path.join(folder, "libcudart_static.a")))
    const version = ["MAJOR", "MINOR"].map((part) =>
      Number(new RegExp(`__CUDACC_VER_${part}__=(\\d+)`).exec(stderr)?.[1]),
    )
    if (libraries !== undefined) yield { nvcc, libraries, version }
  }
}

/** The first toolkit that is recent enough, or undefined: an older one must not end an installation that did not ask for it. */
function findToolkit() {
  for (const toolkit of toolkits()) if (isRecent(toolkit)) return toolkit
  return undefined
}

function isRecent({ version: [major, minor] }) {
  return major > versionMin[0] || (major === versionMin[0] && minor >= versionMin[1])
}

/** The kernel module's file, or the driver's library among those the dynamic linker knows. */
function hasDriver() {
  if (process.platform !== "linux") return false
  if (fs.existsSync("/proc/driver/nvidia/version")) return true
  return /\blibcuda\.so\.1\b/.test(spawnSync("/sbin/ldconfig", ["-p"], { encoding: "utf8" }).stdout ?? "")
}

/** The toolkit to build with, or undefined for a build without CUDA. Throws when SELSCAN_CUDA=1 asks for what is not there. */
function chooseToolkit() {
  const asked = process.env.SELSCAN_CUDA ?? ""
  if (!["", "0", "1"].includes(asked))
    throw new Error(`SELSCAN_CUDA: 0 or 1 is expected, got ${asked}; unset it to decide by what is found`)
  if (asked === "0" || (asked === "" && !hasDriver())) return undefined
  const toolkit = findToolkit()
  if (toolkit === undefined && asked === "1") {
    const [older] = toolkits()
    throw new Error(
      `SELSCAN_CUDA=1: nvcc of CUDA ${versionMin.join(".")} or newer with libcudart_static.a is needed, got ${older ? `${older.nvcc} of ${older.version.join(".")}` : "none"}; install the CUDA toolkit or set CUDA_HOME`,
    )
  }
  return toolkit
}

module.exports = { chooseToolkit, findToolkit }
