// Where addons may lie. Bundlers follow `require` of a literal path and nothing else, and only where it stands in a `try` of its
// own function do they forgive a package that is not installed: hence CommonJS, and one function for each path.

/** A build of this machine: by `npm ci` in a clone, by `selscan build` elsewhere. */
const built = {
  name: "build/Release/selscan.node",
  path() {
    try {
      return require.resolve("../build/Release/selscan.node")
    } catch {
      return undefined
    }
  },
  load() {
    try {
      return { exports: require("../build/Release/selscan.node") }
    } catch (error) {
      return { error }
    }
  },
}

const linuxX64 = {
  name: "@selscan/linux-x64",
  version() {
    try {
      return require("@selscan/linux-x64/package.json").version
    } catch {
      return undefined
    }
  },
  path() {
    try {
      return require.resolve("@selscan/linux-x64/selscan.node")
    } catch {
      return undefined
    }
  },
  load() {
    try {
      return { exports: require("@selscan/linux-x64/selscan.node") }
    } catch (error) {
      return { error }
    }
  },
}

const linuxX64Cuda = {
  name: "@selscan/linux-x64-cuda",
  version() {
    try {
      return require("@selscan/linux-x64-cuda/package.json").version
    } catch {
      return undefined
    }
  },
  path() {
    try {
      return require.resolve("@selscan/linux-x64-cuda/selscan.node")
    } catch {
      return undefined
    }
  },
  load() {
    try {
      return { exports: require("@selscan/linux-x64-cuda/selscan.node") }
    } catch (error) {
      return { error }
    }
  },
}

/**
 * Packages by platform, all of them optional dependencies of selscan; the one without CUDA kernels first. With CUDA is of use where a driver
 * is, though it loads everywhere.
 */
const packages = { "linux-x64": [linuxX64, linuxX64Cuda] }

exports.version = require("../package.json").version
exports.built = built
exports.packages = packages
