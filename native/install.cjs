// Builds the addon when it is missing or older than its sources; does nothing otherwise. package.json names this script as
// `install`: npm would run `node-gyp rebuild` by itself, again at the first npx, and undo other builds.
const { createHash } = require("node:crypto")
const { spawnSync } = require("node:child_process")
const fs = require("node:fs")
const os = require("node:os")
const path = require("node:path")

const root = path.resolve(__dirname, "..")
const built = path.join(root, "build", "Release", "selscan.node")
const stampFile = path.join(root, "build", "selscan.stamp")

function stamp() {
  const manifest = require("./sources.cjs")
  const hash = createHash("sha256").update(`${process.arch} ${process.platform} ${JSON.stringify(manifest)}`)
  for (const file of [...manifest.addon, ...manifest.kernels, ...manifest.cuda, ...manifest.headers, "binding.gyp"]) {
    hash.update(file).update(fs.readFileSync(path.join(root, file)))
  }
  return hash.digest("hex")
}

function isCurrent(expected) {
  return fs.existsSync(built) && fs.existsSync(stampFile) && fs.readFileSync(stampFile, "utf8") === expected
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

// npm puts its own node-gyp on the path of scripts; outside of npm it is asked for by name.
const command = process.env.npm_config_node_gyp
  ? [process.execPath, process.env.npm_config_node_gyp]
  : ["npx", "--no-install", "node-gyp"]
const action = fs.existsSync(path.join(root, "build", "Makefile")) ? ["configure", "build"] : ["rebuild"]
// Most installations of Node carry their own headers; only without them does node-gyp download some.
const prefix = path.resolve(process.execPath, "../..")
const hasHeaders = fs.existsSync(path.join(prefix, "include", "node", "common.gypi"))
const headers = hasHeaders && !process.env.npm_config_nodedir ? [`--nodedir=${prefix}`] : []
const jobs = String(os.availableParallelism?.() ?? 2)
const result = spawnSync(command[0], [...command.slice(1), ...action, ...headers, "-j", jobs, "--silent"], {
  cwd: root,
  stdio: "inherit",
})
if (result.status !== 0) {
  console.error(
    "selscan: the addon could not be built; it needs a C++20 compiler, make and python3 (Debian: apt-get install g++ make python3); with SELSCAN_CUDA=0 no CUDA toolkit is used",
  )
  process.exit(result.status ?? 1)
}
fs.writeFileSync(stampFile, expected)
