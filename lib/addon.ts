/**
 * Finding the addon. In order: the file that SELSCAN_ADDON names, and then no other; a build of this machine; prebuilt binaries in
 * packages of this very version, the one with CUDA kernels first where a driver is. Each is loaded by a child process before it is
 * loaded here (`trial.ts`).
 */
import { existsSync } from "node:fs"
import { createRequire as requireFrom } from "node:module" // the other name is taken by the banners of many bundles
import { resolve } from "node:path"
import { type Binary, built, packages, version } from "../native/binaries.cjs"
import { SelscanError } from "./errors.ts"
import { failedTrial } from "./trial.ts"

/** A place where an addon was looked for, and what became of it. */
export interface AddonCandidate {
  /** SELSCAN_ADDON, the path of a build within this package, or the name of a package. */
  readonly name: string
  readonly path?: string
  readonly state: "in use" | "not needed" | "absent" | "refused"
  /** Of one that is refused: why, in words. */
  readonly reason?: string
}

/** What was looked for and what was found, for `selscan info` and reports of faults. */
export interface AddonReport {
  /** System, processor and C library, as in `linux-x64, glibc 2.36`. */
  readonly platform: string
  /** Of this package; prebuilt binaries must have the same. */
  readonly version: string
  /** In the order in which they were looked at. */
  readonly candidates: readonly AddonCandidate[]
  /** Of the one in use; absent where there is none, and in bundles. */
  readonly path?: string
  /** What to do about a missing addon, as a command. */
  readonly remedy: string
}

interface Found {
  readonly candidates: AddonCandidate[]
  readonly exports?: unknown
}

/** Packages of this platform, the one without CUDA first. */
const prebuilt = packages[`${process.platform}-${process.arch}`] ?? []

/** All places of this platform, in order. */
function places(): readonly Binary[] {
  const named = process.env.SELSCAN_ADDON
  if (named) return [{ name: "SELSCAN_ADDON", path: () => resolve(named), load: () => loaded(resolve(named)) }]
  return [built, ...(hasDriver() ? [...prebuilt].reverse() : prebuilt)]
}

/** Whether an NVIDIA driver is there: its kernel module, its device in a container, or that of Windows under WSL. Asking it would wake GPUs. */
const hasDriver = () => ["/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg"].some((file) => existsSync(file))

/** Loads a file, once in this thread. Nothing is asked of the module that this stands in: bundles as CommonJS have no URL. */
function loaded(path: string): ReturnType<Binary["load"]> {
  try {
    return { exports: requireFrom(path)(path) }
  } catch (error) {
    return { error }
  }
}

/** What esbuild puts for `require` into ES modules throws, unless one is defined there. */
const noRequire = "this bundle of ES modules defines no require"

const firstLine = (error: unknown) => String((error as Error)?.message ?? error).split("\n")[0]!

/** Looks at one place: its addon, or what is wrong with it. */
function attempt(place: Binary): { readonly candidate: AddonCandidate; readonly exports?: unknown } {
  const { name } = place
  const refused = (reason: string, path?: string) => ({
    candidate: { name, ...(path && { path }), state: "refused" as const, reason },
  })
  const found = place.version?.()
  if (found !== undefined && found !== version) return refused(`it is of version ${found}, not ${version}`)
  const path = place.path()
  if (path === undefined) {
    // Nothing to resolve: it is absent, or a part of the bundle that this is.
    const result = place.load()
    if ("exports" in result) return { candidate: { name, state: "in use" }, exports: result.exports }
    const isAbsent = /^(MODULE_NOT_FOUND|ERR_MODULE_NOT_FOUND)$/.test((result.error as { code?: string })?.code ?? "")
    if (isAbsent) return { candidate: { name, state: "absent" } }
    const message = firstLine(result.error)
    return refused(message.startsWith("Dynamic require of") ? noRequire : message)
  }
  // What the user names is loaded as it is: builds with sanitizers need the environment of this process.
  const failure = name === "SELSCAN_ADDON" ? undefined : failedTrial(path)
  if (failure !== undefined) return refused(failure, path)
  const result = loaded(path)
  if ("error" in result) return refused(firstLine(result.error), path)
  return { candidate: { name, path, state: "in use" }, exports: result.exports }
}

/** Looks at all places until one has an addon that loads. */
export function search(all: readonly Binary[]): Found {
  const candidates: AddonCandidate[] = []
  let exports: unknown
  for (const place of all) {
    if (exports !== undefined) {
      const path = place.path()
      candidates.push({ name: place.name, ...(path && { path }), state: path ? "not needed" : "absent" })
      continue
    }
    const { candidate, exports: theirs } = attempt(place)
    candidates.push(candidate)
    exports = theirs
  }
  return { candidates, exports }
}

let found: Found | undefined

/**
 * The addon.
 *
 * @throws ADDON_MISSING, with what was looked for, what was wrong with each, and the command that helps
 */
export function loadAddon(): unknown {
  if (found?.exports !== undefined) return found.exports
  found = search(places())
  const { exports, candidates } = found
  if (exports === undefined) throw missing(candidates)
  const passedOver = candidates.filter(({ state }) => state === "refused")
  const used = candidates.find(({ state }) => state === "in use")
  if (passedOver.length > 0) {
    process.emitWarning(`${passedOver.map(described).join("; ")}; ${used?.name} is used instead`, {
      type: "SelscanWarning",
      code: "ADDON_REFUSED",
    })
  }
  return exports
}

/**
 * Which addon is in use and why: every place that was looked at, in order. Loads the addon where that has not happened; never throws.
 *
 * @example
 * const { platform, candidates } = addonReport()
 * console.log(platform, candidates.find(({ state }) => state === "in use")?.path)
 */
export function addonReport(): AddonReport {
  try {
    loadAddon()
  } catch {
    // The candidates say it.
  }
  const candidates = found?.candidates ?? []
  const path = candidates.find(({ state }) => state === "in use")?.path
  return { platform: platform(), version, candidates, ...(path && { path }), remedy: remedy(candidates) }
}

function described({ name, state, reason }: AddonCandidate): string {
  if (state !== "refused") return `no ${name}`
  return `${name} cannot be used, ${reason}`
}

function missing(candidates: readonly AddonCandidate[]): SelscanError {
  const known = Object.keys(packages).join(", ")
  const none = prebuilt.length === 0 && !process.env.SELSCAN_ADDON ? `; prebuilt binaries are for ${known}` : ""
  return new SelscanError(
    "ADDON_MISSING",
    `selscan: a native addon for ${platform()} is expected, got ${candidates.map(described).join("; ")}${none}; ${remedy(candidates)}`,
    { platform: platform(), candidates, remedy: remedy(candidates) },
  )
}

/** The command for this case. */
function remedy(candidates: readonly AddonCandidate[]): string {
  if (process.env.SELSCAN_ADDON) return "name another file in SELSCAN_ADDON, or unset it"
  if (candidates.some(({ reason }) => reason === noRequire)) {
    return `give esbuild --banner:js='import { createRequire } from "node:module"; const require = createRequire(import.meta.url)'`
  }
  if (isClone()) return "run npm run build, for which a C++20 compiler, make and python3 are needed"
  const build = "npx selscan build, for which a C++20 compiler, make and python3 are needed"
  const [own] = prebuilt
  const state = candidates.find(({ name }) => name === own?.name)
  const isStale = state?.state === "refused" && state.path === undefined
  const hasPackage = own !== undefined && libc() !== "musl" && (state?.state === "absent" || isStale)
  return hasPackage ? `run npm install ${own.name}@${version}, or ${build}` : `run ${build}`
}

/** Whether this is a clone of the repository. What npm publishes has no such file, and a bundle perhaps no URL. */
function isClone(): boolean {
  try {
    return existsSync(new URL("../tsconfig.json", import.meta.url))
  } catch {
    return false
  }
}

/** `glibc 2.36`, or `musl`; undefined on systems that have one C library. */
function libc(): string | undefined {
  if (process.platform !== "linux") return undefined
  const report = process.report as (NodeJS.ProcessReport & { excludeNetwork?: boolean }) | undefined
  if (report === undefined) return undefined
  const before = report.excludeNetwork ?? false
  report.excludeNetwork = true // or names of every peer of every socket are looked up
  const { header } = report.getReport() as { header?: { glibcVersionRuntime?: string } }
  report.excludeNetwork = before
  return header?.glibcVersionRuntime === undefined ? "musl" : `glibc ${header.glibcVersionRuntime}`
}

const platform = () => [`${process.platform}-${process.arch}`, libc()].filter(Boolean).join(", ")
