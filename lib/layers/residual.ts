import type { Value } from "../graph/value.ts"
import { apply, Layer, type Parameter, type Rows } from "./layer.ts"
import { RMSNorm } from "./rms-norm.ts"

/** y = x + mixer(norm(x)), the pre-norm block. Children: `norm`, `mixer`. The addition is fused into the mixer's last linear. */
export class Residual extends Layer {
  readonly norm: RMSNorm
  readonly mixer: Layer

  constructor({ dim, mixer, eps = 1e-5 }: { dim: number; mixer: Layer; eps?: number }) {
    super()
    this.norm = new RMSNorm({ dim, eps })
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
