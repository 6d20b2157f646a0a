/**
 * What every language model here offers the rest of the package: hidden rows, a head, and its parameters by name.
 */
import type { Value } from "../graph/value.ts"
import { allParameters, type Layer, type Matrix, type Parameter, type Rows } from "../layers/layer.ts"
import { Random } from "../layers/random.ts"
import type { ModelConfig } from "./config.ts"
import type { MegaByteConfig } from "./megabyte.ts"
import type { Patches } from "./patches.ts"

export interface LanguageModel extends Layer {
  readonly config: ModelConfig | MegaByteConfig
  readonly vocab: number
  /** Whether some layer looks at keys behind the rows of a run: the model's programs then take rings. */
  readonly hasRings: boolean
  /** Positions that a sequence can have; undefined where no layer limits them. */
  readonly contextMax: number | undefined
  /**
   * Of models that read patches: their sequences begin with a row that carries no token, so that the first is predicted too, and their
   * runs are cut and laid out as this says.
   */
  readonly patches?: Patches
  /** ids i32 (rows) → hidden states after the last norm (rows, dim). */
  forward(ids: Value, rows: Rows): Value
  /** The head's weight (vocab, dim): logits = hidden·headᵀ. */
  head(rows: Rows): Matrix
  /**
   * Whether a run that ends before row `end` overwrites what a ring showed after `length` rows. Absent: rings hold positions modulo
   * their capacity.
   */
  overwrites?(ring: string, length: number, end: number): boolean
  /** The head's bias (vocab), where it has one. */
  headBias?(rows: Rows): Value
}

/** The head as `linear` and `linearCrossEntropy` take it. */
export function headOf(model: LanguageModel, rows: Rows): Matrix & { readonly bias?: Value } {
  const bias = model.headBias?.(rows)
  return { ...model.head(rows), ...(bias && { bias }) }
}

/** Rows of a sequence before its first token. */
export const startRows = ({ patches }: Pick<LanguageModel, "patches">): 0 | 1 => (patches === undefined ? 0 : 1)

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
