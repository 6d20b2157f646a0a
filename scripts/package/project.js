/**
 * An empty project with the packages installed, and commands run in it.
 */
import { spawnSync } from "node:child_process"
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"

/** Longer than any of it takes on a busy machine; nothing may hang. */
const timeoutMs = 1_200_000

/** Environment of a user: no variable of ours, nor of the npm that runs this. */
function environment(extra = {}) {
  const own = Object.entries(process.env).filter(
    ([name]) => !/^(SELSCAN_|npm_|NODE_OPTIONS$|NODE_PATH$|INIT_CWD$)/.test(name),
  )
  return { ...Object.fromEntries(own), ...extra }
}

/** Runs a command; its status and what it wrote. */
export function attempt(folder, command, words, { env, input = "" } = {}) {
  const options = {
    cwd: folder,
    env: environment(env),
    input,
    encoding: "utf8",
    timeout: timeoutMs,
    maxBuffer: 1 << 28,
  }
  const { status, signal, stdout, stderr, error } = spawnSync(command, words, options)
  if (error) throw error
  return { status, signal, out: stdout, err: stderr }
}

/** Runs a command that must succeed; what it wrote to stdout. */
export function succeed(folder, command, words, options) {
  const { status, signal, out, err } = attempt(folder, command, words, options)
  if (status !== 0) throw new Error(`${command} ${words.join(" ")} ended with ${signal ?? status}\n${out}${err}`)
  return out
}

/** Writes a file of the project; its path. */
export function write(project, name, text) {
  const file = join(project.folder, name)
  mkdirSync(join(file, ".."), { recursive: true })
  writeFileSync(file, text)
  return file
}

/** Makes an empty project and installs tarballs there. Registries are asked for what they depend on and the npm cache lacks. */
export function install(folder, tarballs) {
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, "package.json"), `{ "name": "app", "version": "1.0.0", "private": true }\n`)
  const words = ["install", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund", "--loglevel=error"]
  const selscan = tarballs.filter((name) => /\/selscan-\d[^/]*\.tgz$/.test(name))
  const others = tarballs.filter((name) => !selscan.includes(name))
  if (selscan.length !== 1 || others.length === 0) {
    throw new Error(`the tarballs of selscan and of a binary are expected, got ${tarballs.join(", ")}`)
  }
  succeed(folder, "npm", [...words, ...others, ...selscan])
  const installed = join(folder, "node_modules", "selscan")
  // Verdicts on binaries are remembered there: a folder of its own, that none from elsewhere are found.
  const env = { XDG_CACHE_HOME: join(folder, "cache") }
  const { version } = JSON.parse(readFileSync(join(installed, "package.json"), "utf8"))
  return { folder, installed, version, env, node: process.execPath, tarball: selscan[0] }
}
