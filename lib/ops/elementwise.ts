/**
 * Elementwise arithmetic. Shapes are equal: there is no broadcasting, save for the scalar of `scaleBy`.
 */
import { op } from "../graph/op.ts"
import type { Value } from "../graph/value.ts"
import { cast } from "./cast.ts"
import { sum } from "./reduce.ts"

// Named, since these gradients call the ops that they belong to: types cannot be inferred in a circle.
type Gradients = Record<string, Value | null>

/** In f32: terms of a sum that may cancel are not rounded one by one. */
const exact = (x: Value) => (x.dtype === "f32" ? x : cast({ x }, { dtype: "f32" }).y)

/**
 * Sum of two values: y = a + b.
 * @example const { y } = add({ a, b })
 */
export const add = op({
  name: "add",
  inputs: { a: "float ...", b: "float ..." },
  outputs: { y: "float ..." },
  grad: (_inputs, _outputs, _attrs, { y: dy }) => ({ a: dy, b: dy }),
})

/**
 * Product of two values: y = a·b.
 * @example const { y } = multiply({ a, b })
 */
export const multiply = op({
  name: "multiply",
  inputs: { a: "float ...", b: "float ..." },
  outputs: { y: "float ..." },
  grad: ({ a, b }, _outputs, _attrs, { y: dy }): Gradients =>
    dy ? { a: multiply({ a: dy, b }).y, b: multiply({ a: dy, b: a }).y } : {},
})

/**
 * Product with a constant: y = factor·x.
 * @example const { y } = scale({ x }, { factor: 0.5 })
 */
export const scale = op({
  name: "scale",
  inputs: { x: "float ..." },
  outputs: { y: "float ..." },
  attrs: { factor: 1 },
  grad: (_inputs, _outputs, { factor }, { y: dy }): Gradients => (dy ? { x: scale({ x: dy }, { factor }).y } : {}),
})

/**
 * Product with a scalar that is itself a value, so that it can change between runs: y = by·x.
 * @example const { y } = scaleBy({ x: gradient, by: clip })
 */
export const scaleBy = op({
  name: "scaleBy",
  inputs: { x: "float ...", by: "" },
  outputs: { y: "float ..." },
  grad: ({ x, by }, _outputs, _attrs, { y: dy }): Gradients =>
    dy ? { x: scaleBy({ x: dy, by }).y, by: sum({ x: multiply({ a: exact(dy), b: exact(x) }).y }).y } : {},
})

/**
 * Exponential: y = e^x.
 *
 * Relative error at most 1.2e-7; results below 2⁻¹²³ may be 0.
 * @example const { y } = exp({ x })
 */
export const exp = op({
  name: "exp",
  inputs: { x: "float ..." },
  outputs: { y: "float ..." },
  grad: (_inputs, { y }, _attrs, { y: dy }): Gradients => (dy ? { x: multiply({ a: dy, b: y }).y } : {}),
})

/**
 * The state matrix from its parameter: y = −e^x, so that A = negExp(A_log) is negative and the recurrence decays.
 * @example const { y: A } = negExp({ x: A_log })
 * @see Gu & Dao 2023, arXiv:2312.00752, §3.6
 */
export const negExp = op({
  name: "negExp",
  inputs: { x: "..." },
  outputs: { y: "..." },
  grad: (_inputs, { y }, _attrs, { y: dy }): Gradients => (dy ? { x: multiply({ a: dy, b: y }).y } : {}),
})

/**
 * Sigmoid linear unit: y = x·σ(x).
 * @example const { y } = silu({ x })
 * @see Elfwing, Uchibe & Doya 2017, arXiv:1702.03118
 */
export const silu = op({
  name: "silu",
  inputs: { x: "float ..." },
  outputs: { y: "float ..." },
  grad: ({ x }, _outputs, _attrs, { y: dy }): Gradients => (dy ? { x: siluGrad({ dy, x }).dx } : {}),
})

/**
 * Gradient of `silu`: dx = dy·σ(x)·(1 + x·(1 − σ(x))).
 * @example const { dx } = siluGrad({ dy, x })
 */
export const siluGrad = op({
  name: "siluGrad",
  inputs: { dy: "float ...", x: "float ..." },
  outputs: { dx: "float ..." },
  grad: null,
})

/**
 * Adds into a stored value: total ← total + x. For gradients that gather over several batches.
 * @example accumulate({ total, x: gradient })
 */
export const accumulate = op({
  name: "accumulate",
  inputs: { total: "...", x: "..." },
  outputs: {},
  updates: ["total"],
  grad: null,
})

/**
 * Replaces a stored value: total ← x. The first batch of a step, where `accumulate` serves the others.
 * @example overwrite({ total, x: gradient })
 */
export const overwrite = op({
  name: "overwrite",
  inputs: { total: "...", x: "..." },
  outputs: {},
  updates: ["total"],
  grad: null,
})
