import type { Value } from "../graph/value.ts"
import { embedding } from "../ops/embedding.ts"
import { normal } from "./init.ts"
import { Layer, type Matrix, type Parameter, type Rows } from "./layer.ts"

/** y[t] = W[ids[t]]. Parameter: `weight` (vocab, dim), N(0, 0.02²) as in Mamba's code. A tied head reads the same weight. */
export class Embedding extends Layer {
  readonly vocab: number
  readonly dim: number

  constructor({ vocab, dim }: { vocab: number; dim: number }) {
    super()
    this.vocab = vocab
    this.dim = dim
  }

  override parameters(): Record<string, Parameter> {
    return { weight: { shape: [this.vocab, this.dim], init: normal(0.02), decay: true, matrix: true, int8: true } }
  }

  /** ids: i32 (rows); −1 marks a spare row. */
  override forward(ids: Value, rows: Rows): Value {
    return embedding({ ids, ...this.matrix("weight", rows) }).y
  }

  /** The weight as a head of the model: (vocab, dim). Traced under the embedding's own name. */
  table(rows: Rows): Matrix {
    return this.matrix("weight", rows)
  }
}
