/**
 * Finding the addon: places in order, each tried by a child process, and errors that say what was looked for.
 */
import { spawnSync } from "node:child_process"
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from "node:fs"
import { rm } from "node:fs/promises"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import test, { type ExecutionContext } from "ava"
import { addonReport, search } from "../../lib/addon.ts"
import { failedTrial } from "../../lib/trial.ts"
import type { Binary } from "../../native/binaries.cjs"
import { version } from "../../native/binaries.cjs"

const folder = mkdtempSync(join(tmpdir(), "selscan-addon-"))
const cache = join(folder, "cache")
process.env.XDG_CACHE_HOME = cache
test.after.always(() => rm(folder, { recursive: true, force: true }))

const require = createRequire(import.meta.url)
const lib = fileURLToPath(new URL("../../lib/", import.meta.url))
/** The addon of this run. */
const good = addonReport().path!

/** A shared library whose loading runs this statement. */
function library(name: string, statement: string): string {
  const file = join(folder, `${name}.node`)
  const source = `#include <csignal>\n#include <cstdlib>\n#include <unistd.h>\n__attribute__((constructor)) static void loaded() { ${statement} }\n`
  const { status, stderr } = spawnSync("c++", ["-shared", "-fPIC", "-x", "c++", "-", "-o", file], { input: source })
  if (status !== 0) throw new Error(String(stderr))
  return file
}

/** A place with that file, as a package of a version. */
function place(path: string | undefined, { name = "@selscan/x", at = version } = {}): Binary {
  return {
    name,
    version: () => at,
    path: () => path,
    load: () => {
      if (path === undefined) return { error: Object.assign(new Error("no such module"), { code: "MODULE_NOT_FOUND" }) }
      return { exports: require(path) }
    },
  }
}

const states = (all: readonly Binary[]) => search(all).candidates.map(({ state, reason }) => reason ?? state)

test("the first addon that loads is taken, and those after it are not loaded", (t) => {
  const after = { ...place(good, { name: "after" }), load: () => t.fail() as never }
  t.deepEqual(states([place(undefined), place(good), after, place(undefined)]), [
    "absent",
    "in use",
    "not needed",
    "absent",
  ])
  const { exports } = search([place(good)])
  t.true((exports as { kernels(): unknown[] }).kernels().length > 0)
})

test("a package of another version is refused, whatever it holds", (t) => {
  t.deepEqual(states([place(good, { at: "0.0.1" }), place(good)]), [`it is of version 0.0.1, not ${version}`, "in use"])
})

test("a binary that ends the process that loads it ends a child process alone", (t) => {
  const crashes = [
    ["illegal", "raise(SIGILL);", /ended a process with SIGILL: it is made for another processor/],
    ["fault", "raise(SIGSEGV);", /ended a process with SIGSEGV: it crashes/],
    ["abort", "abort();", /ended a process with SIGABRT/],
    ["exit", "_exit(3);", /ended a process with status 3/],
  ] as const
  for (const [name, statement, reason] of crashes) {
    const file = library(name, statement)
    const [bad, next] = states([place(file), place(good)])
    t.regex(bad!, reason)
    t.is(next, "in use")
  }
})

test("a file that is no addon is refused with what the system says", (t) => {
  const text = join(folder, "text.node")
  writeFileSync(text, "this is no library")
  const missing = library("missing", "")
  t.regex(failedTrial(text)!, /text\.node: (file too short|invalid ELF header)/)
  t.regex(failedTrial(missing)!, /Module did not self-register/)
  t.regex(failedTrial(join(folder, "absent.node"))!, /ENOENT/)
})

const verdicts = () => {
  const at = join(cache, "selscan", "loads")
  return existsSync(at) ? readdirSync(at) : []
}

/** A copy of the addon of its own, that no other test has tried. */
function fresh(name: string): string {
  const file = join(folder, `${name}.node`)
  copyFileSync(good, file)
  return file
}

/** Seconds that a trial took. */
function timed(file: string): number {
  const began = performance.now()
  failedTrial(file)
  return (performance.now() - began) / 1000
}

test.serial("a verdict is remembered until the file changes, and only a good one", (t) => {
  const file = fresh("remembered")
  const before = verdicts().length
  t.is(failedTrial(file), undefined)
  t.is(verdicts().length, before + 1)
  const again = Math.min(...Array.from({ length: 5 }, () => timed(file)))
  t.true(again < 0.02, `${again} s: no process was started`)
  writeFileSync(file, "no addon any more")
  t.regex(failedTrial(file)!, /remembered\.node/)
  copyFileSync(good, file)
  t.is(failedTrial(file), undefined)
  t.is(verdicts().length, before + 1)
})

test.serial("where nothing can be written, a binary is tried each time and loads all the same", (t) => {
  const file = fresh("unwritable")
  process.env.XDG_CACHE_HOME = join(file, "no-folder")
  t.teardown(() => {
    process.env.XDG_CACHE_HOME = cache
  })
  t.is(failedTrial(file), undefined)
  t.deepEqual(states([place(file)]), ["in use"])
})

/** What a process prints that loads the addon and says its report or its error. */
function started(env: Record<string, string>, flags: readonly string[] = []) {
  const code = `
    const { addonReport, loadAddon } = await import(${JSON.stringify(join(lib, "addon.ts"))})
    try { loadAddon() } catch ({ code, message, details }) { console.log(JSON.stringify({ code, message, details })); process.exit() }
    console.log(JSON.stringify(addonReport()))`
  const words = ["--import=tsx", "--input-type=module", ...flags, "-e", code]
  const { stdout, stderr, status } = spawnSync(process.execPath, words, {
    env: { ...process.env, ...env },
    encoding: "utf8",
  })
  if (status !== 0) throw new Error(`${status}\n${stderr}`)
  return { ...JSON.parse(stdout), stderr }
}

test("SELSCAN_ADDON is taken as it is, and one that does not load is not replaced by another", (t) => {
  t.is(started({ SELSCAN_ADDON: good }).path, good)
  const file = join(folder, "not-there.node")
  const { code, message, details } = started({ SELSCAN_ADDON: file })
  t.is(code, "ADDON_MISSING")
  t.regex(
    message,
    /^selscan: a native addon for \S+, .* is expected, got SELSCAN_ADDON cannot be used, .*not-there\.node/,
  )
  t.regex(message, /; name another file in SELSCAN_ADDON, or unset it$/)
  t.deepEqual(
    details.candidates.map(({ state }: { state: string }) => state),
    ["refused"],
  )
})

test("where Node refuses addons, the error says so", (t) => {
  const { code, message } = started({ SELSCAN_ADDON: good }, ["--no-addons"])
  t.is(code, "ADDON_MISSING")
  t.regex(message, /loading addons is disabled/)
})

/** A copy of the loader in a package of its own, with binaries for this platform as `make` writes them. */
function packaged(t: ExecutionContext, make: (name: string, scope: string) => void) {
  const root = mkdtempSync(join(folder, "app-"))
  const installed = join(root, "node_modules", "selscan")
  for (const name of ["lib", "native"]) mkdirSync(join(installed, name), { recursive: true })
  for (const name of ["addon.ts", "trial.ts", "errors.ts"]) copyFileSync(join(lib, name), join(installed, "lib", name))
  copyFileSync(join(lib, "../native/binaries.cjs"), join(installed, "native", "binaries.cjs"))
  writeFileSync(join(installed, "package.json"), JSON.stringify({ name: "selscan", version, type: "module" }))
  const distance = join(installed, "node_modules", "fastest-levenshtein")
  mkdirSync(distance, { recursive: true })
  writeFileSync(join(distance, "package.json"), JSON.stringify({ name: "fastest-levenshtein", main: "./index.cjs" }))
  writeFileSync(join(distance, "index.cjs"), "exports.closest = (_, words) => words[0]")
  for (const name of ["linux-x64", "linux-x64-cuda"]) {
    const at = join(root, "node_modules", "@selscan", name)
    mkdirSync(at, { recursive: true })
    writeFileSync(join(at, "package.json"), JSON.stringify({ name: `@selscan/${name}`, version }))
    make(name, at)
  }
  t.teardown(() => rmSync(root, { recursive: true, force: true }))
  const script = join(root, "app.mts")
  writeFileSync(
    script,
    `import { addonReport, loadAddon } from ${JSON.stringify(join(installed, "lib", "addon.ts"))}
    let message
    try { loadAddon() } catch (error) { message = error.message }
    console.log(JSON.stringify({ ...addonReport(), message }))`,
  )
  const { SELSCAN_ADDON: _, ...env } = process.env
  const tsx = new URL("../../node_modules/tsx/dist/loader.mjs", import.meta.url).href
  const { stdout, stderr, status } = spawnSync(process.execPath, ["--import", tsx, script], { env, encoding: "utf8" })
  t.is(status, 0, stderr)
  return { ...JSON.parse(stdout), stderr } as ReturnType<typeof addonReport> & { message?: string; stderr: string }
}

const onLinux = process.platform === "linux" && process.arch === "x64" ? test : test.skip

onLinux("of two packages the plain one serves where no driver is, and either where it is alone", (t) => {
  const hasDriver = ["/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"].some((file) => existsSync(file))
  const both = packaged(t, (_, at) => copyFileSync(good, join(at, "selscan.node")))
  const used = both.candidates.find(({ state }) => state === "in use")
  t.is(used?.name, hasDriver ? "@selscan/linux-x64-cuda" : "@selscan/linux-x64")
  t.is(both.stderr, "")
  const one = packaged(t, (name, at) => name === "linux-x64-cuda" && copyFileSync(good, join(at, "selscan.node")))
  t.is(one.candidates.find(({ state }) => state === "in use")?.name, "@selscan/linux-x64-cuda")
})

onLinux("a damaged package is told of in a warning where another serves, and in the error where none does", (t) => {
  const bad = library("damaged", "raise(SIGILL);")
  const hasDriver = existsSync("/dev/nvidiactl")
  const first = hasDriver ? "linux-x64-cuda" : "linux-x64"
  const one = packaged(t, (name, at) => copyFileSync(name === first ? bad : good, join(at, "selscan.node")))
  t.is(one.message, undefined)
  t.regex(
    one.stderr,
    /ADDON_REFUSED.*SelscanWarning: @selscan\/\S+ cannot be used, .*SIGILL.*; @selscan\/\S+ is used instead/,
  )
  const none = packaged(t, (_, at) => {
    copyFileSync(bad, join(at, "selscan.node"))
    chmodSync(join(at, "selscan.node"), 0o644)
  })
  t.regex(none.message!, /got no build\/Release\/selscan\.node; @selscan\/\S+ cannot be used, .*SIGILL/)
  t.regex(none.message!, /; run npx selscan build, for which a C\+\+20 compiler, make and python3 are needed$/)
})

onLinux("without any package the error names the one to install, of this version", (t) => {
  const { message, platform } = packaged(t, (_, at) => rmSync(at, { recursive: true }))
  t.is(
    message,
    `selscan: a native addon for ${platform} is expected, got no build/Release/selscan.node; no @selscan/linux-x64; no @selscan/linux-x64-cuda; run npm install @selscan/linux-x64@${version}, or npx selscan build, for which a C++20 compiler, make and python3 are needed`,
  )
})
