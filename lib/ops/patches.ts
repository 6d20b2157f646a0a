/**
 * Between rows and patches of rows: what models that read bytes in patches need.
 */
import { expect } from "../errors.ts"
import { op } from "../graph/op.ts"
import type { Value } from "../graph/value.ts"

// Named, since this gradient calls the op that it belongs to: types cannot be inferred in a circle.
type Gradients = Record<string, Value | null>

/**
 * The same elements in rows of another width: rows are laid end to end and cut anew, so that `width = patch·dim` makes a row of a
 * patch of rows. Nothing is copied where x ends here.
 *
 * Throws BAD_OPTION unless `width` divides the elements.
 * @example const { y } = fold({ x: bytes }, { width: 32 }) // patches of 4 rows of 8: (rows/4, 32)
 */
export const fold = op({
  name: "fold",
  inputs: { x: "float rows dim" },
  outputs: { y: "float lines width" },
  attrs: { width: 0 },
  dims: ({ rows = 0, dim = 0 }, { width }) => {
    expect(
      Number.isSafeInteger(width) && width >= 1 && (rows * dim) % width === 0,
      "BAD_OPTION",
      () => `fold: width is a whole number that divides the ${rows}·${dim} elements, got ${width}`,
    )
    return { lines: (rows * dim) / width, width }
  },
  grad: ({ x }, _outputs, _attrs, { y: dy }): Gradients => (dy ? { x: fold({ x: dy }, { width: x.shape[1]! }).y } : {}),
})

function whole(where: string, name: string, value: number): void {
  expect(
    Number.isSafeInteger(value) && value >= 1 && value < 2 ** 31,
    "BAD_OPTION",
    () => `${where}: ${name} is a whole number from 1 to ${2 ** 31 - 1}, got ${value}`,
  )
}

/**
 * Spreads what was computed of whole patches over their rows. Segment s holds rows of one patch, whose row `whole` has a block of
 * dim = width/patch columns for each place:
 *
 *   y[t] = whole[(p − 1)·dim … p·dim)      p = position + t − begin      zero at p = 0, the row before a patch's first
 *
 * A segment at position 0 begins a patch: `whole` is x[s]. Any other continues the patch of its slot of `carried` (slot 0:
 * zeros). Either way `whole` goes to slot `to`. Rows in no segment are zero.
 *
 * Running throws BAD_INPUT for positions beyond the patch, and for a segment at position 0 where x is not given.
 * @throws BAD_INPUT without x and carried, BAD_SHAPE for a patch that does not divide their width
 * @example const { y } = patchRows({ x: projected, segments, carried }, { rows: 8, patch: 4 })
 * @see Yu et al. 2023, arXiv:2305.07185, §2.2, step 4
 */
export const patchRows = op({
  name: "patchRows",
  inputs: { "x?": "patches width", segments: "i32 patches 5", "carried?": "slots width" },
  outputs: { y: "rows dim" },
  attrs: { rows: 0, patch: 1 },
  updates: ["carried"],
  dims: ({ width }, { rows, patch }) => {
    expect(width !== undefined, "BAD_INPUT", () => "patchRows: x or carried is given, got neither")
    whole("patchRows", "rows", rows)
    whole("patchRows", "patch", patch)
    expect(
      width % patch === 0,
      "BAD_SHAPE",
      () => `patchRows: x and carried have a multiple of patch = ${patch} columns, got ${width}`,
    )
    return { rows, dim: width / patch }
  },
  grad: ({ x, segments }, _outputs, { patch }, { y: dy }) =>
    dy ? { ...(x && { x: patchRowsGrad({ dy, segments }, { patch }).dx }), segments: null, carried: null } : {},
})

/**
 * Gradient of `patchRows` by x: the rows of a patch side by side, zero for places that no row has, and for patches that were not
 * begun here. Nothing flows into what slots carry.
 */
export const patchRowsGrad = op({
  name: "patchRowsGrad",
  inputs: { dy: "rows dim", segments: "i32 patches 5" },
  outputs: { dx: "patches width" },
  attrs: { patch: 1 },
  dims: ({ dim = 0 }, { patch }) => {
    whole("patchRowsGrad", "patch", patch)
    return { width: dim * patch }
  },
  grad: null,
})
