/**
 * What every language model here offers the rest of the package: hidden rows, a head, and its parameters by name.
 */
import type { Value } from "../graph/value.ts"
import { allParameters, type Layer, type Parameter, type Rows } from "../layers/layer.ts"
import { Random } from "../layers/random.ts"

export interface LanguageModel extends Layer {
  readonly vocab: number
  /** ids i32 (rows) → hidden states after the last norm (rows, dim). */
  forward(ids: Value, rows: Rows): Value
  /** The head's weight (vocab, dim): logits = hidden·headᵀ. */
  head(rows: Rows): Value
}

/** Weights by name, as f32 on the host. */
export type Weights = ReadonlyMap<string, Float32Array>

/** Fresh weights, drawn from a seed: one generator per parameter, so that a model's weights do not depend on its other layers. */
export function initialWeights(model: Layer, seed: number): Map<string, Float32Array> {
  const draw = (name: string, { init, shape }: Parameter) => init(shape, new Random(seed, hash(name)))
  return new Map([...allParameters(model)].map(([name, parameter]) => [name, draw(name, parameter)]))
}

function hash(name: string): number {
  let h = 0x811c9dc5
  for (const char of name) h = Math.imul(h ^ char.charCodeAt(0), 0x01000193)
  return h >>> 0
}
