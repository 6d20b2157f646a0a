// Builds the addon when it is missing or older than its sources; does nothing otherwise. In a clone, package.json names this script as
// `install`: npm would run `node-gyp rebuild` by itself, again at the first npx, and undo other builds. What npm publishes has no
// such script; there `selscan build` runs this one.
const { createHash } = require("node:crypto")
const { spawnSync } = require("node:child_process")
const fs = require("node:fs")
const os = require("node:os")
const path = require("node:path")

const root = path.resolve(__dirname, "..")
const built = path.join(root, "build", "Release", "selscan.node")
const stampFile = path.join(root, "build", "selscan.stamp")
const gypFile = path.join(root, "binding.gyp")
// Published packages keep it here: pnpm and yarn would build, or ask whether they may, whatever has one in its first folder.
const shippedGypFile = path.join(__dirname, "binding.gyp")

function stamp() {
  const manifest = require("./sources.cjs")
  const hash = createHash("sha256").update(`${process.arch} ${process.platform} ${JSON.stringify(manifest)}`)
  const gyp = fs.existsSync(gypFile) ? "binding.gyp" : "native/binding.gyp"
  for (const file of [...manifest.addon, ...manifest.kernels, ...manifest.cuda, ...manifest.headers, gyp]) {
    hash.update(file).update(fs.readFileSync(path.join(root, file)))
  }
  return hash.digest("hex")
}

function isCurrent(expected) {
  return fs.existsSync(built) && fs.existsSync(stampFile) && fs.readFileSync(stampFile, "utf8") === expected
}

/** What a build needs and this machine lacks, in words. */
function missingTools() {
  if (process.platform === "win32") return [] // node-gyp looks for Visual Studio, in many places
  const runs = (command, words, input) => spawnSync(command, words, { input, stdio: "pipe" }).status === 0
  const [compiler, ...flags] = (process.env.CXX || "c++").split(" ").filter(Boolean)
  const program = "#include <concepts>\n#include <span>\n"
  const missing = []
  if (!runs(compiler, [...flags, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], program)) {
    missing.push(`no C++20 compiler (${compiler})`)
  }
  if (!runs(process.env.MAKE || "make", ["--version"])) missing.push("no make")
  const pythons = [process.env.PYTHON, process.env.npm_config_python, "python3", "python"].filter(Boolean)
  if (!pythons.some((python) => runs(python, ["--version"]))) missing.push("no python3")
  return missing
}

/** node-gyp comes with npm: npm names it to the scripts it runs, and to this one when it is asked. */
function nodeGyp() {
  if (process.env.npm_config_node_gyp) return process.env.npm_config_node_gyp
  const words = ["exec", "--offline", "--call", "node -p process.env.npm_config_node_gyp"]
  const { stdout } = spawnSync("npm", words, { cwd: root, encoding: "utf8", shell: process.platform === "win32" })
  const file = stdout?.trim().split("\n").at(-1)
  return file && fs.existsSync(file) ? file : undefined
}

function build() {
  const missing = missingTools()
  const gyp = missing.length === 0 ? nodeGyp() : undefined
  if (missing.length === 0 && gyp === undefined) missing.push("no npm on the path, which brings node-gyp")
  if (missing.length > 0) {
    console.error(
      `selscan: the addon is built by a C++20 compiler, make and python3, got ${missing.join(", ")}; install what is missing (Debian: apt-get install g++ make python3)`,
    )
    return 1
  }
  const action = fs.existsSync(path.join(root, "build", "Makefile")) ? ["configure", "build"] : ["rebuild"]
  // Most installations of Node carry their own headers; only without them does node-gyp download some.
  const prefix = path.resolve(process.execPath, "../..")
  const hasHeaders = fs.existsSync(path.join(prefix, "include", "node", "common.gypi"))
  const headers = hasHeaders && !process.env.npm_config_nodedir ? [`--nodedir=${prefix}`] : []
  const jobs = process.env.SELSCAN_JOBS || String(os.availableParallelism())
  fs.rmSync(stampFile, { force: true }) // a build that ends halfway is none
  const words = [gyp, ...action, ...headers, "-j", jobs, "--loglevel=error"]
  const { status, error } = spawnSync(process.execPath, words, { cwd: root, stdio: "inherit" })
  if (status === 0) return 0
  const why = error ? `: ${error.message}` : ""
  console.error(
    `selscan: the addon could not be built${why}; what is said above comes from node-gyp and the compiler; with SELSCAN_CUDA=0 no CUDA toolkit is used`,
  )
  return status ?? 1
}

let expected
try {
  expected = stamp()
} catch (error) {
  console.error(`selscan: ${error.message}`)
  process.exit(1)
}
if (isCurrent(expected) && !process.argv.includes("--force")) {
  console.log("selscan: the addon is up to date")
  process.exit(0)
}
const borrowed = !fs.existsSync(gypFile)
let status
try {
  if (borrowed) fs.copyFileSync(shippedGypFile, gypFile)
  status = build()
  if (status === 0) fs.writeFileSync(stampFile, expected)
} catch (error) {
  console.error(
    `selscan: the addon is built in ${root}, which cannot be written, ${error.message}; run this as the user who owns it`,
  )
  status = 1
} finally {
  if (borrowed) fs.rmSync(gypFile, { force: true })
}
process.exit(status)
