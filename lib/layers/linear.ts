import { current } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { type Activation, linear } from "../ops/linear.ts"
import { constant, fanIn } from "./init.ts"
import { Layer, type Parameter, type Rows } from "./layer.ts"

export interface LinearOptions {
  readonly inputs: number
  readonly outputs: number
  /** Default false, as everywhere in Mamba. */
  readonly bias?: boolean
  /** What follows the product. Default none. */
  readonly activation?: Activation
  /** Initial values of the weight; default U(±1/√inputs), torch.nn.Linear's. */
  readonly init?: Parameter["init"]
}

/**
 * y = act(x·Wᵀ + b) (+ residual), of the dtype of x; with a residual f32, as the stream is. Parameters: `weight` (outputs, inputs),
 * `bias` (outputs).
 */
export class Linear extends Layer {
  readonly options: LinearOptions

  constructor(options: LinearOptions) {
    super()
    this.options = options
  }

  override parameters(): Record<string, Parameter> {
    const { inputs, outputs, bias = false, init = fanIn() } = this.options
    return {
      weight: { shape: [outputs, inputs], init, decay: true, matrix: true, int8: true },
      ...(bias && { bias: { shape: [outputs], init: constant(0), decay: false } }),
    }
  }

  override forward(x: Value, rows: Rows, residual?: Value): Value {
    const bias = this.options.bias ? this.weight("bias", rows) : undefined
    const { precision } = current("Linear")
    const { activation = "none" } = this.options
    const dtype = residual ? "f32" : "same"
    return linear({ x, ...this.matrix("weight", rows), bias, residual }, { activation, precision, dtype }).y
  }
}
