/**
 * The weights of a folder: model.safetensors, or the shards that model.safetensors.index.json lists, each read by position.
 *
 *   {"metadata": {…}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", …}}
 *
 * An index must say exactly what its shards hold. Its file names are names: none may lead out of the folder.
 */
import { access, readFile, stat } from "node:fs/promises"
import { join } from "node:path"
import { expect, SelscanError } from "../errors.ts"
import { shown, type TensorInfo } from "./header.ts"
import { openSafetensors, type SafetensorsFile } from "./safetensors.ts"

const wholeFile = "model.safetensors"
const indexFile = "model.safetensors.index.json"
/** A million tensors would need this much. */
const indexBytesMax = 1 << 27
/** Open files at once; the largest published models have a few hundred. */
const shardsMost = 4096

/** Tensors by name, wherever they lie. */
export interface TensorSource {
  /** In messages. */
  readonly path: string
  readonly tensors: ReadonlyMap<string, TensorInfo>
  readInto(name: string, target: Uint8Array, from?: number): Promise<void>
  close(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * Opens a folder's weights, and checks headers and index completely.
 * @throws SelscanError NOT_FOUND when there are none or a shard is missing, BAD_FILE when a file breaks a rule of its format,
 * BAD_CHECKPOINT when index and shards do not agree
 * @example
 * await using weights = await openWeights("models/llama")
 */
export async function openWeights(folder: string): Promise<TensorSource> {
  const path = join(folder, indexFile)
  if (!(await exists(join(folder, wholeFile))) && (await exists(path))) return await openShards(folder, path)
  return await openSafetensors(join(folder, wholeFile))
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  )
}

async function openShards(folder: string, path: string): Promise<TensorSource> {
  const index = parseIndex(await readIndex(path), path)
  const names = [...new Set(index.values())]
  expect(names.length <= shardsMost, "BAD_CHECKPOINT", () => {
    return `${path}: expected at most ${shardsMost} shards, got ${names.length}; ${remedy}`
  })
  const shards = new Map<string, SafetensorsFile>()
  try {
    for (const name of names) shards.set(name, await openSafetensors(join(folder, name)))
    checkIndex(index, shards, path)
    return new Shards(path, shards)
  } catch (error) {
    await Promise.all([...shards.values()].map((shard) => shard.close()))
    throw error
  }
}

/** Shards as one source. */
class Shards implements TensorSource {
  readonly path: string
  readonly tensors: ReadonlyMap<string, TensorInfo>
  readonly #shards: readonly SafetensorsFile[]
  readonly #shardOf: ReadonlyMap<string, SafetensorsFile>

  constructor(path: string, shards: ReadonlyMap<string, SafetensorsFile>) {
    this.path = path
    this.#shards = [...shards.values()]
    this.tensors = new Map(this.#shards.flatMap((shard) => [...shard.tensors]))
    this.#shardOf = new Map(this.#shards.flatMap((shard) => [...shard.tensors.keys()].map((name) => [name, shard])))
  }

  async readInto(name: string, target: Uint8Array, from = 0): Promise<void> {
    const shard = this.#shardOf.get(name)
    expect(shard !== undefined, "NOT_FOUND", () => {
      return `${this.path}: expected a tensor named ${shown(name)}, got none; ask for one that the index lists`
    })
    await shard.readInto(name, target, from)
  }

  async close(): Promise<void> {
    await Promise.all(this.#shards.map((shard) => shard.close()))
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

const remedy = "get the index and its shards again"

async function readIndex(path: string): Promise<string> {
  try {
    const { size } = await stat(path)
    expect(size <= indexBytesMax, "BAD_CHECKPOINT", () => {
      return `${path}: expected an index of at most ${indexBytesMax} bytes, got ${size}; ${remedy}`
    })
    return await readFile(path, "utf8")
  } catch (cause) {
    if (cause instanceof SelscanError) throw cause
    const message = `${path}: expected an index of shards, got ${(cause as Error).message}; check the path`
    throw new SelscanError("BAD_FILE", message, { path }, { cause })
  }
}

/** The shard of each tensor. @throws SelscanError BAD_CHECKPOINT for another text, and for a shard that is no plain file name */
export function parseIndex(text: string, where: string): Map<string, string> {
  const map = weightMap(text, where)
  const index = new Map<string, string>()
  for (const [tensor, file] of Object.entries(map)) {
    // No separator of any system, no parent folder, no drive: a plain name ending as weights do.
    const plain = typeof file === "string" && /^[\w-][\w.-]{0,200}\.safetensors$/.test(file)
    expect(plain, "BAD_CHECKPOINT", () => {
      const got = typeof file === "string" ? shown(file) : typeof file
      return `${where}: expected the plain name of a .safetensors file for ${shown(tensor)}, got ${got}; ${remedy}`
    })
    index.set(tensor, file)
  }
  expect(index.size > 0, "BAD_CHECKPOINT", () => `${where}: expected tensors in weight_map, got none; ${remedy}`)
  return index
}

function weightMap(text: string, where: string): Record<string, unknown> {
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (cause) {
    const message = `${where}: expected JSON, got a text that is none (${(cause as Error).message}); ${remedy}`
    throw new SelscanError("BAD_CHECKPOINT", message, {}, { cause })
  }
  const map = (parsed as { weight_map?: unknown } | null)?.weight_map
  expect(typeof map === "object" && map !== null && !Array.isArray(map), "BAD_CHECKPOINT", () => {
    return `${where}: expected an object with an object weight_map, got none; ${remedy}`
  })
  return map as Record<string, unknown>
}

/** What the index says is what the shards hold, tensor by tensor. */
function checkIndex(
  index: ReadonlyMap<string, string>,
  shards: ReadonlyMap<string, SafetensorsFile>,
  path: string,
): void {
  const refuse = (expected: string, got: string): never => {
    throw new SelscanError("BAD_CHECKPOINT", `${path}: expected ${expected}, got ${got}; ${remedy}`, { expected, got })
  }
  for (const [tensor, file] of index) {
    if (shards.get(file)!.tensors.has(tensor)) continue
    const other = [...shards].find(([, shard]) => shard.tensors.has(tensor))?.[0]
    refuse(`${shown(tensor)} in ${file}`, other === undefined ? "no shard that has it" : `it in ${other}`)
  }
  for (const [file, shard] of shards) {
    for (const tensor of shard.tensors.keys()) {
      const stated = index.get(tensor)
      if (stated === file) continue
      refuse(`${shown(tensor)} ${stated === undefined ? "in the index" : `in ${stated} alone`}`, `it in ${file}`)
    }
  }
}
