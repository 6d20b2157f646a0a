import { checkOptions, expect } from "../errors.ts"
import { current } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { keyTile, ringCapacity, slidingAttention } from "../ops/attention.ts"
import { causalConv } from "../ops/causal-conv.ts"
import { rope } from "../ops/rope.ts"
import { fanIn } from "./init.ts"
import { apply, join, Layer, type Parameter, type Rows } from "./layer.ts"
import { Linear } from "./linear.ts"

/** How positions turn queries and keys. */
export interface RopeOptions {
  /** Default 10000 (RoFormer §3.2.2). */
  readonly base?: number
  /** Columns of a head that turn. Default all. */
  readonly rotary?: number
  /** Pairs are neighbours (GPT-J) instead of halves (NeoX, Llama, SAMBA). Default false. */
  readonly interleaved?: boolean
}

export interface SlidingAttentionOptions {
  readonly dim: number
  readonly heads: number
  /** Heads of k and v, each read by heads/kvHeads query heads. Default heads. */
  readonly kvHeads?: number
  /** Default dim/heads. */
  readonly headDim?: number
  /** Keys that a query sees, its own among them; 0 is no limit. */
  readonly window: number
  /** Positions that a session can have where the window is unlimited. Default 4096. */
  readonly contextMax?: number
  /** false: no positions at all. Default the options' own defaults. */
  readonly rope?: RopeOptions | false
  /** Taps of a causal convolution with SiLU on q, k and v, 2 to 4; 0 is none (SAMBA §4.4). Default 0. */
  readonly conv?: number
  /** Bias of the projection to q, k and v. Default false. */
  readonly bias?: boolean
  /** Residual branches in the model: out_proj starts smaller by √branches. Default 1. */
  readonly branches?: number
}

/**
 * Causal attention over a sliding window, with rotary positions: q, k and v from one projection, each perhaps through a short
 * convolution; softmax over the last `window` keys; projected back.
 *
 * Parameters: `qkv.weight` ((heads + 2·kvHeads)·headDim, D; rows q, k, v), `qkv.bias`, `conv1d.weight` (the same rows, 1, W),
 * `out_proj.weight` (D, heads·headDim). States: `keys` and `values`, rings of the keys (already turned) and values of the window; `conv`
 * per slot. A ring is bf16 where the products are.
 *
 * @example new SlidingAttention({ dim: 1536, heads: 12, window: 2048 })
 * @see Ren et al. 2024, arXiv:2406.07522, §2; Beltagy et al. 2020, arXiv:2004.05150; Su et al. 2021, arXiv:2104.09864
 */
export class SlidingAttention extends Layer {
  readonly options: Required<Omit<SlidingAttentionOptions, "rope">> & { readonly rope: Required<RopeOptions> | false }
  readonly qkv: Linear
  readonly outProj: Linear

  constructor(given: SlidingAttentionOptions) {
    super()
    const { dim, heads, kvHeads = heads, window, contextMax = 4096, conv = 0, bias = false, branches = 1 } = given
    const headDim = given.headDim ?? dim / heads
    for (const [name, size] of Object.entries({ dim, heads, kvHeads, headDim, contextMax })) whole(name, size, 1)
    whole("window", window, 0)
    expect(
      heads % kvHeads === 0,
      "BAD_OPTION",
      () => `SlidingAttention: kvHeads divides heads, got ${kvHeads} for ${heads}`,
    )
    expect(headDim <= 256, "BAD_OPTION", () => `SlidingAttention: headDim is 1 to 256, got ${headDim}`)
    expect(
      [0, 2, 3, 4].includes(conv),
      "BAD_OPTION",
      () => `SlidingAttention: conv is 2, 3 or 4 taps, or 0 for none, got ${conv}`,
    )
    const rope = given.rope === false ? false : ropeOptions(headDim, given.rope)
    this.options = { dim, heads, kvHeads, headDim, window, contextMax, conv, bias, branches, rope }
    this.qkv = new Linear({ inputs: dim, outputs: (heads + 2 * kvHeads) * headDim, bias })
    this.outProj = new Linear({ inputs: heads * headDim, outputs: dim, init: fanIn(1 / Math.sqrt(branches)) })
  }

  override parameters(): Record<string, Parameter> {
    const { conv } = this.options
    return conv === 0 ? {} : { "conv1d.weight": { shape: [this.#packed, 1, conv], init: fanIn(), decay: true } }
  }

  override children(): Record<string, Layer> {
    return { qkv: this.qkv, out_proj: this.outProj }
  }

  override forward(x: Value, rows: Rows, residual?: Value): Value {
    const { heads, kvHeads, headDim, window, rope: turns, conv } = this.options
    const { segments } = rows
    let qkv = apply("qkv", this.qkv, x, rows) // (rows, packed)
    if (conv > 0) {
      const carried = this.state("conv", rows, [this.#packed, conv - 1])
      qkv = causalConv({ x: qkv, weight: this.weight("conv1d.weight", rows), segments, carried }).y
    }
    if (turns !== false) qkv = rope({ x: qkv, segments }, { headDim, heads: heads + kvHeads, ...turns }).y
    const { precision } = current("SlidingAttention")
    const { y } = slidingAttention(
      { qkv, segments, ...this.#rings(rows) },
      { heads, kvHeads, headDim, window, precision },
    ) // (rows, heads·headDim)
    return apply("out_proj", this.outProj, y, rows, residual) // (rows, dim)
  }

  get #packed(): number {
    const { heads, kvHeads, headDim } = this.options
    return (heads + 2 * kvHeads) * headDim
  }

  #rings({ rings }: Rows): { rings?: Value; keys?: Value; values?: Value } {
    if (rings === undefined) return {}
    const { kvHeads, headDim, window, contextMax } = this.options
    const capacity = window > 0 ? ringCapacity(window, rings.rowsMost) : Math.ceil(contextMax / keyTile) * keyTile
    const trace = current("SlidingAttention")
    const ring = (name: string) =>
      trace.ring(join(trace.path, name), trace.factorDtype, [rings.count, kvHeads, capacity, headDim])
    return { rings: rings.index, keys: ring("keys"), values: ring("values") }
  }
}

/** More keys than any model sees; a ring of them is still a size that a tensor can have. */
const most = 2 ** 24

function whole(name: string, value: number, least: number): void {
  expect(
    Number.isSafeInteger(value) && value >= least && value <= most,
    "BAD_OPTION",
    () => `SlidingAttention: ${name} is a whole number from ${least} to ${most}, got ${value}`,
  )
}

function ropeOptions(headDim: number, given: RopeOptions = {}) {
  checkOptions("SlidingAttention: rope", given, ["base", "rotary", "interleaved"])
  const { base = 10000, rotary = headDim, interleaved = false } = given
  expect(
    Number.isSafeInteger(rotary) && rotary >= 2 && rotary <= headDim && rotary % 2 === 0,
    "BAD_OPTION",
    () => `SlidingAttention: rope.rotary is an even number from 2 to headDim ${headDim}, got ${rotary}`,
  )
  expect(
    Number.isFinite(base) && base > 1,
    "BAD_OPTION",
    () => `SlidingAttention: rope.base is a number above 1, got ${base}`,
  )
  expect(
    typeof interleaved === "boolean",
    "BAD_OPTION",
    () => `SlidingAttention: rope.interleaved is true or false, got ${interleaved}`,
  )
  return { base, rotary, interleaved }
}
