/**
 * What check-llama.ts and bench/peers use of llama.cpp: node-llama-cpp with its prebuilt binary, which is no dependency of the package. Its
 * install scripts do not run, nothing is compiled or downloaded but what npm fetches.
 */
import { execFile } from "node:child_process"
import { mkdir, readFile, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import { promisify } from "node:util"
import { numericsOf } from "../lib/generate/layout.ts"
import type { Model } from "../lib/generate/model.ts"
import { trace } from "../lib/graph/program.ts"
import { headOf } from "../lib/models/language-model.ts"
import { linear } from "../lib/ops/linear.ts"

/** What is installed. */
export const llamaVersion = "3.22.1"

interface LlamaModule {
  getLlama(options: object): Promise<Llama>
  readonly LlamaLogLevel: { readonly error: string }
}

export interface Llama {
  loadModel(options: { modelPath: string; gpuLayers: number }): Promise<LlamaModel>
  dispose(): Promise<void>
}

export interface LlamaModel {
  createContext(options: {
    contextSize: number
    sequences: number
    threads: number
    batchSize?: number
  }): Promise<LlamaContext>
  dispose(): Promise<void>
}

export interface LlamaContext {
  /** Checkpoints are copies of a recurrent state, taken now and then so that a prompt can be gone back in. */
  getSequence(options?: { checkpoints: { max: number; interval: number | false } }): LlamaSequence
  dispose(): Promise<void>
}

export interface LlamaSequence {
  clearHistory(): Promise<void>
  evaluateWithoutGeneratingNewTokens(ids: readonly number[]): Promise<void>
  evaluate(ids: readonly number[], options: { temperature: number }): AsyncGenerator<number, void>
  /** Ids, with what is wanted of the token after one; results stand at the index of that one. */
  controlledEvaluate(
    input: readonly (number | readonly [id: number, wanted: { generateNext: { logits: true } }])[],
  ): Promise<readonly { next: { logits: ReadonlyMap<number, number> } }[]>
}

export class NotInstalled extends Error {}

/** The package with the prebuilt binary for this machine's processor. */
export function llamaPlatform(): string {
  const system = { linux: "linux", darwin: "mac", win32: "win" }[process.platform as string]
  const name = `${system ?? process.platform}-${process.arch}`
  return name === "mac-arm64" ? "mac-arm64-metal" : name
}

/** Of a package in a node_modules folder; undefined where it is not, or not whole. */
async function versionIn(modules: string, name: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(join(modules, name, "package.json"), "utf8")).version
  } catch {
    return undefined
  }
}

/** The version of node-llama-cpp in a node_modules folder, whoever installed it. Throws NotInstalled where there is none. */
export async function llamaVersionIn(modules: string): Promise<string> {
  const found = await versionIn(modules, "node-llama-cpp")
  if (typeof found === "string") return found
  throw new NotInstalled(`node-llama-cpp is expected in the node_modules folder ${modules}, got none; install it there`)
}

/**
 * The node_modules folder of an install in `folder`, made unless this very version is there. Optional packages are left out, for they are
 * binaries of every platform and GPU. Throws NotInstalled.
 */
export async function installLlama(folder: string): Promise<string> {
  const modules = join(folder, "node_modules")
  const packages = ["node-llama-cpp", `@node-llama-cpp/${llamaPlatform()}`]
  const found = await Promise.all(packages.map((name) => versionIn(modules, name)))
  if (found.every((version) => version === llamaVersion)) return modules
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, "package.json"), '{ "private": true }\n')
  const wanted = packages.map((name) => `${name}@${llamaVersion}`)
  const flags = ["--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--loglevel=error"]
  const npm = process.platform === "win32" ? "npm.cmd" : "npm"
  const options = { cwd: folder, timeout: 300_000, shell: process.platform === "win32" }
  await promisify(execFile)(npm, ["install", ...flags, ...wanted], options).catch((cause: Error) => {
    throw new NotInstalled(`${wanted.join(" and ")} could not be installed: ${cause.message.split("\n", 2).join(" ")}`)
  })
  return modules
}

/** llama.cpp on the processor, on at most so many threads. */
export async function openLlama(modules: string, threads: number): Promise<Llama> {
  const entry = pathToFileURL(join(modules, "node-llama-cpp", "dist", "index.js"))
  const { getLlama, LlamaLogLevel } = (await import(entry.href)) as LlamaModule
  const quiet = { logLevel: LlamaLogLevel.error, progressLogs: false }
  return await getLlama({ gpu: false, build: "never", skipDownload: true, maxThreads: threads, ...quiet })
}

/** Runs the ids, and gives the logits of what follows the last of them. */
export async function theirLogits(sequence: LlamaSequence, ids: readonly number[]): Promise<Float32Array> {
  const last = ids.length - 1
  const input = ids.map((id, i) => (i < last ? id : ([id, { generateNext: { logits: true } }] as const)))
  const map = (await sequence.controlledEvaluate(input)).at(-1)!.next.logits
  return Float32Array.from({ length: map.size }, (_, id) => map.get(id)!)
}

/** Our logits of every row (rows, vocab), in one run. */
export async function ourLogits({ network, store, shape }: Model, ids: readonly number[]): Promise<Float32Array> {
  const program = trace(
    "logits",
    (t) => {
      const { matrixDtype, int8 } = shape
      const rows = { segments: t.input("segments", "i32", [1, 5]), matrixDtype, int8 }
      const x = network.forward(t.input("ids", "i32", [ids.length]), rows)
      return { logits: linear({ x, ...headOf(network, rows) }, { precision: t.precision, dtype: "f32" }).y }
    },
    numericsOf(shape),
  )
  const executable = await store.compile(program)
  const segments = Int32Array.of(0, ids.length, 0, 0, 0)
  const { logits } = await executable.run({ ids: Int32Array.from(ids), segments })
  await executable.dispose()
  return logits as Float32Array
}
