#!/usr/bin/env node
/**
 * The developer's build: drives cmake-js over CMakeLists.txt, one folder per sanitizer, compiling only what has changed.
 */
import { createRequire } from "node:module"
import { availableParallelism } from "node:os"
import { join, resolve } from "node:path"
import { parseArgs } from "node:util"

const usage = `Builds the addon and the native programs into build-dev/<none, address or thread>/.

  npm run build:dev -- [--sanitize none|address,undefined|thread] [--target NAME]...

  --sanitize   which sanitizers to compile in (default: none)
  --target     addon, selscan-replay, selscan-test, selscan-emulated-test or selscan-bench; may be repeated (default: all)
  --help       this text

An addon under AddressSanitizer is loaded like this:
  SELSCAN_ADDON=$PWD/build-dev/address/selscan.node LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 npx ava`

/** Folder of each choice, named for its first sanitizer. */
const folders = { none: "none", "address,undefined": "address", thread: "thread" }
const targets = ["addon", "selscan-replay", "selscan-test", "selscan-emulated-test", "selscan-bench"]

function options() {
  const { values } = parseArgs({
    options: {
      sanitize: { type: "string", default: "none" },
      target: { type: "string", multiple: true, default: ["all"] },
      help: { type: "boolean" },
    },
  })
  if (values.help) {
    console.log(usage)
    process.exit(0)
  }
  if (!Object.hasOwn(folders, values.sanitize)) {
    throw new Error(`--sanitize is one of ${Object.keys(folders).join(" ")}, got ${values.sanitize}`)
  }
  const unknown = values.target.find((name) => name !== "all" && !targets.includes(name))
  if (unknown !== undefined) throw new Error(`--target is one of ${targets.join(" ")}, got ${unknown}`)
  return values
}

async function main() {
  const { sanitize, target } = options()
  const directory = resolve(import.meta.dirname, "..")
  const { BuildSystem } = createRequire(import.meta.url)("cmake-js")
  for (const name of target) {
    const build = new BuildSystem({
      directory,
      out: join(directory, "build-dev", folders[sanitize]),
      config: "Release",
      noLog: true,
      cMakeOptions: { SANITIZE: sanitize },
      target: name,
      parallel: availableParallelism(),
    })
    // Headers come from node-api-headers, so that nothing is downloaded. cmake-js decides this by the `binary` section of
    // package.json, which only packages with prebuilt binaries have.
    build.options.isNodeApi = true
    await build.configure() // each time: a new source file must be found
    await build.build()
  }
}

main().catch((error) => {
  console.error(`build-dev: ${error.message ?? error}`)
  process.exitCode = 1
})
