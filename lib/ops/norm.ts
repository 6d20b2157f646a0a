/**
 * Normalisation of rows.
 */
import { op } from "../graph/op.ts"

/**
 * RMS normalisation of rows, with the residual stream added first.
 *
 *   sum = x + residual      rstd = 1/√(mean(sum²) + eps)      y = sum·rstd·weight + bias
 *
 * Statistics are f32, and so is `sum`: the new residual stream where `residual` is given, without it a copy of x. y is of
 * `dtype`: f32, bf16, or that of x. Without a weight y is not scaled, as on Δ, B and C of Falcon-Mamba.
 * eps: 1e-5, as in the code of the Mamba paper.
 * @example const { y, sum } = rmsNorm({ x, weight, residual }, { eps: 1e-5 })
 * @see Zhang & Sennrich 2019, arXiv:1910.07467, Eq. 4
 */
export const rmsNorm = op({
  name: "rmsNorm",
  inputs: { x: "float rows dim", "weight?": "dim", "bias?": "dim", "residual?": "rows dim" },
  outputs: { y: "float rows dim", sum: "rows dim", rstd: "rows" },
  attrs: { eps: 1e-5, dtype: "same" },
  auxiliary: ["rstd"],
  grad: ({ x, weight, bias, residual }, { sum, rstd }, _attrs, { y: dy, sum: dsum }) => {
    if (dy === undefined && dsum === undefined) return {}
    const { dx, dweight, dbias } = rmsNormGrad({ dy, dsum, x: residual ? sum : x, weight, rstd })
    return {
      x: dx,
      ...(weight && { weight: dweight }),
      ...(bias && { bias: dbias }),
      ...(residual && { residual: dx }),
    }
  },
})

/**
 * Gradient of `rmsNorm`; x is what was normalised, x̂ = x·rstd.
 *
 *   dx = rstd·(dy·weight − x̂·mean(dy·weight·x̂)) + dsum      dweight = Σ_row dy·x̂      dbias = Σ_row dy
 */
export const rmsNormGrad = op({
  name: "rmsNormGrad",
  inputs: { "dy?": "float rows dim", "dsum?": "rows dim", x: "float rows dim", "weight?": "dim", rstd: "rows" },
  outputs: { dx: "rows dim", dweight: "dim", dbias: "dim" },
  grad: null,
})

/**
 * Layer normalisation of rows, with the residual stream added first.
 *
 *   sum = x + residual      mean = mean(sum)      rstd = 1/√(mean((sum − mean)²) + eps)      y = (sum − mean)·rstd·weight + bias
 *
 * Statistics are f32, and so is `sum`, the new residual stream. Deviations are taken from the mean before they are squared, and
 * from more of it than f32 holds: a row far from zero is normalised as well as one around it. y is of `dtype`: f32, bf16, or that
 * of x.
 * eps: 1e-5, as in torch.
 * @example const { y, sum } = layerNorm({ x, weight, bias, residual })
 * @see Ba, Kiros & Hinton 2016, arXiv:1607.06450, Eq. 3–4
 */
export const layerNorm = op({
  name: "layerNorm",
  inputs: { x: "float rows dim", weight: "dim", "bias?": "dim", "residual?": "rows dim" },
  outputs: { y: "float rows dim", sum: "rows dim", mean: "rows", rstd: "rows" },
  attrs: { eps: 1e-5, dtype: "same" },
  auxiliary: ["mean", "rstd"],
  grad: ({ x, weight, bias, residual }, { sum, mean, rstd }, _attrs, { y: dy, sum: dsum }) => {
    if (dy === undefined && dsum === undefined) return {}
    const { dx, dweight, dbias } = layerNormGrad({ dy, dsum, x: residual ? sum : x, weight, mean, rstd })
    return { x: dx, weight: dweight, ...(bias && { bias: dbias }), ...(residual && { residual: dx }) }
  },
})

/**
 * Gradient of `layerNorm`; x is what was normalised, x̂ = (x − mean)·rstd and g = dy·weight.
 *
 *   dx = rstd·(g − mean(g) − x̂·mean(g·x̂)) + dsum      dweight = Σ_row dy·x̂      dbias = Σ_row dy
 */
export const layerNormGrad = op({
  name: "layerNormGrad",
  inputs: {
    "dy?": "float rows dim",
    "dsum?": "rows dim",
    x: "float rows dim",
    weight: "dim",
    mean: "rows",
    rstd: "rows",
  },
  outputs: { dx: "rows dim", dweight: "dim", dbias: "dim" },
  grad: null,
})
