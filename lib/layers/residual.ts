import type { Value } from "../graph/value.ts"
import { apply, Layer, type Parameter, type Rows } from "./layer.ts"
import type { LayerNorm } from "./layer-norm.ts"
import { type NormKind, normOf } from "./norm.ts"
import type { RMSNorm } from "./rms-norm.ts"

export interface ResidualOptions {
  readonly dim: number
  readonly mixer: Layer
  /** Default 1e-5. */
  readonly eps?: number
  /** Default "rms". */
  readonly norm?: NormKind
}

/** y = x + mixer(norm(x)), the pre-norm block. Children: `norm`, `mixer`. The addition is fused into the mixer's last linear. */
export class Residual extends Layer {
  readonly norm: LayerNorm | RMSNorm
  readonly mixer: Layer

  constructor({ dim, mixer, eps = 1e-5, norm = "rms" }: ResidualOptions) {
    super()
    this.norm = normOf(norm, { dim, eps })
    this.mixer = mixer
  }

  override parameters(): Record<string, Parameter> {
    return {}
  }

  override children(): Record<string, Layer> {
    return { norm: this.norm, mixer: this.mixer }
  }

  override forward(x: Value, rows: Rows): Value {
    return apply("mixer", this.mixer, apply("norm", this.norm, this.input(x, rows), rows), rows, x)
  }

  /** What the norm is given of the stream. */
  protected input(x: Value, _rows: Rows): Value {
    return x
  }
}
