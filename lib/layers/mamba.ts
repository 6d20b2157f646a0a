import { expect } from "../errors.ts"
import { current } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { causalConv } from "../ops/causal-conv.ts"
import { split } from "../ops/columns.ts"
import { negExp } from "../ops/elementwise.ts"
import { linear } from "../ops/linear.ts"
import { rmsNorm } from "../ops/norm.ts"
import { selectiveScan } from "../ops/selective-scan.ts"
import { constant, fanIn, logarithms, stepBias, uniform } from "./init.ts"
import { apply, Layer, type Parameter, type Rows } from "./layer.ts"
import { Linear } from "./linear.ts"

export interface MambaOptions {
  readonly dim: number
  /** N, states per channel. Default 16 (Mamba §3.6). */
  readonly state?: number
  /** W, taps of the convolution, 2 to 4. Default 4. */
  readonly conv?: number
  /** E/D. Default 2 (Mamba §3.4). */
  readonly expand?: number
  /** E itself, where it is not expand·dim. */
  readonly inner?: number
  /** R, rank of the projection of Δ. Default ⌈dim/16⌉. */
  readonly rank?: number
  /** Bias of the convolution. Default true. */
  readonly convBias?: boolean
  /** Biases of in_proj and out_proj. Default false. */
  readonly bias?: boolean
  /** eps of RMS norms without weights on Δ's low-rank input, B and C. Default: none of them (Falcon-Mamba has 1e-6). */
  readonly mixerNormEps?: number
  /** Residual branches in the model: out_proj starts smaller by √branches, as in GPT-2. Default 1. */
  readonly branches?: number
}

/**
 * The Mamba block: two branches x and z of width E from one projection; x through a causal convolution, SiLU and the
 * selective scan whose Δ, B and C it computes itself; gated by silu(z); projected back.
 *
 * Parameters as in state-spaces/mamba: `in_proj.weight` (2E, D), `conv1d.weight` (E, 1, W), `conv1d.bias` (E),
 * `x_proj.weight` (R + 2N, E; rows Δ, B, C), `dt_proj.weight` (E, R), `dt_proj.bias` (E), `A_log` (E, N), `D` (E),
 * `out_proj.weight` (D, E). States per slot: `conv` (E, W − 1) and `ssm` (E, N), both f32. The norms of `mixerNormEps`, one over the R columns
 * that Δ is made of and one over the N of each of B and C, have no parameters.
 *
 * @example
 * const layer = new Mamba({ dim: 768 })
 * trace("block", (t) => {
 *   const rows = { segments: t.input("segments", "i32", [1, 5]), matrixDtype: "f32" } as const
 *   return { y: apply("mixer", layer, t.input("x", "f32", [512, 768]), rows) }
 * })
 * @see Gu & Dao 2023, arXiv:2312.00752, §3.4 and Algorithm 2; Zuo et al. 2024, arXiv:2410.05355, §3.1 (the norms)
 */
export class Mamba extends Layer {
  readonly options: Required<Omit<MambaOptions, "mixerNormEps">> & Pick<MambaOptions, "mixerNormEps">
  readonly inProj: Linear
  readonly outProj: Linear

  constructor(options: MambaOptions) {
    super()
    const { dim, expand = 2, state = 16, conv = 4, convBias = true, bias = false, branches = 1 } = options
    const inner = options.inner ?? expand * dim
    const rank = options.rank ?? Math.ceil(dim / 16)
    for (const [name, size] of Object.entries({ dim, inner, state, conv, rank })) {
      expect(
        Number.isSafeInteger(size) && size >= 1,
        "BAD_OPTION",
        () => `Mamba: ${name} is a whole number of at least 1, got ${size}`,
      )
    }
    expect(conv >= 2 && conv <= 4, "BAD_OPTION", () => `Mamba: conv is 2, 3 or 4 taps, got ${conv}`)
    expect(state <= 64, "BAD_OPTION", () => `Mamba: state is 1 to 64, got ${state}`)
    const { mixerNormEps } = options
    expect(
      mixerNormEps === undefined || (Number.isFinite(mixerNormEps) && mixerNormEps > 0),
      "BAD_OPTION",
      () => `Mamba: mixerNormEps is a number above 0, got ${mixerNormEps}`,
    )
    const norms = mixerNormEps === undefined ? {} : { mixerNormEps }
    this.options = { dim, inner, expand, state, conv, rank, convBias, bias, branches, ...norms }
    this.inProj = new Linear({ inputs: dim, outputs: 2 * inner, bias })
    this.outProj = new Linear({ inputs: inner, outputs: dim, bias, init: fanIn(1 / Math.sqrt(branches)) })
  }

  override parameters(): Record<string, Parameter> {
    const { inner, state, conv, rank, convBias } = this.options
    return {
      A_log: { shape: [inner, state], init: logarithms, decay: false },
      D: { shape: [inner], init: constant(1), decay: false },
      "conv1d.weight": { shape: [inner, 1, conv], init: fanIn(), decay: true },
      ...(convBias && { "conv1d.bias": { shape: [inner], init: uniform(1 / Math.sqrt(conv)), decay: false } }),
      "x_proj.weight": { shape: [rank + 2 * state, inner], init: fanIn(), decay: true, matrix: true },
      "dt_proj.weight": { shape: [inner, rank], init: uniform(rank ** -0.5), decay: true, matrix: true },
      "dt_proj.bias": { shape: [inner], init: stepBias(), decay: false },
    }
  }

  override children(): Record<string, Layer> {
    return { in_proj: this.inProj, out_proj: this.outProj }
  }

  override forward(hidden: Value, rows: Rows, residual?: Value): Value {
    const { inner, state, conv, rank, convBias } = this.options
    const { segments } = rows
    const { precision } = current("Mamba")
    const branches = apply("in_proj", this.inProj, hidden, rows) // (rows, 2·inner)
    const { a: signal, b: z } = split({ x: branches }, { first: inner })
    const x = causalConv({
      x: signal,
      weight: this.weight("conv1d.weight", rows),
      bias: convBias ? this.weight("conv1d.bias", rows) : undefined,
      segments,
      carried: this.state("conv", rows, [inner, conv - 1]),
    }).y // (rows, inner)
    const projected = linear({ x, weight: this.weight("x_proj.weight", rows) }, { precision }).y // (rows, rank + 2·state)
    const { a: low, b: both } = split({ x: projected }, { first: rank })
    const { a: B, b: C } = split({ x: both }, { first: state })
    const delta = linear({ x: this.#normed(low), weight: this.weight("dt_proj.weight", rows) }, { precision }).y // (rows, inner)
    const { y } = selectiveScan({
      x,
      delta,
      A: negExp({ x: this.weight("A_log", rows) }).y,
      B: this.#normed(B),
      C: this.#normed(C),
      D: this.weight("D", rows),
      z,
      bias: this.weight("dt_proj.bias", rows),
      segments,
      carried: this.state("ssm", rows, [inner, state]),
    })
    return apply("out_proj", this.outProj, y, rows, residual) // (rows, dim)
  }

  /** x/√(mean(x²) + eps) where the mixer has norms, else x. */
  #normed(x: Value): Value {
    const { mixerNormEps: eps } = this.options
    return eps === undefined ? x : rmsNorm({ x }, { eps }).y
  }
}
