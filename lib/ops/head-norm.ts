import { expect } from "../errors.ts"
import { type Dims, op } from "../graph/op.ts"

/** Heads from the columns of x and those of one head, which the kernels keep in fast memory. */
function headsOf(where: string, { inner, value }: Dims): number {
  expect(
    inner! % value! === 0 && value! <= 1024,
    "BAD_SHAPE",
    () => `${where}: weight has the columns of one head, at most 1024 and a divisor of inner ${inner}, got ${value}`,
    { inner, value },
  )
  return inner! / value!
}

/**
 * RMS normalisation of every head by itself, and a gate: what stands between linear attention and its output projection.
 *
 *   rstd = 1/√(mean over a head's columns of x² + eps)      y = x·rstd·weight·silu(gate)
 *
 * All heads share the weight. Statistics are f32. eps: 1e-5, as in SAMBA's code.
 * @throws BAD_SHAPE when the columns of x are no multiple of weight's, or those are over 1024
 * @example const { y } = gatedHeadNorm({ x: attended, gate, weight })
 * @see Sun et al. 2023, arXiv:2307.08621, Eq. 8 (with RMS in the place of group normalisation); Yang et al. 2023,
 * arXiv:2312.06635, §4
 */
export const gatedHeadNorm = op({
  name: "gatedHeadNorm",
  inputs: { x: "float rows inner", gate: "float rows inner", weight: "value" },
  outputs: { y: "float rows inner", rstd: "rows heads" },
  attrs: { eps: 1e-5 },
  dims: (dims) => ({ heads: headsOf("gatedHeadNorm", dims) }),
  auxiliary: ["rstd"],
  grad: ({ x, gate, weight }, { rstd }, _attrs, { y: dy }) => {
    if (dy === undefined) return {}
    const { dx, dgate, dweight } = gatedHeadNormGrad({ dy, x, gate, weight, rstd })
    return { x: dx, gate: dgate, weight: dweight }
  },
})

/**
 * Gradient of `gatedHeadNorm`, with x̂ = x·rstd and dn = dy·silu(gate).
 *
 *   dx = rstd·(dn·weight − x̂·mean(dn·weight·x̂))      dgate = dy·x̂·weight·silu′(gate)      dweight = Σ_row,head dn·x̂
 */
export const gatedHeadNormGrad = op({
  name: "gatedHeadNormGrad",
  inputs: {
    dy: "float rows inner",
    x: "float rows inner",
    gate: "float rows inner",
    weight: "value",
    rstd: "rows heads",
  },
  outputs: { dx: "float rows inner", dgate: "float rows inner", dweight: "value" },
  dims: (dims) => {
    const heads = headsOf("gatedHeadNormGrad", dims)
    expect(
      dims.heads === heads,
      "BAD_SHAPE",
      () => `gatedHeadNormGrad: rstd has a column for each of ${heads} heads, got ${dims.heads}`,
    )
    return {}
  },
  grad: null,
})
