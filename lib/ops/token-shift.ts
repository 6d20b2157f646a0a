import { expect } from "../errors.ts"
import { type Dims, op } from "../graph/op.ts"

/** Holds a carried half to the columns that come from the row before. */
function halfOf(where: string, { dim, half }: Dims): Dims {
  expect(
    dim! >= 2,
    "BAD_SHAPE",
    () => `${where}: dim is at least 2, a column that stays and one that is shifted, got ${dim}`,
  )
  const shifted = Math.floor(dim! / 2)
  expect(
    half === undefined || half === shifted,
    "BAD_SHAPE",
    () => `${where}: carried is (slots, half) with half the ⌊dim/2⌋ = ${shifted} shifted columns, got ${half}`,
    { dim, half },
  )
  return {}
}

/**
 * Half of the columns from the row before: a row's first look at its past, without a parameter.
 *
 *   y[t] = [x[t] first | x[t−1] second]      x = [first second], first being the ⌈dim/2⌉ left columns
 *
 * Before a sequence's first row stands the second half in its slot of `carried` (slot 0: zeros), which then gets that of the
 * segment's last row. Without `carried` a segment begins with zeros. Rows in no segment are zero.
 * @throws BAD_SHAPE for a single column, and when a carried half is not ⌊dim/2⌋ wide
 * @example const { y } = tokenShift({ x, segments, carried })
 * @see Yu et al. 2023, arXiv:2305.07185 (MegaByte); the shift is that of its public implementations, after RWKV
 */
export const tokenShift = op({
  name: "tokenShift",
  inputs: { x: "float rows dim", segments: "i32 segments 5", "carried?": "slots half" },
  outputs: { y: "float rows dim" },
  updates: ["carried"],
  dims: (dims) => halfOf("tokenShift", dims),
  grad: ({ segments }, _outputs, _attrs, { y: dy }) =>
    dy ? { x: tokenShiftGrad({ dy, segments }).dx, segments: null, carried: null } : {},
})

/**
 * Gradient of `tokenShift`: shifts back inside each segment. No gradient flows into what was carried.
 *
 *   dx[t] = [dy[t] first | dy[t+1] second], the second half of a segment's last row being zero
 */
export const tokenShiftGrad = op({
  name: "tokenShiftGrad",
  inputs: { dy: "float rows dim", segments: "i32 segments 5" },
  outputs: { dx: "float rows dim" },
  dims: (dims) => halfOf("tokenShiftGrad", dims),
  grad: null,
})
