/**
 * What is tried with installed packages: sentences, and checks that throw. All programs print the same text, which the demo writes greedily.
 */
import { strict as assert } from "node:assert"
import { cpSync, existsSync, readdirSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { join, resolve } from "node:path"
import { attempt, succeed, write } from "./project.js"

const root = resolve(import.meta.dirname, "../..")
const require = createRequire(import.meta.url)
const prompt = "In the beginning"

/** A program's body: prints what the demo writes after the prompt. */
const generate = (model) => `
async function main() {
  const model = await load(${model}, { device: "cpu" })
  let text = ""
  for await (const piece of model.generate(${JSON.stringify(prompt)}, { maxTokens: 12, temperature: 0 })) text += piece
  await model.dispose()
  return text
}`
const print = "main().then((text) => console.log(JSON.stringify(text)))"

const sources = {
  "import.mjs": `import { load } from "selscan"${generate('"demo"')}\n${print}`,
  "require.cjs": `const { load } = require("selscan")${generate('"demo"')}\n${print}`,
  "worker.mjs": `
import { isMainThread, parentPort, Worker } from "node:worker_threads"
import { load } from "selscan"${generate('"demo"')}
if (isMainThread) {
  const texts = [1, 2].map(() => new Promise((done, fail) => {
    new Worker(new URL(import.meta.url)).on("message", done).on("error", fail)
  }))
  const [first, second] = await Promise.all(texts)
  console.log(JSON.stringify(first === second ? first : [first, second]))
} else parentPort.postMessage(await main())`,
  // A bundle has the addon within it and the models beside it: they are data.
  "bundled.mjs": `import { load } from "selscan"${generate("process.argv[2]")}\n${print}`,
  "report.mjs": `import { addonReport } from "selscan"\nconsole.log(JSON.stringify(addonReport()))`,
}

function run(project, name, ...words) {
  const file = write(project, name, sources[name])
  return JSON.parse(succeed(project.folder, project.node, [file, ...words], { env: project.env }))
}

/** The text that every program must print, as the first one printed it. */
let expected

function same(text) {
  assert.ok(typeof text === "string" && text.length > 3, `a text is expected, got ${JSON.stringify(text)}`)
  expected ??= text
  assert.equal(text, expected)
  return undefined
}

const cli = (project, ...words) => [join(project.installed, "bin", "selscan.js"), ...words]

/** Programs that use the package as it is installed. */
export function programs(project) {
  return [
    ["a module imports it and generates", () => same(run(project, "import.mjs"))],
    ["a script requires it and generates", () => same(run(project, "require.cjs"))],
    ["two worker threads generate", () => same(run(project, "worker.mjs"))],
    [
      "the command generates",
      () => {
        const words = cli(
          project,
          "generate",
          prompt,
          "--max-tokens",
          "12",
          "--temperature",
          "0",
          "--device",
          "cpu",
          "--json",
        )
        same(JSON.parse(succeed(project.folder, project.node, words, { env: project.env })).text)
      },
    ],
  ]
}

/** Manifests and files of all packages. */
export function manifests({ folder, installed, tarball }) {
  const scope = join(folder, "node_modules", "@selscan")
  const names = readdirSync(scope).map((name) => `@selscan/${name}`)
  const quiet = (command, ...words) => {
    const { status, out, err } = attempt(root, "npx", ["--no-install", command, tarball, ...words])
    assert.equal(status, 0, out + err)
  }
  return [
    [
      "none of the packages has a script to run, or a build that npm, pnpm or yarn would begin",
      () => {
        for (const name of ["selscan", ...names]) {
          const at = join(folder, "node_modules", name)
          const { scripts } = JSON.parse(readFileSync(join(at, "package.json"), "utf8"))
          assert.equal(scripts, undefined, `${name} has scripts`)
          assert.ok(!existsSync(join(at, "binding.gyp")), `${name} has a binding.gyp`)
        }
        return names.join(", ")
      },
    ],
    [
      "no module awaits at its top, so that all can be required",
      () => {
        const { transformSync } = require("esbuild")
        const files = readdirSync(join(installed, "dist"), { recursive: true, encoding: "utf8" })
        for (const file of files.filter((name) => name.endsWith(".js"))) {
          transformSync(readFileSync(join(installed, "dist", file), "utf8"), { format: "cjs", sourcefile: file })
        }
      },
    ],
    ["publint finds nothing", () => quiet("publint", "--strict")],
    // Node ≥ 20.19 requires ES modules; the rule is for older ones.
    ["attw finds nothing", () => quiet("attw", "--profile", "node16", "--ignore-rules", "cjs-resolves-to-esm")],
  ]
}

/** Declarations, as programs of users are compiled against them. */
export function types({ folder }) {
  const consumer = `
const options: LoadOptions = { device: "cpu", sessions: 2 }
export async function text(): Promise<string> {
  await using model = await load("demo", options)
  let all = ""
  for await (const piece of model.generate("x", { maxTokens: 3 })) all += piece
  // @ts-expect-error: a number is no prompt
  model.generate(3)
  return all
}`
  const tsc = (file, text, ...flags) => {
    write({ folder }, file, text)
    const roots = ["--types", "node", "--typeRoots", join(root, "node_modules", "@types")]
    const strict = [
      "--noEmit",
      "--strict",
      "--exactOptionalPropertyTypes",
      "--target",
      "es2022",
      "--lib",
      "es2023,esnext.disposable",
    ]
    const typescript = require.resolve("typescript/bin/tsc")
    succeed(folder, process.execPath, [typescript, file, ...strict, ...roots, ...flags])
  }
  const names = `import { load, type LoadOptions } from "selscan"`
  return [
    ["its types hold in modules", () => tsc("types.mts", names + consumer, "--module", "nodenext")],
    ["its types hold in scripts", () => tsc("types.cts", names + consumer, "--module", "nodenext")],
    [
      "its types hold where a bundler resolves",
      () => tsc("bundler.mts", names + consumer, "--module", "esnext", "--moduleResolution", "bundler"),
    ],
  ]
}

/** esbuild, with the binary copied beside the bundle, and with it left where it is. */
export function bundles(project) {
  const { folder } = project
  // A script, or once its own install script has run the program itself.
  const esbuild = join(require.resolve("esbuild/package.json"), "..", "bin", "esbuild")
  const banner = `--banner:js=import { createRequire } from "node:module"; const require = createRequire(import.meta.url);`
  const bundle = (format, name, flags, banners = format === "esm" ? [banner] : []) => {
    const entry = write(project, "bundled.mjs", sources["bundled.mjs"])
    const out = join(folder, name)
    const extension = format === "esm" ? ".mjs" : ".cjs"
    const shape = ["--bundle", "--platform=node", `--format=${format}`, `--out-extension:.js=${extension}`]
    const quiet = ["--log-level=warning"]
    const words = [entry, ...shape, ...quiet, `--outdir=${out}`, ...banners, ...flags]
    const { status, err } = attempt(folder, esbuild, words)
    assert.deepEqual([status, err], [0, ""])
    return join(out, `bundled${extension}`)
  }
  const start = (file) => {
    const model = join(project.installed, "models", "demo")
    same(JSON.parse(succeed(folder, project.node, [file, model], { env: project.env })))
  }
  /** Where none of its packages can be found, only what is in the bundle. */
  const alone = (name, file) => {
    const elsewhere = join(folder, "..", name)
    cpSync(join(file, ".."), elsewhere, { recursive: true })
    start(join(elsewhere, file.split("/").at(-1)))
  }
  const formats = ["cjs", "esm"].flatMap((format) => [
    [
      `a bundle of esbuild generates, ${format}, with the binary beside it`,
      () => alone(`alone-${format}`, bundle(format, `bundle-${format}`, ["--loader:.node=copy"])),
    ],
    [
      `a bundle of esbuild generates, ${format}, with the binary in its package`,
      () => start(bundle(format, `external-${format}`, ["--external:*.node"])),
    ],
  ])
  return [
    ...formats,
    [
      "a bundle of ES modules that defines no require says how to",
      () => {
        const file = bundle("esm", "plain", ["--loader:.node=copy"], [])
        const { status, err } = attempt(folder, project.node, [file, join(project.installed, "models", "demo")])
        assert.equal(status, 1)
        assert.match(err, /ADDON_MISSING/)
        assert.ok(err.includes(banner.replace("--banner:js=", "--banner:js='").replace(/;$/, "'")), err)
      },
    ],
  ]
}

/** Binaries that are missing, of another version, and damaged: one clear error each, and the process lives. */
export function binaries(project) {
  const { folder, installed, version } = project
  const scope = join(folder, "node_modules", "@selscan")
  const own = `@selscan/${process.platform}-${process.arch}`
  const aside = join(folder, "aside")
  const refused = (pattern) => {
    const words = cli(project, "generate", prompt, "--max-tokens", "1", "--device", "cpu")
    const { status, signal, out, err } = attempt(folder, project.node, words, { env: project.env })
    assert.deepEqual([status, signal, out], [1, null, ""], err)
    assert.match(err, pattern)
    assert.equal(err.trim().split("\n").length, 1, err)
  }
  /** With a copy of the packages changed by `change`; afterwards they are as they were. */
  const changed = (change, check) => () => {
    cpSync(scope, aside, { recursive: true })
    try {
      for (const name of readdirSync(scope)) change(join(scope, name))
      return check()
    } finally {
      rmSync(scope, { recursive: true, force: true })
      renameSync(aside, scope)
    }
  }
  return [
    [
      "the report names the binary of this platform",
      () => {
        const { candidates, path } = run(project, "report.mjs")
        assert.ok(path.startsWith(scope), path)
        return candidates.map(({ name, state }) => `${name} ${state}`).join(", ")
      },
    ],
    [
      "without a binary the error names the command that installs it",
      changed(
        (at) => rmSync(at, { recursive: true }),
        () => refused(new RegExp(`run npm install ${own}@${version}, or npx selscan build`)),
      ),
    ],
    [
      "a binary of another version is refused, by both versions",
      changed(
        (at) => {
          const file = join(at, "package.json")
          writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, "utf8")), version: "0.0.1" }))
        },
        () =>
          refused(
            new RegExp(`${own} cannot be used, it is of version 0.0.1, not ${version}.*npm install ${own}@${version}`),
          ),
      ),
    ],
    [
      "a binary that was cut short is refused, and nothing crashes",
      changed(
        (at) => truncateSync(join(at, "selscan.node"), 300_000),
        () => refused(new RegExp(`${own} cannot be used, .*run npx selscan build`)),
      ),
    ],
    [
      "wrong words for the build are refused",
      () => {
        const { status, err } = attempt(folder, project.node, cli(project, "build", "--device", "gpu"))
        assert.equal(status, 2)
        assert.match(err, /^selscan: build: --device is one of auto, cpu, cuda, got gpu\n$/)
        assert.ok(!existsSync(join(installed, "build")))
      },
    ],
    [
      "a build without a compiler is refused in one line",
      () => {
        const { status, err, out } = attempt(folder, project.node, cli(project, "build", "--device", "cpu"), {
          env: { CXX: "no-such-compiler" },
        })
        assert.equal(status, 1)
        assert.equal(out, "")
        assert.match(
          err,
          /^selscan: the addon is built by .*, got no C\+\+20 compiler \(no-such-compiler\); install .*\n$/,
        )
      },
    ],
  ]
}

/** The way back: a build from the sources that the package brings. */
export function theBuild(project) {
  const { folder, installed, env, node } = project
  return [
    [
      "the package builds its addon, which is then the one in use",
      () => {
        const out = succeed(folder, "npx", ["--no-install", "selscan", "build", "--device", "cpu", "--json"], { env })
        const { path, seconds } = JSON.parse(out)
        assert.equal(run(project, "report.mjs").path, path)
        same(run(project, "import.mjs"))
        assert.ok(!existsSync(join(installed, "binding.gyp")))
        return `${seconds.toFixed(0)} s, Node ${succeed(folder, node, ["--version"]).trim()}`
      },
    ],
  ]
}
