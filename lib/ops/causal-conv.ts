import { expect } from "../errors.ts"
import { type Dims, op } from "../graph/op.ts"

/** Bounds the taps, and holds every tail to their number. */
function tailOf({ width, tail }: Dims): Dims {
  expect(width! >= 2 && width! <= 4, "BAD_SHAPE", () => `causalConv: width is 2 to 4, got ${width}`, { width })
  expect(
    tail === undefined || tail === width! - 1,
    "BAD_SHAPE",
    () => `causalConv: a tail is the ${width! - 1} inputs before a segment, for width ${width}, got ${tail}`,
    { width, tail },
  )
  return { tail: width! - 1 }
}

/**
 * Causal depthwise convolution along each sequence, with SiLU.
 *
 *   y[t] = silu(Σ_k weight[k]·x[t − width + 1 + k] + bias)
 *
 * The last tap meets the current row. A sequence continues from its tail: the width − 1 inputs before its first row, oldest
 * first, of `initial`, else of its slot of `carried` (slot 0: zeros). The tail it leaves goes to `final` and to its slot of
 * `carried`; `start` is the tail it began with, for the gradient. Rows in no segment are zero, and so are the tails of a
 * segment without rows. A row has the same bits however its sequence is cut into calls. `silu: false` leaves the sum as it is.
 * @throws BAD_SHAPE when width is not 2, 3 or 4, or a tail not width − 1 long
 * @example const { y } = causalConv({ x, weight, bias, segments, carried })
 * @see Gu & Dao 2023, arXiv:2312.00752, §3.4
 */
export const causalConv = op({
  name: "causalConv",
  inputs: {
    x: "float rows inner",
    weight: "inner 1 width",
    "bias?": "inner",
    segments: "i32 segments 5",
    "initial?": "segments inner tail",
    "carried?": "slots inner tail",
  },
  outputs: { y: "float rows inner", final: "segments inner tail", start: "segments inner tail" },
  attrs: { silu: true },
  updates: ["carried"],
  auxiliary: ["start"],
  dims: tailOf,
  grad: ({ x, weight, bias, segments }, { start }, attrs, { y: dy, final: dfinal }) => {
    const { dx, dweight, dbias, dinitial } = causalConvGrad({ dy, dfinal, x, weight, bias, segments, start }, attrs)
    return { x: dx, weight: dweight, bias: dbias, segments: null, initial: dinitial, carried: null }
  },
})

/**
 * Gradient of `causalConv`; the sum before SiLU, s, is computed again.
 *
 *   ds = dy·silu′(s)      dx[t] = Σ_k weight[k]·ds[t + width − 1 − k] + dfinal where row t is in the final tail
 *   dweight[k] = Σ_t ds[t]·x[t − width + 1 + k]      dbias = Σ_t ds[t]
 */
export const causalConvGrad = op({
  name: "causalConvGrad",
  inputs: {
    "dy?": "float rows inner",
    "dfinal?": "segments inner tail",
    x: "float rows inner",
    weight: "inner 1 width",
    "bias?": "inner",
    segments: "i32 segments 5",
    start: "segments inner tail",
  },
  outputs: { dx: "float rows inner", dweight: "inner 1 width", dbias: "inner", dinitial: "segments inner tail" },
  attrs: { silu: true },
  dims: tailOf,
  grad: null,
})
