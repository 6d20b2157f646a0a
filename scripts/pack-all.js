#!/usr/bin/env node
/**
 * Makes what is published: selscan itself, without an install script, and one package of a prebuilt binary for each platform that is built here.
 */
import { execFileSync, spawnSync } from "node:child_process"
import { cpSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { dirname, join, resolve } from "node:path"
import { parseArgs } from "node:util"

const usage = `Makes the tarballs of selscan and of its prebuilt binaries, checks their sizes and what they ask of a machine.

  npm run pack:all -- [--only selscan|linux-x64|linux-x64-cuda]... [--out DIR]

  --only   one of them; may be repeated (default: all; nvcc of CUDA 12.8 or newer is needed for linux-x64-cuda)
  --out    the folder (default: build-pack)
  --help   this text

build/ is used and holds the last binary afterwards; the one that is there already is packed first.`

const root = resolve(import.meta.dirname, "..")
const require = createRequire(import.meta.url)
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))
const { version } = manifest

/** A package for each; to add one, name it in native/binaries.cjs too. */
const platforms = [
  { key: "linux-x64", os: "linux", cpu: "x64", libc: "glibc", cuda: false },
  { key: "linux-x64-cuda", os: "linux", cpu: "x64", libc: "glibc", cuda: true },
]

/** Bytes of a tarball at most. Every user on Linux downloads all three; a growth beyond these is a decision. */
const bytesMax = { selscan: 14e6, "linux-x64": 4e6, "linux-x64-cuda": 20e6 }
/** The newest symbols that a binary may ask for: those of Ubuntu 22.04, Debian 12 and RHEL 9 with GCC 12's library. */
const symbolsMax = { GLIBC: [2, 34], GLIBCXX: [3, 4, 30], CXXABI: [1, 3, 13] }

function options() {
  const { values } = parseArgs({
    options: {
      only: { type: "string", multiple: true, default: ["selscan", ...platforms.map(({ key }) => key)] },
      out: { type: "string", default: join(root, "build-pack") },
      help: { type: "boolean", default: false },
    },
  })
  const unknown = values.only.find((name) => !Object.hasOwn(bytesMax, name))
  if (unknown !== undefined) throw new Error(`--only is one of ${Object.keys(bytesMax).join(", ")}, got ${unknown}`)
  return values
}

const npm = (folder, ...words) =>
  JSON.parse(
    execFileSync("npm", ["pack", "--json", "--ignore-scripts", ...words], { cwd: folder, encoding: "utf8" }),
  )[0]

/**
 * The manifest as it is published. No scripts: what a package may run at installation, newer npm and pnpm block. The binaries are named
 * here alone, for in a clone they are not on any registry yet: `npm ci` would refuse a lock without them.
 */
function published() {
  const { scripts: _, devDependencies: __, ava: ___, tsd: ____, ...rest } = manifest
  const binaries = Object.fromEntries(platforms.map(({ key }) => [`@selscan/${key}`, version]))
  return { ...rest, optionalDependencies: binaries, gypfile: false }
}

function packSelscan(folder, out) {
  rmSync(join(root, "dist"), { recursive: true, force: true })
  execFileSync(process.execPath, [require.resolve("typescript/bin/tsc"), "-p", "tsconfig.build.json"], {
    cwd: root,
    stdio: "inherit",
  })
  for (const { path } of npm(root, "--dry-run").files) {
    // Not in the first folder, see native/install.cjs.
    const target = join(folder, path === "binding.gyp" ? "native/binding.gyp" : path)
    mkdirSync(dirname(target), { recursive: true })
    cpSync(join(root, path), target)
  }
  writeFileSync(join(folder, "package.json"), `${JSON.stringify(published(), null, 2)}\n`)
  return npm(folder, "--pack-destination", out)
}

/** Builds the addon with or without CUDA; only what changes between the two is compiled. */
function buildAddon(cuda) {
  const env = { ...process.env, SELSCAN_CUDA: cuda ? "1" : "0" }
  const { status } = spawnSync(process.execPath, ["native/install.cjs"], { cwd: root, env, stdio: "inherit" })
  const kind = `the addon ${cuda ? "with" : "without"} CUDA kernels`
  if (status !== 0) throw new Error(`${kind} could not be built`)
  if (hasCuda() !== cuda) throw new Error(`${kind} is expected in build/, got the other; remove build/ and try again`)
}

/** The newest symbol version of each library that a binary asks for. */
function symbolsOf(file) {
  const text = execFileSync("objdump", ["-T", file], { encoding: "utf8", maxBuffer: 1 << 28 })
  const newest = {}
  for (const [, library, number] of text.matchAll(/\((GLIBC|GLIBCXX|CXXABI)_([0-9.]+)\)/g)) {
    const parts = number.split(".").map(Number)
    if (newest[library] === undefined || isNewer(parts, newest[library])) newest[library] = parts
  }
  return newest
}

function isNewer(a, b) {
  const at = a.findIndex((part, i) => part !== (b[i] ?? 0))
  return at >= 0 && a[at] > (b[at] ?? 0)
}

function packBinary({ key, os, cpu, libc, cuda }, folder, out) {
  buildAddon(cuda)
  mkdirSync(folder, { recursive: true })
  const file = join(folder, "selscan.node")
  cpSync(join(root, "build", "Release", "selscan.node"), file)
  execFileSync("strip", ["--strip-unneeded", file])
  const newest = symbolsOf(file)
  for (const [library, parts] of Object.entries(newest)) {
    const most = symbolsMax[library]
    if (isNewer(parts, most)) {
      throw new Error(`${key}: symbols of ${library}_${most.join(".")} at most, got ${parts.join(".")}`)
    }
  }
  const needs = Object.entries(newest).map(([library, parts]) => `${library} ${parts.join(".")}`)
  const what = `${os}, ${cpu}, ${libc}${cuda ? ", with CUDA kernels" : ""}`
  const { license, engines, repository } = manifest
  const own = {
    name: `@selscan/${key}`,
    version,
    description: `The native addon of selscan for ${what}.`,
    license,
    ...(repository && { repository }),
    engines,
    os: [os],
    cpu: [cpu],
    ...(libc && { libc: [libc] }),
    main: "./selscan.node",
    files: ["selscan.node"],
    preferUnplugged: true, // yarn keeps packages zipped; a shared library has to be a file
  }
  writeFileSync(join(folder, "package.json"), `${JSON.stringify(own, null, 2)}\n`)
  writeFileSync(
    join(folder, "README.md"),
    `# ${own.name}\n\nThe native addon of [selscan](https://www.npmjs.com/package/selscan) for ${what}; needs ${needs.join(", ")}. Installed by selscan, of the same version.\n`,
  )
  cpSync(join(root, "LICENSE"), join(folder, "LICENSE"))
  return npm(folder, "--pack-destination", out)
}

/** Whether build/ holds an addon with CUDA kernels. */
function hasCuda() {
  const script = 'require("./build/Release/selscan.node").kernels().some(({ device }) => device === "cuda")'
  const { stdout } = spawnSync(process.execPath, ["-p", script], { cwd: root, encoding: "utf8" })
  return stdout.trim() === "true"
}

function main() {
  const { only, out: folder, help } = options()
  if (help) return console.log(usage)
  const out = resolve(folder)
  mkdirSync(out, { recursive: true })
  const first = hasCuda()
  const here = platforms.filter(
    ({ key, os, cpu }) => only.includes(key) && os === process.platform && cpu === process.arch,
  )
  const packers = [
    ...here.map((platform) => [platform.key, (at) => packBinary(platform, at, out), platform.cuda === first]),
    ["selscan", (at) => packSelscan(at, out), false],
  ]
  packers.sort(([, , a], [, , b]) => Number(b) - Number(a))
  for (const [key, pack] of packers) {
    if (!only.includes(key)) continue
    rmSync(join(out, key), { recursive: true, force: true })
    const { filename, unpackedSize } = pack(join(out, key))
    const { size } = statSync(join(out, filename))
    const mb = (bytes) => `${(bytes / 1e6).toFixed(2)} MB`
    console.log(`${filename}: ${mb(size)} of at most ${mb(bytesMax[key])}, ${mb(unpackedSize)} unpacked`)
    if (size > bytesMax[key])
      throw new Error(`${filename}: at most ${bytesMax[key]} bytes, got ${size}; take some away, or raise the limit`)
  }
}

try {
  main()
} catch (error) {
  console.error(`pack-all: ${error.message}`)
  process.exitCode = 1
}
