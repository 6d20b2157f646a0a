import { expect } from "../errors.ts"
import { type Dims, op } from "../graph/op.ts"

/** Rows between two saved states; native/ops/linear_attention.h has the same number. */
const saveRows = 64

/** Rows of a chunk but its last, which a slot keeps beside its state; native/ops/linear_attention.h has the same number. */
export const tailRows = 15

interface Attributes {
  readonly heads: number
  readonly scale: number
  readonly retention: boolean
}

/** Bounds what the kernels index by; returns the sizes of one head. */
function headSizes(where: string, { keys, values, gates, heads, key, value }: Dims, attrs: Attributes): Dims {
  expect(
    Number.isSafeInteger(attrs.heads) && attrs.heads >= 1,
    "BAD_OPTION",
    () => `${where}: heads is a whole number of at least 1, got ${attrs.heads}`,
  )
  expect(
    keys! % attrs.heads === 0 && values! % attrs.heads === 0,
    "BAD_SHAPE",
    () =>
      `${where}: heads divides the columns of q, k and v, got ${attrs.heads} heads for ${keys} and ${values} columns`,
  )
  const head = { heads: attrs.heads, key: keys! / attrs.heads, value: values! / attrs.heads }
  expect(
    head.key <= 256 && head.value <= 512,
    "BAD_SHAPE",
    () => `${where}: a head has at most 256 keys and 512 values, got ${head.key} and ${head.value}`,
  )
  expect(
    heads === undefined || (heads === head.heads && key === head.key && value === head.value),
    "BAD_SHAPE",
    () =>
      `${where}: a state is (${head.heads}, ${head.key}, ${head.value}) for each slot or segment, ` +
      `got (${heads}, ${key}, ${value})`,
  )
  expect(
    gates === undefined || (gates === keys && !attrs.retention),
    "BAD_SHAPE",
    () =>
      `${where}: g has the ${keys} columns of k, and is not given with retention, ` +
      `got ${gates} columns${attrs.retention ? " and retention" : ""}`,
  )
  return head
}

/** A slot's state is carried whole: the matrix and the rows that are not in it yet; and it is what a segment starts from. */
function checkCarried({ keys, values, gates, heads, slots, tails, lines, columns }: Dims): void {
  expect(
    slots !== undefined || tails === undefined,
    "BAD_INPUT",
    () => "linearAttention: carried and tail are given together, got a tail alone; give carried too",
  )
  if (slots === undefined) return
  expect(
    heads === undefined,
    "BAD_INPUT",
    () => "linearAttention: initial or carried is given, got both; put what a segment starts from into its slot",
  )
  const width = keys! + values! + (gates ?? 0)
  expect(
    tails === slots && lines === tailRows && columns === width,
    "BAD_SHAPE",
    () =>
      `linearAttention: with carried goes a tail (${slots}, ${tailRows}, ${width}), ` +
      `got ${tails === undefined ? "none" : `(${tails}, ${lines}, ${columns})`}`,
  )
}

/**
 * Gated linear attention, multi-scale retention and plain linear attention: per head a matrix of keys × values that decays and
 * takes in one outer product for each row.
 *
 *   S[t] = diag(a[t])·S[t−1] + k[t]ᵀ·v[t]      y[t] = scale·q[t]·S[t]
 *
 * a = exp(g), a factor for every key, where g is given: log decays, at most 0. With `retention`, a = 1 − 2^(−5−h) for head h.
 * With neither, nothing decays. Head h has the columns [h·key, (h + 1)·key) of q, k and g, and as many of v and y.
 *
 * Rows are taken in chunks of 16 that begin at multiples of 16 *positions*: inside a chunk rows meet directly, and S moves at its
 * end alone, so that a row has the same bits however its sequence is cut into calls. Decays of several rows are products of
 * a ≤ 1: nothing overflows, however strong they are, and a weak decay is not lost behind a strong one, as it would be in a
 * difference of sums of logarithms.
 *
 * So a slot holds two things. `carried` is S before the chunk in which the next row lies; `tail` the rows of that chunk so far,
 * one line for each position mod 16: keys columns of k, values columns of v and, with g, keys columns of g. Lines from the
 * next position's on mean nothing. Give both or neither, and no `initial` with them. A segment starts from its line of `initial` or
 * from its slot `from` (slot 0: zero), and goes to its slot `to`. Where `from` is `to`, S is written only when a chunk ends.
 *
 * `final` is the state after a segment's last row, zero where it has none. Rows in no segment are zero. `saved` is for the
 * gradient: for each segment what it starts from and the state before the first chunk that begins in its rows 64k to 64k + 63,
 * k ≥ 1; that of segment s at ⌊begin/64⌋ + s + k. Other lines of it mean nothing. What lies between is computed again.
 *
 * State and arithmetic are f32. Differentiable in q, k, v, g and initial: no gradient flows through a carried state.
 * @throws BAD_OPTION, BAD_SHAPE for heads that do not divide, sizes over 256 keys or 512 values, states that do not fit;
 * BAD_INPUT for a tail alone, and for initial beside carried
 * @example const { y } = linearAttention({ q, k, v, g, segments, carried, tail }, { heads: 4, scale: 192 ** -0.5 })
 * @see Yang et al. 2023, arXiv:2312.06635, §4; Sun et al. 2023, arXiv:2307.08621, Eq. 5–8
 */
export const linearAttention = op({
  name: "linearAttention",
  inputs: {
    q: "float rows keys",
    k: "float rows keys",
    v: "float rows values",
    "g?": "float rows gates",
    segments: "i32 segments 5",
    "initial?": "segments heads key value",
    "carried?": "slots matrices height width",
    "tail?": "tails lines columns",
  },
  outputs: { y: "float rows values", final: "segments heads key value", saved: "saves heads key value" },
  attrs: { heads: 1, scale: 1, retention: false },
  updates: ["carried", "tail"],
  auxiliary: ["saved"],
  dims: (dims, attrs) => {
    const { matrices, height, width } = dims
    checkCarried(dims)
    const carried = { ...dims, heads: matrices, key: height, value: width } as Dims
    const head = headSizes("linearAttention", dims.slots === undefined ? dims : carried, attrs)
    return { ...head, saves: Math.ceil(dims.rows! / saveRows) + dims.segments! }
  },
  grad: ({ q, k, v, g, segments }, { saved }, attrs, { y: dy, final: dfinal }) => {
    const { dq, dk, dv, dg, dinitial } = linearAttentionGrad({ dy, dfinal, q, k, v, g, segments, saved }, attrs)
    return { q: dq, k: dk, v: dv, g: dg, segments: null, initial: dinitial, carried: null, tail: null }
  },
})

/**
 * Gradient of `linearAttention`, from the states saved every 64 rows. With dS[t] the gradient of S[t], in all that depends on it:
 *
 *   dS[t] = scale·q[t]ᵀ·dy[t] + diag(a[t+1])·dS[t+1], with dfinal after the last row
 *   dq[t] = scale·dy[t]·S[t]ᵀ      dk[t] = v[t]·dS[t]ᵀ      dv[t] = k[t]·dS[t]      dg[t] = a[t]·Σ_value S[t−1]∘dS[t]
 *
 * Chunk by chunk these are products of 16 rows with the states at its two ends, and of its rows with each other. dg adds up only
 * what passes through the decay of its row, and subtracts nothing. It has no meaning without g.
 */
export const linearAttentionGrad = op({
  name: "linearAttentionGrad",
  inputs: {
    "dy?": "float rows values",
    "dfinal?": "segments heads key value",
    q: "float rows keys",
    k: "float rows keys",
    v: "float rows values",
    "g?": "float rows gates",
    segments: "i32 segments 5",
    saved: "saves heads key value",
  },
  outputs: {
    dq: "float rows keys",
    dk: "float rows keys",
    dv: "float rows values",
    dg: "float rows keys",
    dinitial: "segments heads key value",
  },
  attrs: { heads: 1, scale: 1, retention: false },
  dims: (dims, attrs) => headSizes("linearAttentionGrad", dims, attrs),
  grad: null,
})
