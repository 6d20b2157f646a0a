/**
 * The optimizer's step and the clipping of gradients.
 */
import { op } from "../graph/op.ts"

/**
 * One step of Adam with decoupled weight decay, in place, for one parameter and gradient g = clip·grad:
 *
 *   p ← p·(1 − rate·decay)      m ← β1·m + (1 − β1)·g      v ← β2·v + (1 − β2)·g²
 *   p ← p − rate/(1 − β1^t) · m / (√v/√(1 − β2^t) + eps)      t = step, 1 for the first
 *
 * Moments and parameter are f32; the factors that depend on t are made in f64. The defaults are those of torch.optim.AdamW
 * but for `decay`, which is torch's 0.01 there: here weights decay only where the caller says so.
 * @example adamW({ param, grad: dparam, m, v, rate, step, clip }, { beta1: 0.9, beta2: 0.95, decay: 0.1 })
 * @see Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2
 */
export const adamW = op({
  name: "adamW",
  inputs: { param: "...", grad: "...", m: "...", v: "...", rate: "", step: "", clip: "" },
  outputs: {},
  attrs: { beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0 },
  updates: ["param", "m", "v"],
  grad: null,
})

/**
 * The factor that brings a gradient's norm down to `max`: norm = √squares, scale = min(1, max/(norm + 1e-6)).
 *
 * A norm that is not finite shows: NaN gives NaN, infinity gives 0.
 * @example const { norm, scale } = clipScale({ squares: sumSquares({ x: gradient }).y }, { max: 1 })
 * @see Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063; torch.nn.utils.clip_grad_norm_
 */
export const clipScale = op({
  name: "clipScale",
  inputs: { squares: "" },
  outputs: { norm: "", scale: "" },
  attrs: { max: 1 },
  grad: null,
})
