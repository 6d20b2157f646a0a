/**
 * `selscan build`: options and the machine are judged before anything is compiled. The build itself is tried by scripts/check-package.js.
 */
import { spawnSync } from "node:child_process"
import { chmodSync, mkdirSync, mkdtempSync, statSync, symlinkSync, writeFileSync } from "node:fs"
import { rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import test from "ava"

const entry = fileURLToPath(new URL("../cli/entry.ts", import.meta.url))
const stamp = fileURLToPath(new URL("../../build/selscan.stamp", import.meta.url))
const folder = mkdtempSync(join(tmpdir(), "selscan-build-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))

function selscan(words: readonly string[], env: Record<string, string> = {}) {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--import=tsx", entry, "build", ...words], {
    env: { ...process.env, ...env },
    encoding: "utf8",
  })
  return { status, out: stdout, err: stderr }
}

/** A folder with programs of these names alone, each ending with its status. */
function path(name: string, programs: Record<string, number>): string {
  const at = join(folder, name)
  mkdirSync(at)
  for (const [program, status] of Object.entries(programs)) {
    writeFileSync(join(at, program), `#!/bin/sh\nexit ${status}\n`)
    chmodSync(join(at, program), 0o755)
  }
  symlinkSync(process.execPath, join(at, "node"))
  return at
}

const stampTime = () => statSync(stamp, { throwIfNoEntry: false })?.mtimeMs

test("options of the build are checked", (t) => {
  const cases: [string[], RegExp][] = [
    [["--device", "gpu"], /^selscan: build: --device is one of auto, cpu, cuda, got gpu\n$/],
    [["--jobs", "0"], /^selscan: build: --jobs is a whole number of at least 1, got 0\n$/],
    [["--jobs", "many"], /^selscan: build: --jobs is a whole number .* got many\n$/],
    [["--devise", "cpu"], /unknown option --devise, did you mean --device\?/],
  ]
  for (const [words, message] of cases) {
    const { status, out, err } = selscan(words)
    t.is(status, 2, err)
    t.is(out, "")
    t.regex(err, message)
  }
  t.regex(selscan(["--help"]).out, /--device <device>/)
})

test("what a build needs and the machine lacks is named in one line, and nothing is touched", (t) => {
  const before = stampTime()
  const cases: [Record<string, number>, string][] = [
    [{ "c++": 1, make: 0, python3: 0 }, "no C++20 compiler (c++)"],
    [{ "c++": 0, python3: 0 }, "no make"],
    [{ "c++": 0, make: 0 }, "no python3"],
    [{ make: 0 }, "no C++20 compiler (c++), no python3"],
    [{ "c++": 0, make: 0, python3: 0 }, "no npm on the path, which brings node-gyp"],
  ]
  for (const [i, [programs, missing]] of cases.entries()) {
    const PATH = path(`path-${i}`, programs)
    const env = { PATH, CXX: "", MAKE: "", PYTHON: "", npm_config_node_gyp: "", npm_config_python: "" }
    const { status, out, err } = selscan(["--device", "cpu", "--json"], env)
    t.is(status, 1)
    t.is(out, "")
    t.is(
      err,
      `selscan: the addon is built by a C++20 compiler, make and python3, got ${missing}; install what is missing (Debian: apt-get install g++ make python3)\n`,
    )
  }
  t.is(stampTime(), before)
})

test("CUDA that is asked for and cannot be had ends the build", (t) => {
  const PATH = path("no-nvcc", { "c++": 0, make: 0, python3: 0, nvcc: 1 })
  const { status, err } = selscan(["--device", "cuda"], { PATH, CUDA_HOME: PATH })
  // A toolkit in its usual place is found whatever the path is, and the build then lacks npm.
  t.is(status, 1)
  t.regex(
    err,
    /^selscan: (SELSCAN_CUDA=1: nvcc of CUDA .* is needed, got .*; install the CUDA toolkit|the addon is built by )/,
  )
})
