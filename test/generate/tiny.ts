/**
 * Tiny byte-level models with random weights for tests: its text means nothing, but its bits are the same every time. It is
 * on the device under test unless the options say where.
 */
import { int8Names, toInt8 } from "../../lib/checkpoint/int8.ts"
import { Model, type ModelOptions } from "../../lib/generate/model.ts"
import { allParameters, scaleName, scaleShape } from "../../lib/layers/layer.ts"
import { type ModelSize, modelConfig, sambaPattern } from "../../lib/models/config.ts"
import { initialWeights, type LanguageModel } from "../../lib/models/language-model.ts"
import { MegaByte } from "../../lib/models/megabyte.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { device } from "../device.ts"

const sizes = {
  mamba: { layers: 2 },
  samba: { layers: 4, pattern: sambaPattern, heads: 2, kvHeads: 1, mlp: 24 },
  llama: { layers: 2, pattern: ["full", "swiglu"], heads: 2, mlp: 24 },
  linear: { layers: 3, pattern: ["gla", "retention", { block: "sliding", shortConv: 4 }], heads: 2 },
} as const satisfies Record<string, Partial<ModelSize>>

export type TinyKind = keyof typeof sizes | "megabyte"
export const tinyKinds: readonly TinyKind[] = [...(Object.keys(sizes) as (keyof typeof sizes)[]), "megabyte"]

/** The last norm of a kind, of 16 weights: what it holds is in every logit. */
export const lastNorm = (kind: TinyKind): string =>
  kind === "megabyte" ? "transformers.1.norm.weight" : "backbone.norm_f.weight"

/** Patches of 3 bytes, so that runs of 2ⁿ rows end inside one. */
function networkOf(kind: TinyKind, contextMax: number, window: number): LanguageModel {
  if (kind !== "megabyte") {
    return new PatternModel(modelConfig({ dim: 16, vocab: 256, state: 4, contextMax, window, ...sizes[kind] }))
  }
  const heads = { headDim: 4, heads: 2, relPos: true, posEmb: true }
  const patches = Math.ceil(contextMax / 3)
  return new MegaByte({ vocab: 256, dims: [20, 16], depths: [2, 2], patch: 3, patches, ffMult: 2, ...heads })
}

/** The window is one that prompts and cuts are shorter and longer than. */
export async function tinyModel(
  options: ModelOptions & {
    kind?: TinyKind
    spread?: number
    contextMax?: number
    window?: number
    weights?: "int8"
  } = {},
): Promise<Model> {
  const { kind = "mamba", spread = 10, contextMax = 4096, window = 11, weights: kept, ...rest } = options
  const network = networkOf(kind, contextMax, window)
  const int8 = kept === "int8" ? int8Names(allParameters(network)) : undefined
  const model = new Model(network, "f32", { device, ...rest }, int8)
  const weights = initialWeights(network, 5)
  // A wider embedding makes the next token depend on what came before, yet leaves it open.
  for (const name of ["backbone.embedding.weight", "token_embs.0.weight", "token_embs.1.0.weight"]) {
    const table = weights.get(name)
    if (table) {
      weights.set(
        name,
        table.map((value) => value * spread),
      )
    }
  }
  for (const [name, { shape }] of allParameters(network)) {
    if (!int8?.has(name)) {
      await model.store.upload("weight", { name, dtype: "f32", shape }, weights.get(name)!)
      continue
    }
    const { q, scales } = toInt8(weights.get(name)!, shape[1]!)
    await model.store.upload("weight", { name, dtype: "i8", shape }, q)
    await model.store.upload("weight", { name: scaleName(name), dtype: "bf16", shape: scaleShape(shape) }, scales)
  }
  return model
}
