import { expect } from "../errors.ts"
import { type Dims, op } from "../graph/op.ts"
import { checkPrecision } from "../graph/trace.ts"

interface Heads {
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly window: number
  readonly precision: string
}

/** Keys and values before a run's rows come and go together, a ring for each segment. */
function checkRings(where: string, { segments, sequences, slots, copies }: Dims): void {
  const given = [sequences, slots, copies].filter((size) => size !== undefined).length
  expect(
    given === 0 || given === 3,
    "BAD_INPUT",
    () => `${where}: rings, keys and values are given together or not at all, got ${given} of them`,
  )
  expect(
    sequences === (slots === undefined ? undefined : segments) && slots === copies,
    "BAD_SHAPE",
    () =>
      `${where}: rings has one number for each of ${segments} segments, and values as many rings as keys, got ${sequences}, and ${copies} beside ${slots}`,
  )
}

/** Bounds what the kernels index by; returns the columns of y. */
function checkHeads(where: string, dims: Dims, attrs: Heads): number {
  const { packed, kv, capacity, size } = dims
  const { heads, kvHeads, headDim, window } = attrs
  for (const [name, value, most] of [
    ["heads", heads, 65536],
    ["kvHeads", kvHeads, heads],
    ["headDim", headDim, 256],
  ] as const) {
    const whole = Number.isSafeInteger(value) && value >= 1 && value <= most
    expect(whole, "BAD_OPTION", () => `${where}: ${name} is a whole number from 1 to ${most}, got ${value}`)
  }
  expect(
    heads % kvHeads === 0,
    "BAD_OPTION",
    () => `${where}: kvHeads divides heads, got ${kvHeads} kvHeads for ${heads} heads`,
  )
  expect(
    Number.isSafeInteger(window) && window >= 0 && window < 2 ** 31,
    "BAD_OPTION",
    () =>
      `${where}: window is a whole number of keys up to ${2 ** 31 - 1}, the query's own among them, or 0 for all, got ${window}`,
  )
  checkPrecision(where, attrs.precision)
  checkRings(where, dims)
  const columns = (heads + 2 * kvHeads) * headDim
  expect(
    packed === columns,
    "BAD_SHAPE",
    () => `${where}: qkv has (heads + 2·kvHeads)·headDim = ${columns} columns, got ${packed}`,
  )
  if (capacity !== undefined) {
    expect(
      kv === kvHeads && size === headDim && capacity % keyTile === 0,
      "BAD_SHAPE",
      () =>
        `${where}: a ring is (rings, kvHeads ${kvHeads}, capacity, headDim ${headDim}) with a capacity that is a multiple of ${keyTile}, got [rings, ${kv}, ${capacity}, ${size}]`,
    )
  }
  return heads * headDim
}

/** Keys are taken in tiles that begin at multiples of this position; native/ops/attention.h has the same number. */
export const keyTile = 64

/**
 * Positions that a ring needs for a window and runs of at most `rows` rows: the window before the first row, and the rows
 * themselves, which overwrite nothing that is visible. A multiple of the tile.
 */
export const ringCapacity = (window: number, rows: number): number => Math.ceil((window - 1 + rows) / keyTile) * keyTile

/**
 * Causal attention of grouped heads over a sliding window, the query's own key counted.
 *
 *   y[i] = Σ_j softmax_j(q[i]·k[j]/√headDim)·v[j]      over j with i − window < j ≤ i      lse[i] = log Σ_j exp(q[i]·k[j]/√headDim)
 *
 * Columns of qkv: the heads of q, then those of k, then those of v; query head h reads kv head ⌊h/(heads/kvHeads)⌋. i and j are
 * absolute positions in the sequence, which a segment's line states for its first row; window 0 is no limit. Segments do not see
 * each other. Blocks of keys outside the window are not read.
 *
 * Keys and values before a segment's first row come from ring `rings[s]` of `keys` and `values`, position p at p mod capacity,
 * and the segment's own are written there; ring 0 is nobody's: such a segment sees its own rows alone. Positions from the
 * segment's first row on are overwritten, older ones in reach stay, so a run can be done again or given up. The slots `from` and
 * `to` of a segment are not looked at. Give `rings`, `keys` and `values` together, or none.
 *
 * Sums and softmax are f32. With precision bf16, q, k, v and the weights of the softmax are rounded to bf16 before they are
 * multiplied, and a ring is bf16; else it is f32, and so are the products: bf16x3 is f32 here. A row has the same bits however its sequence is cut into calls: tiles of keys
 * begin at multiples of 64 positions. Rows in no segment are zero.
 *
 * Running throws BAD_INPUT for a ring outside [0, rings), for one that two segments use, for a segment that with the window before it is
 * longer than the capacity, and with window 0 for a position beyond it.
 * @throws BAD_OPTION, BAD_SHAPE for heads that do not divide, sizes that do not fit; BAD_INPUT for rings without keys and values
 * @example const { y } = slidingAttention({ qkv, segments, rings, keys, values }, { heads: 12, kvHeads: 4, headDim: 64, window: 2048 })
 * @see Vaswani et al. 2017, arXiv:1706.03762, Eq. 1; Beltagy et al. 2020, arXiv:2004.05150, §3.1; Ainslie et al. 2023, arXiv:2305.13245;
 * Dao 2023, arXiv:2307.08691, §3.1 (the tiled softmax)
 */
export const slidingAttention = op({
  name: "slidingAttention",
  inputs: {
    qkv: "float rows packed",
    segments: "i32 segments 5",
    "rings?": "i32 sequences",
    "keys?": "float slots kv capacity size",
    "values?": "float copies kv capacity size",
  },
  outputs: { y: "float rows width", lse: "rows heads" },
  attrs: { heads: 1, kvHeads: 1, headDim: 64, window: 0, precision: "f32" },
  updates: ["keys", "values"],
  auxiliary: ["lse"],
  dims: (dims, attrs) => ({ width: checkHeads("slidingAttention", dims, attrs), heads: attrs.heads }),
  grad: ({ qkv, segments, rings, keys, values }, { y, lse }, attrs, { y: dy }) =>
    dy
      ? {
          qkv: slidingAttentionGrad({ dy, qkv, y, lse, segments, rings, keys, values }, attrs).dqkv,
          segments: null,
          rings: null,
          keys: null,
          values: null,
        }
      : {},
})

/**
 * Gradient of `slidingAttention`; the weights p[i, j] of the softmax are computed again from lse.
 *
 *   D[i] = dy[i]·y[i]      dp[i, j] = dy[i]·v[j]      ds[i, j] = p[i, j]·(dp[i, j] − D[i])/√headDim
 *   dq[i] = Σ_j ds[i, j]·k[j]      dk[j] = Σ_i ds[i, j]·q[i]      dv[j] = Σ_i p[i, j]·dy[i]
 *
 * dk and dv sum over the query heads of their group. What a ring holds takes part, but no gradient flows into it. lse has no
 * gradient of its own. With precision bf16, q, k and v are rounded as in the forward pass; dy, p and ds may be, and are on a GPU.
 */
export const slidingAttentionGrad = op({
  name: "slidingAttentionGrad",
  inputs: {
    dy: "float rows width",
    qkv: "float rows packed",
    y: "float rows width",
    lse: "rows heads",
    segments: "i32 segments 5",
    "rings?": "i32 sequences",
    "keys?": "float slots kv capacity size",
    "values?": "float copies kv capacity size",
  },
  outputs: { dqkv: "float rows packed" },
  attrs: { heads: 1, kvHeads: 1, headDim: 64, window: 0, precision: "f32" },
  dims: (dims, attrs) => {
    const width = checkHeads("slidingAttentionGrad", dims, attrs)
    const fits = dims.width === width && dims.heads === attrs.heads
    expect(
      fits,
      "BAD_SHAPE",
      () =>
        `slidingAttentionGrad: dy and y have ${width} columns and lse ${attrs.heads}, got ${dims.width} and ${dims.heads}; pass those of slidingAttention`,
    )
    return {}
  },
  grad: null,
})
