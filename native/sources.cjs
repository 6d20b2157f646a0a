// The one list of native sources and flags; binding.gyp and CMakeLists.txt both ask this file. Every .cpp under core/ and
// cpu/ is compiled: there is nothing to register.
const fs = require("node:fs")
const path = require("node:path")

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

const manifest = {
  kernels: [...under("core", ".cpp"), ...under("cpu", ".cpp")],
  addon: ["native/addon.cpp", "native/environment.cpp"],
  headers: [...under("core", ".h"), ...under("cpu", ".h"), "native/environment.h"],
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

if (require.main === module) console.log(manifest[process.argv[2]].join(process.argv[3] ?? " "))
module.exports = manifest
