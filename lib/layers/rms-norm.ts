import { current } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { rmsNorm } from "../ops/norm.ts"
import { constant } from "./init.ts"
import { Layer, type Parameter, type Rows } from "./layer.ts"

/**
 * y = x / √(mean(x²) + eps) · weight, in the trace's dtype of activations. Parameter: `weight` (dim), ones. eps 1e-5 as in
 * Mamba's code.
 * @see Zhang & Sennrich 2019, arXiv:1910.07467
 */
export class RMSNorm extends Layer {
  readonly dim: number
  readonly eps: number

  constructor({ dim, eps = 1e-5 }: { dim: number; eps?: number }) {
    super()
    this.dim = dim
    this.eps = eps
  }

  override parameters(): Record<string, Parameter> {
    return { weight: { shape: [this.dim], init: constant(1), decay: false } }
  }

  override forward(x: Value, rows: Rows): Value {
    const { activations } = current("RMSNorm")
    return rmsNorm({ x, weight: this.weight("weight", rows) }, { eps: this.eps, dtype: activations }).y
  }
}
