/**
 * Between f32 and bf16.
 */
import type { Arithmetic } from "../graph/gradient.ts"
import { op } from "../graph/op.ts"
import type { Value } from "../graph/value.ts"
import { add } from "./elementwise.ts"

// Named, since the gradient calls the op that it belongs to: types cannot be inferred in a circle.
type Gradients = Record<string, Value | null>

/**
 * The same values in another dtype: to bf16 rounded to nearest even (NaN stays NaN), to f32 exactly. The gradient is the
 * cast back.
 * @example const { y } = cast({ x }, { dtype: "bf16" })
 */
export const cast = op({
  name: "cast",
  inputs: { x: "float ..." },
  outputs: { y: "float ..." },
  attrs: { dtype: "f32" },
  grad: ({ x }, _outputs, _attrs, { y: dy }): Gradients => (dy ? { x: cast({ x: dy }, { dtype: x.dtype }).y } : {}),
})

/**
 * What `gradients` needs of the ops.
 * @example
 * const { y: loss } = sum({ x: linear({ x, weight }).y })
 * const { y: one } = sum({ x: unit })
 * const [dweight] = gradients([[loss, one]], [weight], arithmetic)
 */
export const arithmetic: Arithmetic = {
  sum: (a, b) => add({ a, b }).y,
  cast: (x, dtype) => cast({ x }, { dtype }).y,
}
