/**
 * The addon and selscan-replay with CUDA, built from the one list of sources and flags (native/sources.cjs) into a folder of
 * their own: neither the installer's build nor the developer's is disturbed.
 */
import { execFile, execFileSync } from "node:child_process"
import { existsSync, mkdirSync, readFileSync, statSync } from "node:fs"
import { createRequire } from "node:module"
import { availableParallelism } from "node:os"
import { join, resolve } from "node:path"

const root = resolve(import.meta.dirname, "..", "..")
const require = createRequire(import.meta.url)

function run(command, words) {
  return new Promise((done, fail) => {
    execFile(command, words, { cwd: root, maxBuffer: 1 << 28 }, (error, stdout, stderr) =>
      error ? fail(new Error(`${words.at(-1)} could not be built\n${stdout}${stderr}`.trim())) : done(),
    )
  })
}

/** Whether the object is older than its source, or than any header that it was made of. */
function isStale(object) {
  const dependencies = `${object}.d`
  if (!existsSync(object) || !existsSync(dependencies)) return true
  const built = statSync(object).mtimeMs
  const files = readFileSync(dependencies, "utf8")
    .replace(/^[^:]*:/, "")
    .split(/[\s\\]+/)
  return files
    .filter(Boolean)
    .some((file) => !existsSync(resolve(root, file)) || statSync(resolve(root, file)).mtimeMs > built)
}

function compilers(manifest) {
  const includes = [
    "-Inative",
    `-I${require("node-addon-api").include_dir}`,
    `-I${require("node-api-headers").include_dir}`,
  ]
  return {
    cpp: ["g++", ...manifest.cxxflags, "-fPIC", ...includes, ...manifest.defines.map((name) => `-D${name}`)],
    cu: [manifest.nvcc[0], "-Inative", ...manifest.architectures, ...manifest.cuflags],
  }
}

/** Objects of the sources, in their order; only what has changed is compiled, as many at once as there are processors. */
async function compile(manifest, sources, folder) {
  const by = compilers(manifest)
  const objects = sources.map((source) => join(folder, `${source.replaceAll("/", "-")}.o`))
  const waiting = sources.map((source, i) => [source, objects[i]]).filter(([, object]) => isStale(object))
  // CUDA first: those take longest.
  waiting.sort(([a], [b]) => Number(b.endsWith(".cu")) - Number(a.endsWith(".cu")))
  const work = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const [source, object] = next
      const [command, ...flags] = source.endsWith(".cu") ? by.cu : by.cpp
      await run(command, [...flags, "-MMD", "-MF", `${object}.d`, "-c", "-o", object, source])
    }
  }
  await Promise.all(Array.from({ length: availableParallelism() }, work))
  return objects
}

/**
 * Builds both into `folder` and strips them.
 *
 * @returns paths of the addon and of selscan-replay, and the compiler's version
 */
export async function buildNative(folder) {
  process.env.SELSCAN_CUDA = "1" // read by native/sources.cjs as it is loaded
  const manifest = require("../../native/sources.cjs")
  mkdirSync(folder, { recursive: true })
  const shared = [...manifest.kernels, ...manifest.cuda]
  const objects = await compile(manifest, [...shared, ...manifest.addon, "native/replay.cpp"], folder)
  const both = objects.slice(0, shared.length)
  const addon = join(folder, "selscan.node")
  const replay = join(folder, "selscan-replay")
  // libstdc++ is not linked in: Debian's static one asks for a newer glibc than the shared one of Ubuntu 22.04 does.
  const libraries = manifest.cudaLibraries
  await run("g++", [
    "-shared",
    ...manifest.ldflags,
    ...both,
    ...objects.slice(shared.length, -1),
    ...libraries,
    "-o",
    addon,
  ])
  await run("g++", [...both, objects.at(-1), ...libraries, "-o", replay])
  for (const file of [addon, replay]) execFileSync("strip", [file])
  const version = /release ([\d.]+)/.exec(execFileSync(manifest.nvcc[0], ["--version"], { encoding: "utf8" }))?.[1]
  return { addon, replay, nvcc: version ?? "unknown", architectures: manifest.architectures }
}
