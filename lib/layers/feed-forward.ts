import type { Value } from "../graph/value.ts"
import { fanIn } from "./init.ts"
import { apply, Layer, type Parameter, type Rows } from "./layer.ts"
import { Linear } from "./linear.ts"
import { checkSizes } from "./sizes.ts"

export interface FeedForwardOptions {
  readonly dim: number
  /** Columns between the two linears. Default 4·dim (Vaswani et al. 2017, §3.3). */
  readonly inner?: number
  /** Residual branches in the model: fc2 starts smaller by √branches, as in GPT-2. Default 1. */
  readonly branches?: number
}

/**
 * The MLP of a Transformer with GELU: y = fc2(gelu(fc1·x)), both with a bias. The residual is added in fc2.
 *
 * Parameters: `fc1.weight` (inner, dim), `fc1.bias`, `fc2.weight` (dim, inner), `fc2.bias`.
 *
 * @example new FeedForward({ dim: 512 })
 * @see Vaswani et al. 2017, arXiv:1706.03762, §3.3; Hendrycks & Gimpel 2016, arXiv:1606.08415
 */
export class FeedForward extends Layer {
  readonly fc1: Linear
  readonly fc2: Linear

  constructor({ dim, inner = 4 * dim, branches = 1 }: FeedForwardOptions) {
    super()
    checkSizes("FeedForward", { dim, inner, branches })
    this.fc1 = new Linear({ inputs: dim, outputs: inner, bias: true, activation: "gelu" })
    this.fc2 = new Linear({ inputs: inner, outputs: dim, bias: true, init: fanIn(1 / Math.sqrt(branches)) })
  }

  override parameters(): Record<string, Parameter> {
    return {}
  }

  override children(): Record<string, Layer> {
    return { fc1: this.fc1, fc2: this.fc2 }
  }

  override forward(x: Value, rows: Rows, residual?: Value): Value {
    return apply("fc2", this.fc2, apply("fc1", this.fc1, x, rows), rows, residual)
  }
}
