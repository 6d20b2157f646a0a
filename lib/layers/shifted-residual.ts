import type { Value } from "../graph/value.ts"
import { tokenShift } from "../ops/token-shift.ts"
import { apply, Layer, type Parameter, type Rows } from "./layer.ts"
import { RMSNorm } from "./rms-norm.ts"

/**
 * y = x + mixer(norm(shift(x))): the pre-norm block on rows whose second half comes from the row before. The stream that is added is
 * x itself. Children: `norm`, `mixer`. State per slot: `shift` (⌊dim/2⌋), what the last row hands on.
 * @see Yu et al. 2023, arXiv:2305.07185; the shift is that of its public implementations
 */
export class ShiftedResidual extends Layer {
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
    const carried = this.state("shift", rows, [Math.floor(this.norm.dim / 2)])
    const shifted = tokenShift({ x, segments: rows.segments, carried }).y // (rows, dim)
    return apply("mixer", this.mixer, apply("norm", this.norm, shifted, rows), rows, x)
  }
}
