import type { Value } from "../graph/value.ts"
import { split } from "../ops/columns.ts"
import { swiglu } from "../ops/swiglu.ts"
import { fanIn } from "./init.ts"
import { apply, Layer, type Parameter, type Rows } from "./layer.ts"
import { Linear } from "./linear.ts"
import { checkSizes } from "./sizes.ts"

export interface GatedMLPOptions {
  readonly dim: number
  /** Columns of the gate. */
  readonly inner: number
  /** Biases of both linears. Default false, as in Mamba's code. */
  readonly bias?: boolean
  /** Residual branches in the model: fc2 starts smaller by √branches, as in GPT-2. Default 1. */
  readonly branches?: number
}

/**
 * The gated MLP of Mamba's code: `SwiGLU` with both inner linears in one, y = fc2(value ⊙ silu(gate)), [value gate] = fc1·x. The
 * gate is the second half. The residual is added in fc2.
 *
 * Parameters: `fc1.weight` (2·inner, dim), `fc2.weight` (dim, inner).
 *
 * @example
 * const mlp = new GatedMLP({ dim: 1024, inner: 2816 })
 * @see Shazeer 2020, arXiv:2002.05202, Eq. 6
 */
export class GatedMLP extends Layer {
  readonly inner: number
  readonly fc1: Linear
  readonly fc2: Linear

  constructor({ dim, inner, bias = false, branches = 1 }: GatedMLPOptions) {
    super()
    checkSizes("GatedMLP", { dim, inner, branches })
    this.inner = inner
    this.fc1 = new Linear({ inputs: dim, outputs: 2 * inner, bias })
    this.fc2 = new Linear({ inputs: inner, outputs: dim, bias, init: fanIn(1 / Math.sqrt(branches)) })
  }

  override parameters(): Record<string, Parameter> {
    return {}
  }

  override children(): Record<string, Layer> {
    return { fc1: this.fc1, fc2: this.fc2 }
  }

  override forward(x: Value, rows: Rows, residual?: Value): Value {
    const both = apply("fc1", this.fc1, x, rows) // (rows, 2·inner)
    const { a: value, b: gate } = split({ x: both }, { first: this.inner })
    return apply("fc2", this.fc2, swiglu({ gate, up: value }).y, rows, residual) // (rows, dim)
  }
}
