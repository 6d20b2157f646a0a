/**
 * What goes into the GPU bundle, as files of a folder: the repository's own layout, so that tests and benches find
 * everything where they look for it.
 */
import { chmodSync, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { dirname, join, resolve } from "node:path"
import ts from "typescript"
import { copyNode } from "./runtime.js"

const root = resolve(import.meta.dirname, "..", "..")
const packageJson = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))

/** TypeScript with its types taken out, under its own name (scripts/gpu/hook.js loads it). Throws where it does not parse. */
function withoutTypes(file) {
  const { outputText, diagnostics } = ts.transpileModule(readFileSync(join(root, file), "utf8"), {
    fileName: file,
    reportDiagnostics: true,
    // Node 20 has no `using`: it becomes try and finally, as tsx does it.
    compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true },
  })
  if (diagnostics.length > 0)
    throw new Error(`${file}: ${ts.flattenDiagnosticMessageText(diagnostics[0].messageText, " ")}`)
  return outputText
}

function walk(folder) {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name)
    return entry.isDirectory() ? walk(path) : [path]
  })
}

function put(folder, name, contents) {
  const path = join(folder, name)
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, contents)
}

const copy = (from, folder, name) => {
  mkdirSync(dirname(join(folder, name)), { recursive: true })
  cpSync(from, join(folder, name), { recursive: true })
}

/** Tests that no device has a part in. */
const elsewhere = /^test\/(cli|hub|package|text)\//

/** The library, its tests with their data, benches, and what runs them. */
function putSources(folder) {
  for (const room of ["lib", "test", "bench", "scripts/gpu"]) {
    for (const file of walk(room).filter((one) => !elsewhere.test(one))) {
      if (file.endsWith(".ts")) put(folder, file, withoutTypes(file))
      else if (/\.(safetensors|bin|json|cjs|py|txt)$/.test(file) || file === "scripts/gpu/hook.js")
        copy(join(root, file), folder, file)
    }
  }
  copy(join(root, "native", "binaries.cjs"), folder, "native/binaries.cjs")
  copy(join(root, "scripts", "gpu", "run.sh"), folder, "run.sh")
  chmodSync(join(folder, "run.sh"), 0o755)
}

/** Folders in node_modules of these packages and of all that they depend on. */
function closure(names, left) {
  const found = new Set()
  const visit = (name, from) => {
    if (left.includes(name)) return
    for (let at = from; ; at = dirname(at)) {
      const folder = join(at, "node_modules", name)
      if (existsSync(join(folder, "package.json"))) {
        if (found.has(folder)) return
        found.add(folder)
        const { dependencies = {} } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"))
        for (const dependency of Object.keys(dependencies)) visit(dependency, folder)
        return
      }
      if (dirname(at) === at) throw new Error(`${name}: the package is not in node_modules; run npm ci`)
    }
  }
  for (const name of names) visit(name, root)
  return [...found]
}

/** Packages that lib/, the tests and the benches import. node-addon-api is for compiling, ava's tracer for its watch mode. */
function putPackages(folder) {
  const own = Object.keys(packageJson.dependencies).filter((name) => name !== "node-addon-api")
  for (const source of closure([...own, "ava", "fast-check", "tinybench"], ["@vercel/nft"])) {
    cpSync(source, join(folder, source.slice(root.length)), {
      recursive: true,
      filter: (file) => {
        const inner = file.slice(source.length)
        if (/\/(node_modules|test|tests|docs?)$/.test(inner)) return false
        return statSync(file).isDirectory() || /\.([cm]?js|json)$|licen[cs]e/i.test(inner)
      },
    })
  }
}

/** Tests start processes of their own with --import=tsx: here that is the hook, types being taken out already. */
function putHook(folder) {
  put(folder, "node_modules/tsx/package.json", JSON.stringify({ name: "tsx", type: "module", exports: "./index.js" }))
  put(folder, "node_modules/tsx/index.js", 'import "../../scripts/gpu/hook.js"\n')
}

/** The addon where lib/addon.ts looks for it, Node, and the ava settings by which it finds the tests. */
function putRuntime(folder, { addon, replay }) {
  copy(addon, folder, "build/Release/selscan.node")
  copy(replay, folder, "selscan-replay")
  copyNode(join(folder, "node"))
  const { name, version, type, license, dependencies } = packageJson
  const ava = { ...packageJson.ava, nodeArguments: ["--import=./scripts/gpu/hook.js"], concurrency: 8, cache: false }
  put(folder, "package.json", JSON.stringify({ name, version, type, license, dependencies, ava }, null, 2))
  copy(join(root, "LICENSE"), folder, "LICENSE")
}

/** Fills the folder. The commit, and by which compiler for what the addon was built, are kept in bundle.json. */
export function fill(folder, { native, replays, golden, commit }) {
  putSources(folder)
  putPackages(folder)
  putHook(folder)
  putRuntime(folder, native)
  copy(join(root, "models", "demo"), folder, "models/demo")
  copy(replays, folder, "replay")
  if (golden !== undefined) {
    for (const file of golden.files) copy(join(golden.folder, file), folder, join("golden", file))
    put(folder, "golden/index.json", JSON.stringify(golden.index))
  }
  const { nvcc, architectures } = native
  const versions = {
    node: process.version,
    typescript: createRequire(import.meta.url)("typescript/package.json").version,
  }
  put(
    folder,
    "bundle.json",
    JSON.stringify({ commit, packed: new Date().toISOString(), nvcc, architectures, ...versions }, null, 2),
  )
}

/** Bytes of a file, or of all files of a folder. */
export function sizeBytes(path) {
  const stat = statSync(path)
  if (!stat.isDirectory()) return stat.size
  return readdirSync(path).reduce((total, name) => total + sizeBytes(join(path, name)), 0)
}
