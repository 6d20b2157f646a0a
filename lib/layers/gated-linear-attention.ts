import { current } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { scale } from "../ops/elementwise.ts"
import { linear } from "../ops/linear.ts"
import { linearAttention } from "../ops/linear-attention.ts"
import { constant } from "./init.ts"
import { apply, type Layer, type Parameter, type Rows } from "./layer.ts"
import { Linear } from "./linear.ts"
import { LinearAttentionLayer, projectionInit } from "./linear-attention.ts"
import { checkSizes } from "./sizes.ts"

export interface GatedLinearAttentionOptions {
  readonly dim: number
  /** Default dim/384, at least 1, as in SAMBA's comparison. */
  readonly heads?: number
  /** Columns of all keys over dim. Default 0.5 (GLA §4). */
  readonly expandK?: number
  /** Columns of all values over dim. Default 1 (GLA §4). */
  readonly expandV?: number
  /** Columns between the two linears of the gate. Default 16 (GLA §4). */
  readonly gateRank?: number
  /** What log σ is divided by, so that decays begin near 1. Default 16 (GLA §4). */
  readonly gateNormalizer?: number
  /** Default 1e-5, as in SAMBA's code. */
  readonly eps?: number
  /** Residual branches in the model: o_proj starts smaller by √branches. Default 1. */
  readonly branches?: number
}

/**
 * Gated linear attention: per head a matrix of keys × values, whose keys decay by a gate that each row computes; the heads'
 * results normalised, gated by silu, projected back.
 *
 *   g = log σ(W₂·W₁·x + b)/16      y = o_proj(norm(linearAttention(q, k, v, g)) ⊙ silu(g_proj·x))      scale = key^(−½)
 *
 * log σ(v) is −softplus(−v), the activation of a linear whose input and bias are negated.
 *
 * Parameters as in SAMBA's code: `q_proj.weight`, `k_proj.weight` (D·expandK, D), `v_proj.weight`, `g_proj.weight` (D·expandV, D),
 * `gk_proj.0.weight` (16, D), `gk_proj.1.weight` (D·expandK, 16), `gk_proj.1.bias`, `g_norm_swish_gate.weight` (values of a head),
 * `o_proj.weight` (D, D·expandV). States per slot: `state` (heads, key, value), `tail` (15, columns of k, v and g), both f32.
 *
 * @example new GatedLinearAttention({ dim: 1536 })
 * @see Yang et al. 2023, arXiv:2312.06635, §4
 */
export class GatedLinearAttention extends LinearAttentionLayer {
  readonly gateRank: number
  readonly gateNormalizer: number
  readonly #gate: Linear

  constructor(options: GatedLinearAttentionOptions) {
    const { dim, expandK = 0.5, expandV = 1, gateRank = 16, gateNormalizer = 16, eps = 1e-5, branches = 1 } = options
    const heads = options.heads ?? Math.max(1, Math.floor(dim / 384))
    super("GatedLinearAttention", { dim, heads, expandK, expandV, eps, branches })
    checkSizes("GatedLinearAttention", { gateRank, gateNormalizer })
    this.gateRank = gateRank
    this.gateNormalizer = gateNormalizer
    this.#gate = new Linear({ inputs: dim, outputs: gateRank, init: projectionInit(dim, gateRank) })
  }

  override parameters(): Record<string, Parameter> {
    const { keys, gateRank } = this
    return {
      ...super.parameters(),
      "gk_proj.1.weight": { shape: [keys, gateRank], init: projectionInit(gateRank, keys), decay: true, matrix: true },
      "gk_proj.1.bias": { shape: [keys], init: constant(0), decay: false },
    }
  }

  override children(): Record<string, Layer> {
    return { ...super.children(), "gk_proj.0": this.#gate }
  }

  override forward(x: Value, rows: Rows, residual?: Value): Value {
    const { heads } = this.sizes
    const [q, k, v] = [this.project("q", x, rows), this.project("k", x, rows), this.project("v", x, rows)]
    const { y } = linearAttention(
      { q, k, v, g: this.#decays(x, rows), segments: rows.segments, ...this.slots(rows, this.keys) },
      { heads, scale: (this.keys / heads) ** -0.5 },
    ) // (rows, values)
    return this.finish(y, x, rows, residual)
  }

  /** log σ(v)/normalizer = −softplus(−v)/normalizer, for v = W₂·W₁·x + b. */
  #decays(x: Value, rows: Rows): Value {
    const { precision } = current("GatedLinearAttention")
    const low = apply("gk_proj.0", this.#gate, x, rows) // (rows, gateRank)
    const weight = this.weight("gk_proj.1.weight", rows)
    const bias = scale({ x: this.weight("gk_proj.1.bias", rows) }, { factor: -1 }).y
    const negated = scale({ x: low }, { factor: -1 }).y
    const softplus = linear({ x: negated, weight, bias }, { activation: "softplus", precision }).y // (rows, keys)
    return scale({ x: softplus }, { factor: -1 / this.gateNormalizer }).y
  }
}
