import { expect } from "../errors.ts"
import type { Value } from "../graph/value.ts"
import { linearAttention } from "../ops/linear-attention.ts"
import { rope } from "../ops/rope.ts"
import type { Rows } from "./layer.ts"
import { LinearAttentionLayer } from "./linear-attention.ts"

export interface RetentionOptions {
  readonly dim: number
  readonly heads: number
  /** Columns of all keys over dim. Default 1 (RetNet §2.2). */
  readonly expandK?: number
  /** Columns of all values over dim. Default 2 (RetNet §3.1). */
  readonly expandV?: number
  /** Default 1e-5, as in SAMBA's code. */
  readonly eps?: number
  /** Residual branches in the model: o_proj starts smaller by √branches. Default 1. */
  readonly branches?: number
}

/**
 * Multi-scale retention: per head a matrix of keys × values with a decay of its own, fixed at 1 − 2^(−5−h) for head h; queries and
 * keys turn with their positions; the heads' results normalised, gated by silu, projected back.
 *
 *   y = o_proj(norm(linearAttention(rope(q), rope(k), v)) ⊙ silu(g_proj·x))      scale = key^(−½)
 *
 * Parameters as in SAMBA's code: `q_proj.weight`, `k_proj.weight` (D·expandK, D), `v_proj.weight`, `g_proj.weight` (D·expandV, D),
 * `g_norm_swish_gate.weight` (values of a head), `o_proj.weight` (D, D·expandV). States per slot: `state` (heads, key, value), `tail`
 * (15, columns of k and v), both f32.
 *
 * @example new Retention({ dim: 1536, heads: 6 })
 * @see Sun et al. 2023, arXiv:2307.08621, §2.1–2.2
 */
export class Retention extends LinearAttentionLayer {
  constructor({ dim, heads, expandK = 1, expandV = 2, eps = 1e-5, branches = 1 }: RetentionOptions) {
    super("Retention", { dim, heads, expandK, expandV, eps, branches })
    const key = this.keys / heads
    expect(key % 2 === 0, "BAD_OPTION", () => `Retention: keys of a head turn in pairs, got ${key}; choose other heads`)
  }

  override forward(x: Value, rows: Rows, residual?: Value): Value {
    const { heads } = this.sizes
    const { segments } = rows
    const headDim = this.keys / heads
    const turned = (name: "q" | "k") => rope({ x: this.project(name, x, rows), segments }, { heads, headDim }).y // (rows, keys)
    const [q, k, v] = [turned("q"), turned("k"), this.project("v", x, rows)]
    const { y } = linearAttention(
      { q, k, v, segments, ...this.slots(rows, 0) },
      { heads, scale: headDim ** -0.5, retention: true },
    ) // (rows, values)
    return this.finish(y, x, rows, residual)
  }
}
