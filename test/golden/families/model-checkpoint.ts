/**
 * The parts of a model folder: checkpoints in `f32/`, `f16/`, `bf16/` or in the folder itself, each a config file beside
 * model.safetensors, whole or in shards; read as load() reads them.
 */
import { existsSync } from "node:fs"
import { dirname, join } from "node:path"
import { familyOfTensors, type ReadConfig, readConfig, tensorsOf } from "../../../lib/checkpoint/families.ts"
import type { AnyConfig, AnyNetwork, FileTensor } from "../../../lib/checkpoint/family.ts"
import { checkTensors } from "../../../lib/checkpoint/names.ts"
import { openWeights, type TensorSource } from "../../../lib/checkpoint/shards.ts"
import { readPieces } from "../../../lib/checkpoint/weights.ts"
import { expect } from "../../../lib/errors.ts"
import type { Program } from "../../../lib/graph/program.ts"
import { allParameters } from "../../../lib/layers/layer.ts"
import type { ModelConfig } from "../../../lib/models/config.ts"
import { PatternModel } from "../../../lib/models/pattern-model.ts"
import { Store } from "../../../lib/native.ts"
import { device } from "../../device.ts"
import type { GoldenCase } from "../case.ts"

export interface AnyCheckpoint {
  readonly config: AnyConfig
  readonly network: AnyNetwork
  /** Weights by our names, converted to f32. */
  readonly weights: ReadonlyMap<string, Float32Array>
  /** The file's tensors by name, and which rows of ours each holds. */
  readonly tensors: ReadonlyMap<string, FileTensor>
}

/** Of a model that is a pattern of blocks. */
export interface Checkpoint extends AnyCheckpoint {
  readonly config: ModelConfig
  readonly network: PatternModel
}

/** As `readAny`, of a pattern of blocks. */
export async function readCheckpoint(golden: GoldenCase, dtype: string): Promise<Checkpoint> {
  const { config, network, ...rest } = await readAny(golden, dtype)
  expect(
    "pattern" in config && network instanceof PatternModel,
    "BAD_CHECKPOINT",
    () => `${golden.path}: a pattern of blocks is expected, got another model`,
  )
  return { config, network, ...rest }
}

/** The checkpoint of a case's folder in a dtype: its subfolder, or for f32 the folder itself. */
export async function readAny(golden: GoldenCase, dtype: string): Promise<AnyCheckpoint> {
  const folder = dirname(golden.path)
  const sub = join(folder, dtype)
  const at = existsSync(sub) || dtype !== "f32" ? sub : folder
  const read = await readConfig(at)
  await using source = await openWeights(at)
  return await weightsOf(source, read)
}

/** All weights of an open file, read as load() reads them. */
export async function weightsOf(source: TensorSource, read: ReadConfig): Promise<AnyCheckpoint> {
  const family = familyOfTensors(read, source.tensors, source.path)
  const tensors = await checkTensors(source, tensorsOf(family, read.config), family)
  const network = family.network(read.config)
  const weights = new Map(
    [...allParameters(network)].map(([name, { shape }]) => {
      return [name, new Float32Array(shape.reduce((product, size) => product * size, 1)).fill(Number.NaN)]
    }),
  )
  for await (const { name, at, floats } of readPieces(source, tensors)) {
    weights.get(name)!.set(floats, at)
  }
  return { config: read.config, network, weights, tensors: new Map(tensors.map((row) => [row.fileName, row])) }
}

/** A tensor of the file put together from rows of ours. */
export function inFile({ shape, parts }: FileTensor, ours: (name: string) => Float32Array): Float32Array {
  const columns = shape.slice(1).reduce((product, size) => product * size, 1)
  const whole = new Float32Array(columns * (shape[0] ?? 1))
  for (const { name, row, fileRow, rows } of parts) {
    whole.set(ours(name).subarray(row * columns, (row + rows) * columns), fileRow * columns)
  }
  return whole
}

/** A store that holds the weights a program reads. */
export async function storeOf(program: Program, { weights }: Pick<AnyCheckpoint, "weights">): Promise<Store> {
  const store = new Store(device)
  for (const slot of program.stored("weight")) {
    const data = weights.get(slot.name)
    expect(data !== undefined, "BAD_CHECKPOINT", () => `golden: weight ${slot.name} is in the checkpoint, got none`)
    await store.upload("weight", slot, data)
  }
  return store
}
