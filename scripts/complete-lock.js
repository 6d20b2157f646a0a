#!/usr/bin/env node
/**
 * Completes package-lock.json after `npm install`: a registry that lacks the binaries of some platforms leaves them out of the lock, which
 * `npm ci` then refuses on every machine. Adds an optional entry for each, with the system, processor and libc that its name ends in.
 *
 *   npm install --ignore-scripts … && node scripts/complete-lock.js
 */
import { readFileSync, writeFileSync } from "node:fs"

const file = new URL("../package-lock.json", import.meta.url)
const lock = JSON.parse(readFileSync(file, "utf8"))
const systems = ["android", "darwin", "freebsd", "linux", "netbsd", "openbsd", "openharmony", "sunos", "win32", "aix"]
const processors = ["arm64", "arm", "ia32", "loong64", "ppc64", "riscv64", "s390x", "x64", "mips64el"]

/** Whether Node would find `name` from `from`, a path of the lock. */
function found(from, name) {
  for (let at = from; ; at = at.slice(0, Math.max(0, at.lastIndexOf("/node_modules/")))) {
    if (`${at === "" ? "" : `${at}/`}node_modules/${name}` in lock.packages) return true
    if (at === "") return false
  }
}

let added = 0
for (const [path, entry] of Object.entries(lock.packages)) {
  for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
    if (path === "" || !/^\d/.test(version) || found(path, name)) continue
    const words = name.split(/[/-]/)
    const os = systems.find((one) => words.includes(one))
    const cpu = processors.find((one) => words.some((word) => word === one || (one === "arm" && word === "arm")))
    const libc = words.some((word) => word.startsWith("musl"))
      ? ["musl"]
      : words.some((word) => word.startsWith("gnu"))
        ? ["glibc"]
        : undefined
    if (os === undefined || cpu === undefined) continue
    lock.packages[`node_modules/${name}`] = {
      version,
      cpu: [cpu],
      ...(entry.dev && { dev: true }),
      ...(os === "linux" && libc && { libc }),
      license: entry.license,
      optional: true,
      os: [os],
    }
    added++
  }
}
const packages = Object.fromEntries(Object.entries(lock.packages).sort(([a], [b]) => (a < b ? -1 : 1)))
writeFileSync(file, `${JSON.stringify({ ...lock, packages }, null, 2)}\n`)
console.log(`package-lock.json: ${added} entries added`)
