/**
 * The weights of a folder: model.safetensors, pytorch_model.bin, one .pth file, or the shards that an index lists; all read by position.
 *
 *   {"metadata": {…}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors", …}}
 *
 * An index must say exactly what its shards hold. Its file names are names: none may lead out of the folder.
 */
import { access, readdir, readFile, stat } from "node:fs/promises"
import { join } from "node:path"
import { expect, oneLine, SelscanError } from "../errors.ts"
import { openSafetensors } from "./safetensors.ts"
import { findTensor, type StoredTensor, shown, type TensorSource } from "./source.ts"

export type { TensorSource } from "./source.ts"

/** A format of weights; shards have its extension. */
interface Format {
  readonly whole: string
  readonly extension: "safetensors" | "bin"
  readonly open: (path: string) => Promise<TensorSource>
}

/** What reads pickles is loaded for them alone. */
const openTorch = async (path: string): Promise<TensorSource> => (await import("./torch-file.ts")).openTorch(path)

/** In the order in which a folder is searched: a folder with both has the same weights twice. */
const formats: readonly Format[] = [
  { whole: "model.safetensors", extension: "safetensors", open: openSafetensors },
  { whole: "pytorch_model.bin", extension: "bin", open: openTorch },
]
const indexOf = ({ whole }: Format) => `${whole}.index.json`
/** A million tensors would need this much. */
const indexBytesMax = 1 << 27
/** Open files at once; the largest published models have a few hundred. */
const shardsMost = 4096

/**
 * Opens a folder's weights, and checks headers and index completely. Looked for are, in this order: model.safetensors, its index,
 * pytorch_model.bin, its index, and a file that ends in .pth, of which there must be one.
 * @throws SelscanError NOT_FOUND when there are none or a shard is missing, BAD_FILE when a file breaks a rule of its format,
 * BAD_CHECKPOINT when index and shards do not agree, or several files could be meant
 * @example
 * await using weights = await openWeights("models/llama")
 */
export async function openWeights(folder: string): Promise<TensorSource> {
  for (const format of formats) {
    const [whole, index] = [join(folder, format.whole), join(folder, indexOf(format))]
    if (await exists(whole)) return await format.open(whole)
    if (await exists(index)) return await openShards(folder, index, format)
  }
  return await openTorch(join(folder, await onlyPth(folder)))
}

/** The folder's one file of SAMBA's kind, whose name its training chooses. */
async function onlyPth(folder: string): Promise<string> {
  const files = (await readdir(folder).catch(() => [])).filter((name) => name.endsWith(".pth")).sort()
  const names = formats.map(({ whole }) => whole).join(", ")
  expect(files.length > 0, "NOT_FOUND", () => {
    return `${folder}: expected ${names}, the index of either, or a .pth file, got none there; check the path`
  })
  expect(files.length === 1, "BAD_CHECKPOINT", () => {
    const got = files.length > 3 ? `${files.slice(0, 3).join(", ")} and ${files.length - 3} more` : files.join(" and ")
    return `${folder}: expected ${names}, the index of either, or one .pth file, got ${got}; leave the one that you mean`
  })
  return files[0]!
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  )
}

async function openShards(folder: string, path: string, { extension, open }: Format): Promise<TensorSource> {
  const index = parseIndex(await readIndex(path), path, extension)
  const names = [...new Set(index.values())]
  expect(names.length <= shardsMost, "BAD_CHECKPOINT", () => {
    return `${path}: expected at most ${shardsMost} shards, got ${names.length}; ${remedy}`
  })
  const shards = new Map<string, TensorSource>()
  try {
    for (const name of names) shards.set(name, await open(join(folder, name)))
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
  readonly tensors: ReadonlyMap<string, StoredTensor>
  readonly #shards: readonly TensorSource[]
  readonly #shardOf: ReadonlyMap<string, TensorSource>

  constructor(path: string, shards: ReadonlyMap<string, TensorSource>) {
    this.path = path
    this.#shards = [...shards.values()]
    this.tensors = new Map(this.#shards.flatMap((shard) => [...shard.tensors]))
    this.#shardOf = new Map(this.#shards.flatMap((shard) => [...shard.tensors.keys()].map((name) => [name, shard])))
  }

  async readInto(name: string, target: Uint8Array, from = 0): Promise<void> {
    findTensor(this.tensors, name, this.path)
    await this.#shardOf.get(name)!.readInto(name, target, from)
  }

  same(name: string, other: string): boolean {
    const shard = this.#shardOf.get(name)
    return shard !== undefined && shard === this.#shardOf.get(other) && shard.same?.(name, other) === true
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
    const info = await stat(path)
    // A pipe would be waited for, and a device read, for ever.
    expect(info.isFile() && info.size <= indexBytesMax, info.isFile() ? "BAD_CHECKPOINT" : "BAD_FILE", () => {
      const got = info.isFile() ? info.size : "no regular file"
      return `${path}: expected an index of at most ${indexBytesMax} bytes, got ${got}; ${remedy}`
    })
    return await readFile(path, "utf8")
  } catch (cause) {
    if (cause instanceof SelscanError) throw cause
    const message = `${path}: expected an index of shards, got ${(cause as Error).message}; check the path`
    throw new SelscanError("BAD_FILE", message, { path }, { cause })
  }
}

/** The shard of each tensor. @throws SelscanError BAD_CHECKPOINT for another text, and for a shard that is no plain file name */
export function parseIndex(
  text: string,
  where: string,
  extension: Format["extension"] = "safetensors",
): Map<string, string> {
  const map = weightMap(text, where)
  const index = new Map<string, string>()
  for (const [tensor, file] of Object.entries(map)) {
    // No separator of any system, no parent folder, no drive: a plain name ending as weights do.
    const plain = typeof file === "string" && /^[\w-][\w.-]{0,200}$/.test(file) && file.endsWith(`.${extension}`)
    expect(plain, "BAD_CHECKPOINT", () => {
      const got = typeof file === "string" ? shown(file) : typeof file
      return `${where}: expected the plain name of a .${extension} file for ${shown(tensor)}, got ${got}; ${remedy}`
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
    const message = `${where}: expected JSON, got a text that is none (${oneLine(cause)}); ${remedy}`
    throw new SelscanError("BAD_CHECKPOINT", message, {}, { cause })
  }
  const map = (parsed as { weight_map?: unknown } | null)?.weight_map
  expect(typeof map === "object" && map !== null && !Array.isArray(map), "BAD_CHECKPOINT", () => {
    return `${where}: expected an object with an object weight_map, got none; ${remedy}`
  })
  return map as Record<string, unknown>
}

/** What the index says is what the shards hold, tensor by tensor. */
function checkIndex(index: ReadonlyMap<string, string>, shards: ReadonlyMap<string, TensorSource>, path: string): void {
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
