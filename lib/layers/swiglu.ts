import { expect } from "../errors.ts"
import type { Value } from "../graph/value.ts"
import { swiglu } from "../ops/swiglu.ts"
import { fanIn } from "./init.ts"
import { apply, Layer, type Parameter, type Rows } from "./layer.ts"
import { Linear } from "./linear.ts"
import { checkSizes } from "./sizes.ts"

/** Names of the three linears in a checkpoint. */
export interface SwiGLUNames {
  readonly gate: string
  readonly up: string
  readonly down: string
}

export interface SwiGLUOptions {
  readonly dim: number
  /** Columns of the gate. */
  readonly inner: number
  /** Default `w1`, `w2`, `w3`, as in SAMBA; Llama has `gate_proj`, `up_proj`, `down_proj`. */
  readonly names?: SwiGLUNames
  /** Biases of all three linears. Default false. */
  readonly bias?: boolean
  /** Residual branches in the model: the last linear starts smaller by √branches, as in GPT-2. Default 1. */
  readonly branches?: number
}

/**
 * The gated MLP of Llama and SAMBA: y = w3(silu(w1·x) ⊙ w2·x). The residual is added in the last linear.
 *
 * Parameters: `w1.weight` and `w2.weight` (inner, dim), `w3.weight` (dim, inner), under other names where `names` gives them.
 *
 * @example
 * const mlp = new SwiGLU({ dim: 1536, inner: 4096 })
 * @see Shazeer 2020, arXiv:2002.05202, Eq. 6
 */
export class SwiGLU extends Layer {
  readonly names: SwiGLUNames
  readonly gate: Linear
  readonly up: Linear
  readonly down: Linear

  constructor({ dim, inner, names, bias = false, branches = 1 }: SwiGLUOptions) {
    super()
    checkSizes("SwiGLU", { dim, inner, branches })
    this.names = names ?? { gate: "w1", up: "w2", down: "w3" }
    const { gate, up, down } = this.names
    expect(
      new Set([gate, up, down]).size === 3,
      "BAD_OPTION",
      () => `SwiGLU: names are of three linears, got ${gate}, ${up}, ${down}; no two are the same`,
    )
    this.gate = new Linear({ inputs: dim, outputs: inner, bias })
    this.up = new Linear({ inputs: dim, outputs: inner, bias })
    this.down = new Linear({ inputs: inner, outputs: dim, bias, init: fanIn(1 / Math.sqrt(branches)) })
  }

  override parameters(): Record<string, Parameter> {
    return {}
  }

  override children(): Record<string, Layer> {
    return { [this.names.gate]: this.gate, [this.names.up]: this.up, [this.names.down]: this.down }
  }

  override forward(x: Value, rows: Rows, residual?: Value): Value {
    const gate = apply(this.names.gate, this.gate, x, rows) // (rows, inner)
    const up = apply(this.names.up, this.up, x, rows) // (rows, inner)
    return apply(this.names.down, this.down, swiglu({ gate, up }).y, rows, residual) // (rows, dim)
  }
}
