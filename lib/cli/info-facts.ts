/**
 * What `selscan info` says of a model and of the Hub's cache: read from files, without the addon.
 */
import { familyOfTensors, readConfig, tensorsOf } from "../checkpoint/families.ts"
import { int8InFile, matrixDtypeOf, wide } from "../checkpoint/int8.ts"
import { openWeights } from "../checkpoint/shards.ts"
import { Kept } from "../generate/kept.ts"
import { modelFolder } from "../generate/load.ts"
import { stepProgram } from "../generate/programs.ts"
import { scoreRows } from "../generate/score.ts"
import { slotsPerSession } from "../generate/session-slots.ts"
import { stateBytes } from "../generate/speed.ts"
import { allParameters } from "../layers/layer.ts"
import type { LanguageModel } from "../models/language-model.ts"
import { readTokenizer } from "../text/read.ts"

export interface ModelFacts {
  readonly folder: string
  /** Such as Mamba, and whose names its tensors have. */
  readonly family: string
  readonly naming: string
  readonly configFile: string
  readonly parameters: number
  /** As the files have them. */
  readonly dtypes: readonly string[]
  readonly weightBytes: number
  /** How text becomes tokens. */
  readonly text: "bytes" | "tokenizer.json" | "none"
  readonly chat: boolean
  readonly vocab: number
  /** Tokens that a session can hold; absent where there is no limit. */
  readonly contextMax?: number
  /** Of a session on the cpu that holds so many tokens, or more than any window. */
  readonly stateBytes: number
}

/**
 * Facts of a model by name or folder; its weights are not loaded, but their headers are checked, and nothing is downloaded.
 * @throws NOT_FOUND, BAD_CHECKPOINT, BAD_FILE, BAD_TOKENIZER
 */
export async function modelFacts(name: string): Promise<ModelFacts> {
  const folder = await modelFolder(name, { offline: true })
  const read = await readConfig(folder)
  await using source = await openWeights(folder)
  const file = wide(source, read.int8)
  const family = familyOfTensors(read, file.tensors, file.path)
  const network = family.network(read.config)
  const parameters = allParameters(network)
  const held = tensorsOf(family, read.config).filter(({ fileName }) => file.tensors.has(fileName))
  const matrixDtype = matrixDtypeOf(file, held, parameters, int8InFile(file, held, parameters))
  const codec = await readTokenizer(folder)
  const tensors = [...source.tensors.values()]
  const dtypes = [...new Set(tensors.map(({ dtype }) => dtype))].sort()
  const { vocab, contextMax } = network
  return {
    folder,
    family: family.name,
    naming: family.naming,
    configFile: family.configFile,
    parameters: sum([...parameters.values()].map(({ shape }) => shape.reduce((a, b) => a * b, 1))),
    dtypes,
    weightBytes: sum(tensors.map(({ sizeBytes }) => sizeBytes)),
    text: codec ? "tokenizer.json" : vocab === 256 ? "bytes" : "none",
    chat: codec?.chat !== undefined,
    vocab,
    ...(contextMax !== undefined && { contextMax }),
    stateBytes: stateOf(network, matrixDtype),
  }
}

/** Bytes of a session that holds all it can. */
function stateOf(network: LanguageModel, precision: "f32" | "bf16"): number {
  const rings = { count: 2, rowsMost: scoreRows }
  const shape = { slots: 1 + slotsPerSession(network), rings, matrixDtype: precision, precision }
  const patches = network.patches?.mostBegun(0, 1)
  const kept = new Kept(stepProgram(network, "prompt", { ...shape, rows: 1, patches }), network.patches)
  return stateBytes(kept, network.contextMax ?? 2 ** 24)
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0)

export interface HubCache {
  readonly path: string
  readonly models: readonly { readonly name: string; readonly bytes: number }[]
}

/** The models in the Hub's cache; none where there is no such folder, or one that cannot be read. */
export async function hubCache(): Promise<HubCache> {
  const { getHFHubCachePath, scanCacheDir } = await import("@huggingface/hub")
  const path = getHFHubCachePath()
  const { repos } = await scanCacheDir(path).catch(() => ({ repos: [] }))
  const models = repos.filter(({ id }) => id.type === "model")
  return { path, models: models.map(({ id, size }) => ({ name: id.name, bytes: size })) }
}
