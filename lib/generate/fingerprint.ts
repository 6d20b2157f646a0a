/**
 * Telling models apart: by what people call them, and by a hash of all that decides what they compute.
 */
import { createHash, type Hash } from "node:crypto"
import { basename, isAbsolute, resolve } from "node:path"
import { type Dtype, dtypeSizeBytes } from "../graph/value.ts"
import { allParameters, scaleName, scaleShape } from "../layers/layer.ts"
import type { LanguageModel } from "../models/language-model.ts"
import type { Model } from "./model.ts"

/** Bytes of weights that are brought to the host at once: hashing them takes milliseconds, in which nothing else runs. */
const pieceBytes = 4 << 20

/** What a config says beside the model: how long its sequences may be here, and where it comes from. */
const notOfTheModel = new Set(["contextMax", "patches", "extra"])

/** What a model that was loaded under a name is called: of a path the last part, since paths are nobody else's business. */
export const nameOf = (name: string): string =>
  isAbsolute(name) || name.startsWith(".") ? basename(resolve(name)) : name

/** A model that has no name is called by its blocks and sizes. */
export function describe({ config }: LanguageModel): string {
  if ("dims" in config) return `megabyte of ${config.depths.join(" + ")} blocks of ${config.dims.join(" and ")}`
  const kinds = [...new Set(config.pattern.map(({ kind }) => kind))]
  return `${kinds.join("-")} of ${config.depth} blocks of ${config.dim}`
}

/**
 * SHA-256, in hex, over the config and the name, dtype, shape and bytes of every weight as it lies on the device. The precision of
 * products and the length that sequences may have are not part of it.
 */
export async function fingerprint(model: Model): Promise<string> {
  const { network, store, matrixDtype } = model
  await model.step("prompt", 1) // from then on all weights are there
  const hash = createHash("sha256")
  hash.update(`selscan model 1\n${canonical(network.config)}\n`)
  const parameters = [...allParameters(network)].sort(([a], [b]) => (a < b ? -1 : 1))
  const stored = parameters.flatMap(([name, { shape, matrix }]): Stored[] => {
    if (!model.int8.has(name)) return [[name, matrix ? matrixDtype : "f32", shape]]
    return [
      [name, "i8", shape],
      [scaleName(name), "bf16", scaleShape(shape)],
    ]
  })
  for (const [name, dtype, shape] of stored) {
    hash.update(`${name} ${dtype} [${shape}]\n`)
    const sizeBytes = shape.reduce((product, size) => product * size, dtypeSizeBytes[dtype])
    await hashWeight(hash, (offset, length) => store.download("weight", name, offset, length), sizeBytes)
  }
  return hash.digest("hex")
}

type Stored = readonly [name: string, dtype: Dtype, shape: readonly number[]]

async function hashWeight(
  hash: Hash,
  read: (offset: number, length: number) => Promise<Uint8Array>,
  sizeBytes: number,
): Promise<void> {
  for (let at = 0; at < sizeBytes; at += pieceBytes) hash.update(await read(at, Math.min(pieceBytes, sizeBytes - at)))
}

/** JSON whose keys are in order, whoever wrote the object. */
function canonical(config: object): string {
  return JSON.stringify(config, (key, value) => {
    if (notOfTheModel.has(key)) return undefined
    if (value === null || typeof value !== "object" || Array.isArray(value)) return value
    return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
  })
}
