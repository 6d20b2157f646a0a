/**
 * A tiny byte-level model with random weights for tests: its text means nothing, but its bits are the same every time. It is
 * on the device under test unless the options say where.
 */
import { Model, type ModelOptions } from "../../lib/generate/model.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { initialWeights } from "../../lib/models/language-model.ts"
import { MambaModel, mambaConfig } from "../../lib/models/mamba.ts"
import { device } from "../device.ts"

export async function tinyModel(options: ModelOptions & { spread?: number } = {}): Promise<Model> {
  const { spread = 10, ...rest } = options
  const network = new MambaModel(mambaConfig({ dim: 16, layers: 2, vocab: 256, state: 4 }))
  const model = new Model(network, "f32", { device, ...rest })
  const weights = initialWeights(network, 5)
  // A wider embedding makes the next token depend on what came before, yet leaves it open.
  weights.set(
    "backbone.embedding.weight",
    weights.get("backbone.embedding.weight")!.map((value) => value * spread),
  )
  for (const [name, { shape }] of allParameters(network)) {
    await model.store.upload("weight", { name, dtype: "f32", shape }, weights.get(name)!)
  }
  return model
}
