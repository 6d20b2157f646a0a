#!/usr/bin/env node
/**
 * Packs what an offline Linux machine with an NVIDIA GPU needs to check and measure this package: no Node, no CUDA toolkit
 * and no network are needed there.
 */
import { execFileSync, spawnSync } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, rmSync, statSync } from "node:fs"
import { dirname, join, resolve } from "node:path"
import { parseArgs } from "node:util"
import { fill, sizeBytes } from "./gpu/contents.js"
import { buildNative } from "./gpu/native.js"

const usage = `Packs everything that a GPU machine needs to check and measure this package into one file.

  npm run gpu:bundle -- [--golden DIR] [--out FILE] [--unpacked]

  --golden    golden cases to pack beside those of test/golden/data
  --out       the file (default: build-gpu/selscan-gpu.tar.xz)
  --unpacked  leaves build-gpu/selscan-gpu/ as it is and packs nothing: for trying its run.sh here
  --help      this text

nvcc is needed (CUDA_HOME names a toolkit that is not on the path). On the GPU machine, which has x64 Linux and a driver:

  tar -xf selscan-gpu.tar.xz && selscan-gpu/run.sh`

const bytesMax = 40e6 // of which the two shipped models, that do not get smaller, are 15.2
const root = resolve(import.meta.dirname, "..")
const work = join(root, "build-gpu")
const name = "selscan-gpu"

function options() {
  const { values } = parseArgs({
    options: {
      golden: { type: "string" },
      out: { type: "string", default: join(work, `${name}.tar.xz`) },
      unpacked: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  })
  if (!values.help && values.golden !== undefined && !existsSync(join(values.golden, "index.json"))) {
    throw new Error(`--golden: a folder with an index.json of cases is expected, got ${values.golden}`)
  }
  return values
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(2).padStart(8)} MB`

/** Short hash, with `-dirty` where files differ from it; records of benches do not count. */
function commit() {
  const git = (...words) => execFileSync("git", words, { cwd: root, encoding: "utf8" }).trim()
  const changed = git("status", "--porcelain", "--", ".", ":(exclude)bench/results")
  return `${git("rev-parse", "--short=10", "HEAD")}${changed === "" ? "" : "-dirty"}`
}

/** Runs a TypeScript script with the addon that is packed; what it printed. */
function script(addon, ...words) {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--import=tsx", ...words], {
    cwd: root,
    encoding: "utf8",
    maxBuffer: 1 << 26,
    env: { ...process.env, SELSCAN_ADDON: addon },
  })
  if (status !== 0) throw new Error(`${words[0]} failed\n${stderr}`)
  return stdout
}

/** Replay files of whole steps and of every op. */
function makeReplays(folder, addon) {
  rmSync(folder, { recursive: true, force: true })
  script(addon, "scripts/make-replay.ts", "--out", folder, "--dim", "32", "--length", "48", "--ops")
}

function pack(folder, out) {
  // The addon and selscan-replay hold the same kernels, and two folders the same cases: beside each other, within the
  // dictionary, the second costs almost nothing.
  const first = ["build", "selscan-replay", "golden", "test"].filter((entry) => existsSync(join(folder, entry)))
  const names = [
    ...first,
    ...readdirSync(folder)
      .filter((entry) => !first.includes(entry))
      .sort(),
  ].map((entry) => `${name}/${entry}`)
  const owner = ["--owner=0", "--group=0", "--numeric-owner", "--sort=name"]
  mkdirSync(dirname(out), { recursive: true })
  const compress = "--use-compress-program=xz --x86 --lzma2=preset=9e,dict=128MiB"
  execFileSync("tar", ["-cf", out, ...owner, compress, "-C", work, ...names], { stdio: "inherit" })
}

async function main() {
  const { golden, out, unpacked, help } = options()
  if (help) return console.log(usage)
  if (process.platform !== "linux" || process.arch !== "x64") {
    throw new Error(`a bundle is made on x64 Linux, for x64 Linux, got ${process.platform} ${process.arch}`)
  }
  const native = await buildNative(join(work, "native"))
  const replays = join(work, "replay")
  makeReplays(replays, native.addon)
  const folder = join(work, name)
  rmSync(folder, { recursive: true, force: true })
  const cases = golden && {
    folder: resolve(golden),
    ...JSON.parse(script(native.addon, "scripts/gpu/golden-files.ts", resolve(golden))),
  }
  fill(folder, { native, replays, golden: cases, commit: commit() })
  for (const entry of readdirSync(folder).sort()) console.log(`${megabytes(sizeBytes(join(folder, entry)))}  ${entry}`)
  if (unpacked) return console.log(`${megabytes(sizeBytes(folder))}  ${folder}, not packed`)
  pack(folder, out)
  const { size } = statSync(out)
  console.log(`${megabytes(size)}  ${out}, of at most ${megabytes(bytesMax).trim()}`)
  if (size > bytesMax)
    throw new Error(`the bundle is expected to be at most ${bytesMax} bytes, got ${size}; look at the sizes above`)
}

main().catch((error) => {
  console.error(`gpu-bundle: ${error.message}`)
  process.exitCode = 1
})
