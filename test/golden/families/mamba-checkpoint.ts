/**
 * The parts of a model folder: checkpoints in `f32/`, `f16/`, `bf16/` or in the folder itself, each a config.json beside
 * model.safetensors, whole or in shards.
 */
import { existsSync } from "node:fs"
import { readFile } from "node:fs/promises"
import { dirname, join } from "node:path"
import { type MambaConfig, readMambaConfig } from "../../../lib/checkpoint/config.ts"
import { checkCopies, checkNames, checkShapes, detectNaming, toOurs } from "../../../lib/checkpoint/names.ts"
import { openSafetensors, type SafetensorsFile, type TensorInfo } from "../../../lib/checkpoint/safetensors.ts"
import { expect } from "../../../lib/errors.ts"
import { MambaModel } from "../../../lib/models/mamba.ts"
import type { GoldenCase } from "../case.ts"

export interface MambaCheckpoint {
  readonly config: MambaConfig
  readonly model: MambaModel
  /** Weights by our names, converted to f32. */
  readonly weights: ReadonlyMap<string, Float32Array>
  /** From the file's names to ours. */
  readonly names: ReadonlyMap<string, string>
}

/** The checkpoint of a case's folder in a dtype: its subfolder, or for f32 the folder itself. */
export async function readCheckpoint(golden: GoldenCase, dtype: string): Promise<MambaCheckpoint> {
  const folder = dirname(golden.path)
  const sub = join(folder, dtype)
  const at = existsSync(join(sub, "config.json")) || dtype !== "f32" ? sub : folder
  const config = await readMambaConfig(join(at, "config.json"))
  const files = await Promise.all((await weightFiles(at)).map((name) => openSafetensors(join(at, name))))
  try {
    return { config, model: new MambaModel(config), ...(await readWeights(files, config, at)) }
  } finally {
    await Promise.all(files.map((file) => file.close()))
  }
}

async function weightFiles(folder: string): Promise<string[]> {
  const index = join(folder, "model.safetensors.index.json")
  if (!existsSync(index)) return ["model.safetensors"]
  const { weight_map: map } = JSON.parse(await readFile(index, "utf8")) as { weight_map: Record<string, string> }
  return [...new Set(Object.values(map))]
}

async function readWeights(files: readonly SafetensorsFile[], config: MambaConfig, where: string) {
  const tensors = new Map<string, TensorInfo>(files.flatMap((file) => [...file.tensors]))
  const naming = detectNaming(tensors.keys(), where)
  const report = toOurs(tensors.keys(), naming, config)
  checkNames(report, where)
  checkShapes(tensors, naming, config, where)
  for (const file of files) {
    await checkCopies(file, { ...report, copies: report.copies.filter(({ name }) => file.tensors.has(name)) })
  }
  const weights = new Map<string, Float32Array>()
  for (const [theirs, ours] of report.mapping) {
    const file = files.find(({ tensors }) => tensors.has(theirs))
    expect(file !== undefined, "BAD_CHECKPOINT", () => `${where}: ${theirs} is in one of the shards, got none`)
    weights.set(ours, await file.readF32(theirs))
  }
  return { weights, names: report.mapping }
}
