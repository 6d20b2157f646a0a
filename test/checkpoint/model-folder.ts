/** Folders of small models with random weights, and what is in the files made of them. */
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fromF32 } from "../../lib/checkpoint/dtypes.ts"
import { Elements } from "../../lib/checkpoint/elements.ts"
import { familyOf, familyOfTensors, modelConfigFields, readConfig, tensorsOf } from "../../lib/checkpoint/families.ts"
import { checkTensors } from "../../lib/checkpoint/names.ts"
import { writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { openWeights } from "../../lib/checkpoint/shards.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { type ModelSize, modelConfig } from "../../lib/models/config.ts"
import { initialWeights, type Weights } from "../../lib/models/language-model.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"

export const mamba: ModelSize = { dim: 16, layers: 2, vocab: 40, state: 4, conv: 3, rank: 3 }

/** Writes a model in our own naming; `change` may spoil weights. Returns what it wrote, as f32. */
export async function writeModel(
  folder: string,
  size: ModelSize,
  { dtype = "F32" as "F32" | "F16" | "BF16", change = (_weights: Map<string, Float32Array>) => {} } = {},
): Promise<Weights> {
  const config = modelConfig(size)
  const network = new PatternModel(config)
  const weights = initialWeights(network, 3)
  change(weights)
  mkdirSync(folder, { recursive: true })
  const entries = [...allParameters(network)].map(([name, { shape, matrix }]) => {
    const stored = matrix ? dtype : "F32"
    return { name, shape, dtype: stored, data: fromF32(stored, weights.get(name)!) } as const
  })
  await writeSafetensors(join(folder, "model.safetensors"), entries)
  writeFileSync(join(folder, "config.json"), JSON.stringify(modelConfigFields(config, "selscan")))
  return weights
}

/** Every parameter of a folder's model by our names. */
export async function parametersOf(folder: string): Promise<Record<string, readonly number[]>> {
  const { config, family } = await readConfig(folder)
  await using source = await openWeights(folder)
  const found = familyOfTensors({ config, family }, source.tensors, source.path)
  const elements = new Elements(source, await checkTensors(source, tensorsOf(found, config), found))
  const parameters = allParameters(familyOf(config, "selscan").network(config))
  const read = [...parameters].map(async ([name, { shape }]) => {
    const count = shape.reduce((product, dim) => product * dim, 1)
    return [name, Array.from(await elements.read(name, 0, count))] as const
  })
  return Object.fromEntries(await Promise.all(read))
}
