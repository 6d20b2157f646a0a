import { current } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { layerNorm } from "../ops/norm.ts"
import { constant } from "./init.ts"
import { Layer, type Parameter, type Rows } from "./layer.ts"
import { checkSizes } from "./sizes.ts"

export interface LayerNormOptions {
  readonly dim: number
  /** Default 1e-5, torch.nn.LayerNorm's. */
  readonly eps?: number
  /** Default true. */
  readonly bias?: boolean
}

/**
 * y = (x − mean(x)) / √(var(x) + eps) · weight + bias, in the trace's dtype of activations. Parameters: `weight` (dim), ones, and
 * `bias` (dim), zeros.
 * @see Ba, Kiros & Hinton 2016, arXiv:1607.06450
 */
export class LayerNorm extends Layer {
  readonly dim: number
  readonly eps: number
  readonly bias: boolean

  constructor({ dim, eps = 1e-5, bias = true }: LayerNormOptions) {
    super()
    checkSizes("LayerNorm", { dim })
    this.dim = dim
    this.eps = eps
    this.bias = bias
  }

  override parameters(): Record<string, Parameter> {
    return {
      weight: { shape: [this.dim], init: constant(1), decay: false },
      ...(this.bias && { bias: { shape: [this.dim], init: constant(0), decay: false } }),
    }
  }

  override forward(x: Value, rows: Rows): Value {
    const { activations } = current("LayerNorm")
    const bias = this.bias ? this.weight("bias", rows) : undefined
    return layerNorm({ x, weight: this.weight("weight", rows), bias }, { eps: this.eps, dtype: activations }).y
  }
}
