/**
 * Sums, and the broadcasts that are their gradients. All add in f64 over blocks of fixed size, in a fixed order: the result
 * is the exact sum rounded once to f32, near enough, and the same for any number of threads.
 */
import { expect } from "../errors.ts"
import { op } from "../graph/op.ts"
import type { Value } from "../graph/value.ts"
import { scale, scaleBy } from "./elementwise.ts"

// Named, since these gradients call the ops that they belong to: types cannot be inferred in a circle.
type Gradients = Record<string, Value | null>

/**
 * Sum of all elements: y = Σ x.
 * @example const { y } = sum({ x: losses })
 */
export const sum = op({
  name: "sum",
  inputs: { x: "float ..." },
  outputs: { y: "" },
  grad: ({ x }, _outputs, _attrs, { y: dy }): Gradients => {
    if (dy === undefined) return {}
    // A vector's gradient needs its length alone; other shapes are taken from x, which then stays in memory until here.
    if (x.shape.length === 1) return { x: broadcast({ x: dy }, { rows: x.shape[0]! }).y }
    return { x: broadcastLike({ x: dy, like: x }).y }
  },
})

/**
 * Sum of all squares: y = Σ x². The squared norm of a gradient.
 * @example const { y } = sumSquares({ x: gradient })
 */
export const sumSquares = op({
  name: "sumSquares",
  inputs: { x: "float ..." },
  outputs: { y: "" },
  grad: ({ x }, _outputs, _attrs, { y: dy }): Gradients =>
    dy ? { x: scaleBy({ x: scale({ x }, { factor: 2 }).y, by: dy }).y } : {},
})

/**
 * Sum over rows: y[i] = Σ_row x[row, i]. The gradient of a bias; not differentiable itself.
 * @example const { y: dbias } = sumRows({ x: dpre })
 */
export const sumRows = op({
  name: "sumRows",
  inputs: { x: "float rows dim" },
  outputs: { y: "dim" },
  grad: null,
})

/**
 * A scalar in every row: y[row] = x.
 *
 * Throws BAD_OPTION unless `rows` is a whole number of at least 1.
 * @example const { y } = broadcast({ x: dloss }, { rows: 512 })
 */
export const broadcast = op({
  name: "broadcast",
  inputs: { x: "" },
  outputs: { y: "rows" },
  attrs: { rows: 0 },
  dims: (_dims, { rows }) => {
    expect(
      Number.isSafeInteger(rows) && rows >= 1,
      "BAD_OPTION",
      () => `broadcast: rows is a whole number of at least 1, got ${rows}`,
    )
    return { rows }
  },
  grad: (_inputs, _outputs, _attrs, { y: dy }): Gradients => (dy ? { x: sum({ x: dy }).y } : {}),
})

/**
 * A scalar in every element of a shape: y = x, everywhere. Of `like`, only the shape is used.
 * @example const { y } = broadcastLike({ x: dloss, like: logits })
 */
export const broadcastLike = op({
  name: "broadcastLike",
  inputs: { x: "", like: "float ..." },
  outputs: { y: "..." },
  grad: (_inputs, _outputs, _attrs, { y: dy }): Gradients => (dy ? { x: sum({ x: dy }).y, like: null } : {}),
})
