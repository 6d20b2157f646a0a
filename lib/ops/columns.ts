/**
 * Parts of matrices: columns split off and joined, rows picked out.
 */
import { expect } from "../errors.ts"
import { op } from "../graph/op.ts"
import type { Value } from "../graph/value.ts"

// Named, since these gradients call the ops that they belong to: types cannot be inferred in a circle.
type Gradients = Record<string, Value | null>

/**
 * The first columns of a matrix and the others: x = [a b]. The two halves of Mamba's input projection.
 *
 * Throws BAD_OPTION unless 1 ≤ first < width.
 * @example const { a: x, b: z } = split({ x: xz }, { first: 8 })
 */
export const split = op({
  name: "split",
  inputs: { x: "float rows width" },
  outputs: { a: "float rows first", b: "float rows second" },
  attrs: { first: 0 },
  dims: ({ width = 0 }, { first }) => {
    expect(
      Number.isSafeInteger(first) && first >= 1 && first < width,
      "BAD_OPTION",
      () => `split: first is a whole number in [1, ${width}), got ${first}`,
    )
    return { first, second: width - first }
  },
  grad: ({ x }, _outputs, { first }, { a, b }): Gradients =>
    a || b ? { x: concat({ a, b }, { first, second: x.shape[1]! - first }).y } : {},
})

/**
 * Two matrices side by side: y = [a b]. A missing side is zero.
 *
 * Throws BAD_INPUT when both sides are missing, BAD_OPTION unless `first` and `second` are the widths of a and b.
 * @example const { y } = concat({ a: dx, b: dz }, { first: 8, second: 8 })
 */
export const concat = op({
  name: "concat",
  inputs: { "a?": "float rows left", "b?": "float rows right" },
  outputs: { y: "float rows width" },
  attrs: { first: 0, second: 0 },
  dims: ({ rows, left, right }, { first, second }) => {
    expect(rows !== undefined, "BAD_INPUT", () => "concat: one of a and b is given, got neither")
    for (const [name, size, width] of [
      ["first", first, left],
      ["second", second, right],
    ] as const) {
      expect(
        Number.isSafeInteger(size) && size >= 1 && (width === undefined || size === width),
        "BAD_OPTION",
        () => `concat: ${name} is the number of its columns, ${width ?? "at least 1"}, got ${size}`,
      )
    }
    return { width: first + second }
  },
  grad: ({ a, b }, _outputs, { first }, { y: dy }): Gradients => {
    if (dy === undefined) return {}
    const parts = split({ x: dy }, { first })
    return { ...(a && { a: parts.a }), ...(b && { b: parts.b }) }
  },
})

/**
 * Rows by number: y[p] = x[index[p]], zero where index[p] is −1. `index` is an input of the run.
 *
 * Running throws BAD_INPUT for an index outside [−1, rows).
 * @example const { y: scored } = gatherRows({ x: hidden, index })
 */
export const gatherRows = op({
  name: "gatherRows",
  inputs: { x: "float rows dim", index: "i32 picks" },
  outputs: { y: "float picks dim" },
  grad: ({ x, index }, _outputs, _attrs, { y: dy }): Gradients =>
    dy ? { x: scatterRows({ dy, index }, { rows: x.shape[0]! }).dx, index: null } : {},
})

/**
 * Gradient of `gatherRows`: dx[r] = Σ of dy[p] over all p with index[p] = r, added in the order of p.
 *
 * Throws BAD_OPTION unless `rows` is a whole number of at least 1.
 */
export const scatterRows = op({
  name: "scatterRows",
  inputs: { dy: "float picks dim", index: "i32 picks" },
  outputs: { dx: "float rows dim" },
  attrs: { rows: 0 },
  dims: (_dims, { rows }) => {
    expect(
      Number.isSafeInteger(rows) && rows >= 1,
      "BAD_OPTION",
      () => `scatterRows: rows is a whole number of at least 1, got ${rows}`,
    )
    return { rows }
  },
  grad: null,
})
