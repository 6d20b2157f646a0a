// The one list of native sources and flags; binding.gyp and CMakeLists.txt both ask this file. Every .cpp under core/ and
// cpu/ is compiled, every .cu under cuda/ where CUDA is wanted: there is nothing to register.
const fs = require("node:fs")
const path = require("node:path")
const { chooseToolkit } = require("./toolkit.cjs")

const root = path.resolve(__dirname, "..")

function walk(folder) {
  return fs.readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const full = path.join(folder, entry.name)
    return entry.isDirectory() ? walk(full) : [full]
  })
}

function under(folder, extension) {
  return walk(path.join(root, "native", folder))
    .filter((file) => file.endsWith(extension))
    .map((file) => path.relative(root, file).split(path.sep).join("/"))
    .sort()
}

const toolkit = chooseToolkit()
const cu = under("cuda", ".cu")

const manifest = {
  kernels: [...under("core", ".cpp"), ...under("cpu", ".cpp")],
  // The same .cu files: by nvcc for the device cuda, and as host C++ for the device emulated of developer builds.
  cuda: toolkit ? cu : [],
  cu,
  emulated: under("emulated", ".cpp"),
  addon: ["native/addon.cpp", "native/environment.cpp"],
  headers: [
    ...["core", "ops", "cpu", "cuda"].flatMap((folder) => under(folder, ".h")),
    ...under("cuda", ".cuh"),
    "native/environment.h",
  ],
  includes: ["native"],
  defines: [
    "NAPI_VERSION=9",
    "NODE_ADDON_API_CPP_EXCEPTIONS",
    "NODE_ADDON_API_REQUIRE_BASIC_FINALIZERS",
    // A worker that is being terminated takes no exceptions any more: throwing one there must not end the process.
    "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS",
  ],
  // No -ffast-math: kernels name the approximations they make. No contraction: a product and a sum are fused where fma() says
  // so and nowhere else, or a loop's body and its tail could differ in bits. GCC 12 warns wrongly of its own strings (restrict).
  cxxflags: [
    "-std=c++20",
    "-O3",
    "-ffp-contract=off",
    "-fexceptions",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-restrict",
  ],
  // Never unloaded: when the last worker that uses the addon ends, Node closes it, but the threads of the device queue and of
  // the pool are the process's and still run its code.
  ldflags: process.platform === "linux" ? ["-Wl,-z,nodelete"] : [],
}

const architectures = ["80", "90"]
Object.assign(manifest, {
  nvcc: [toolkit?.nvcc ?? "nvcc"],
  withCuda: [toolkit ? "1" : "0"],
  // Machine code for A100 and H100, and PTX from which the driver makes code for newer ones.
  architectures: [
    ...architectures.map((number) => `-gencode=arch=compute_${number},code=sm_${number}`),
    `-gencode=arch=compute_${architectures.at(-1)},code=compute_${architectures.at(-1)}`,
  ],
  cuflags: ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fexceptions"],
  // The static runtime finds the driver when it is first used: the addon loads on machines without one.
  cudaLibraries: toolkit ? [`-L${toolkit.libraries}`, "-lcudart_static", "-ldl", "-lrt", "-lpthread"] : [],
})

if (require.main === module) console.log(manifest[process.argv[2]].join(process.argv[3] ?? " "))
module.exports = manifest
