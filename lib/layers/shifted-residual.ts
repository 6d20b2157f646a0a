import type { Value } from "../graph/value.ts"
import { tokenShift } from "../ops/token-shift.ts"
import type { Rows } from "./layer.ts"
import { Residual } from "./residual.ts"

/**
 * y = x + mixer(norm(shift(x))): the pre-norm block on rows whose second half comes from the row before. The stream that is added is
 * x itself. Children: `norm`, `mixer`. State per slot: `shift` (⌊dim/2⌋), what the last row hands on.
 * @see Yu et al. 2023, arXiv:2305.07185; the shift is that of its public implementations
 */
export class ShiftedResidual extends Residual {
  protected override input(x: Value, rows: Rows): Value {
    const carried = this.state("shift", rows, [Math.floor(this.norm.dim / 2)])
    return tokenShift({ x, segments: rows.segments, carried }).y // (rows, dim)
  }
}
