import { op } from "../graph/op.ts"

/**
 * The gate of a SwiGLU: what one linear gives, gated by what another does.
 *
 *   y = silu(gate)·up      silu(v) = v/(1 + e^−v)
 *
 * @example const { y } = swiglu({ gate: linear({ x, weight: w1 }).y, up: linear({ x, weight: w2 }).y })
 * @see Shazeer 2020, arXiv:2002.05202, Eq. 6
 */
export const swiglu = op({
  name: "swiglu",
  inputs: { gate: "float rows inner", up: "float rows inner" },
  outputs: { y: "float rows inner" },
  grad: ({ gate, up }, _outputs, _attrs, { y: dy }) => {
    if (dy === undefined) return {}
    const { dgate, dup } = swigluGrad({ dy, gate, up })
    return { gate: dgate, up: dup }
  },
})

/**
 * Gradient of `swiglu`.
 *
 *   dgate = dy·up·silu′(gate)      dup = dy·silu(gate)      silu′(v) = σ(v)·(1 + v·(1 − σ(v)))
 */
export const swigluGrad = op({
  name: "swigluGrad",
  inputs: { dy: "float rows inner", gate: "float rows inner", up: "float rows inner" },
  outputs: { dgate: "float rows inner", dup: "float rows inner" },
  grad: null,
})
