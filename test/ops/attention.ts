import { ringCapacity, slidingAttention, slidingAttentionGrad } from "../../lib/ops/attention.ts"
import { bf16, normal, type OpCase, type OpSpec, segmentLine, segmentsOf, type Tensor64, values } from "./spec.ts"

type Inputs = Record<"qkv" | "segments", Tensor64> & Partial<Record<"rings" | "keys" | "values", Tensor64>>
type GradInputs = Inputs & Record<"dy" | "y" | "lse", Tensor64>
interface Attrs {
  heads: number
  kvHeads: number
  headDim: number
  window: number
  precision: string
}

/** Where query head h of a row finds its vectors: offsets into qkv as it is multiplied, and into what a ring holds. */
interface Pair {
  readonly row: number
  readonly query: number
  /** The visible keys, in rising order of position: in `data` at `at`, and the value at `valueAt`. */
  readonly keys: readonly { k: Float64Array; v: Float64Array; own?: number }[]
}

const rounded = (tensor: Tensor64, precision: string) => (precision === "bf16" ? bf16(tensor).data : tensor.data)

/** Every pair of a row and a query head, with the keys and values that it sees. */
function* pairs(
  inputs: Inputs,
  { heads, kvHeads, headDim, window, precision }: Attrs,
): Generator<Pair & { h: number }> {
  const { qkv, segments, rings, keys, values: stored } = inputs
  const packed = qkv.shape[1]!
  const data = rounded(qkv, precision)
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end, position] = segmentLine(segments, s)
    const ring = rings?.data[s] ?? 0
    for (let row = begin; row < end; row++) {
      const last = position + row - begin
      const first = Math.max(0, window > 0 ? last - window + 1 : 0, ring > 0 ? 0 : position)
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor(h / (heads / kvHeads))
        const seen = Array.from({ length: last - first + 1 }, (_, i) => {
          const at = first + i
          if (at >= position) {
            const own = (begin + at - position) * packed + (heads + kv) * headDim
            const value = own + kvHeads * headDim
            return { k: data.subarray(own, own + headDim), v: data.subarray(value, value + headDim), own }
          }
          const slot = ((ring * kvHeads + kv) * keys!.shape[2]! + (at % keys!.shape[2]!)) * headDim
          return { k: keys!.data.subarray(slot, slot + headDim), v: stored!.data.subarray(slot, slot + headDim) }
        })
        yield { row, h, query: row * packed + h * headDim, keys: seen }
      }
    }
  }
}

const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, value, i) => sum + value * b[i]!, 0)

/** The softmax over all visible keys at once. With precision bf16 its weights stay exact here. */
function reference(inputs: Inputs, attrs: Attrs): Record<string, Float64Array> {
  const { heads, headDim, precision } = attrs
  const rows = inputs.qkv.shape[0]!
  const data = rounded(inputs.qkv, precision)
  const [y, lse] = [new Float64Array(rows * heads * headDim), new Float64Array(rows * heads)]
  for (const { row, h, query, keys } of pairs(inputs, attrs)) {
    const q = data.subarray(query, query + headDim)
    const scores = keys.map(({ k }) => dot(q, k) / Math.sqrt(headDim))
    const most = Math.max(...scores)
    const total = scores.reduce((sum, score) => sum + Math.exp(score - most), 0)
    lse[row * heads + h] = most + Math.log(total)
    keys.forEach(({ v }, j) => {
      const weight = Math.exp(scores[j]! - most) / total
      for (let d = 0; d < headDim; d++) y[(row * heads + h) * headDim + d]! += weight * v[d]!
    })
  }
  return { y, lse, ...(inputs.rings && written(inputs, attrs)) }
}

/** The rings after the run: a segment's rows stand at their positions, all else is as it was. */
function written(inputs: Inputs, { heads, kvHeads, headDim, precision }: Attrs): Record<string, Float64Array> {
  const { qkv, segments, rings, keys, values: stored } = inputs
  const data = rounded(qkv, precision)
  const [toKeys, toValues] = [keys!.data.slice(), stored!.data.slice()]
  const capacity = keys!.shape[2]!
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end, position] = segmentLine(segments, s)
    const ring = rings!.data[s]!
    for (let row = begin; row < end && ring > 0; row++) {
      for (let kv = 0; kv < kvHeads; kv++) {
        const to = ((ring * kvHeads + kv) * capacity + ((position + row - begin) % capacity)) * headDim
        const from = row * qkv.shape[1]! + (heads + kv) * headDim
        toKeys.set(data.subarray(from, from + headDim), to)
        toValues.set(data.subarray(from + kvHeads * headDim, from + (kvHeads + 1) * headDim), to)
      }
    }
  }
  return { keys: toKeys, values: toValues }
}

/** The equations of lib/ops/attention.ts; y and lse are what is given, whether or not a forward pass made them. */
function gradReference(inputs: GradInputs, attrs: Attrs): Record<string, Float64Array> {
  const { heads, kvHeads, headDim, precision } = attrs
  const data = rounded(inputs.qkv, precision)
  const dqkv = new Float64Array(inputs.qkv.data.length)
  const add = (at: number, factor: number, vector: Float64Array) => {
    for (let d = 0; d < headDim; d++) dqkv[at + d]! += factor * vector[d]!
  }
  for (const { row, h, query, keys } of pairs(inputs, attrs)) {
    const at = row * heads + h
    const [q, dy] = [data.subarray(query, query + headDim), inputs.dy.data.subarray(at * headDim, (at + 1) * headDim)]
    const D = dot(dy, inputs.y.data.subarray(at * headDim, (at + 1) * headDim))
    for (const { k, v, own } of keys) {
      const p = Math.exp(dot(q, k) / Math.sqrt(headDim) - inputs.lse.data[at]!)
      const ds = (p * (dot(dy, v) - D)) / Math.sqrt(headDim)
      add(query, ds, k)
      if (own === undefined) continue
      add(own, ds, q)
      add(own + kvHeads * headDim, p, dy)
    }
  }
  return { dqkv }
}

interface Shape {
  rows: number
  heads?: readonly [heads: number, kvHeads: number]
  headDim?: number
  window?: number
  segments?: Tensor64
  /** One for each segment. */
  rings?: readonly number[]
  capacity?: number
  /** Factor of q and k: scores grow with its square. */
  scale?: number
}

interface Sized extends Shape {
  readonly title: string
  /** Also under ThreadSanitizer: another path of a kernel, or another width of its tiles. */
  readonly replay?: boolean
}

const sizes = ({ heads: [heads, kvHeads] = [1, 1], headDim = 8, window = 0 }: Shape, precision: string): Attrs => ({
  heads,
  kvHeads,
  headDim,
  window,
  precision,
})

function inputsOf(shape: Shape, precision: string): Inputs {
  const { rows, segments = segmentsOf([0, rows]), rings, scale = 1 } = shape
  const { heads, kvHeads, headDim, window } = sizes(shape, precision)
  const { capacity = ringCapacity(window, rows) } = shape
  const held = (seed: number) => {
    const floats = normal([Math.max(...rings!) + 2, kvHeads, capacity, headDim], seed, scale)
    return precision === "bf16" ? bf16(floats) : floats
  }
  return {
    qkv: normal([rows, (heads + 2 * kvHeads) * headDim], 1, scale),
    segments,
    ...(rings && { rings: values("i32", [rings.length], rings), keys: held(2), values: held(3) }),
  }
}

/** Any y, and an lse near the true one: one from the wrong place is seen. */
function gradInputs(shape: Shape, precision: string): GradInputs {
  const inputs = inputsOf(shape, precision)
  const attrs = sizes(shape, precision)
  const width = [shape.rows, attrs.heads * attrs.headDim]
  const shift = normal([shape.rows, attrs.heads], 6, 0.3).data
  const near = reference(inputs, attrs).lse!.map((value, i) => value + shift[i]!)
  const lse = values("f32", [shape.rows, attrs.heads], near)
  return { dy: normal(width, 4), y: normal(width, 5), lse, ...inputs }
}

/** Multiply-adds of the forward pass. */
function workOf(inputs: Inputs, attrs: Attrs): number {
  let work = 0
  for (const { keys } of pairs(inputs, attrs)) work += 2 * keys.length * attrs.headDim
  return work
}

// Around the tiles of 64 keys and blocks of several of them, and around the window.
const lengths: Sized[] = [
  ...[1, 2, 63, 64, 65, 127, 131].map((rows) => ({ title: `${rows} rows`, rows })),
  ...[255, 256, 257, 383].map((rows) => ({ title: `${rows} rows, window 100`, rows, window: 100 })),
  ...[1, 2, 63, 64, 65, 130, 1000].map((window) => ({ title: `window ${window} of 130 rows`, rows: 130, window })),
]

const shapes: Sized[] = [
  ...(
    [
      [4, 4],
      [6, 3],
      [8, 1],
      [12, 4],
      [20, 1],
    ] as const
  ).map((heads) => ({ title: `${heads[0]} heads, ${heads[1]} of keys`, rows: 37, heads, window: 20 })),
  ...[1, 12, 32, 40, 64, 128, 256].map((headDim) => ({
    title: `headDim ${headDim}`,
    rows: 19,
    heads: [2, 1] as const,
    headDim,
    window: 11,
    replay: [40, 128, 256].includes(headDim),
  })),
  { title: "70 rows of 4 heads of 32 on 2 of keys", rows: 70, heads: [4, 2], headDim: 32, window: 33 },
  { title: "one row of 4 heads of 64 on 2 of keys", rows: 1, heads: [4, 2], headDim: 64, window: 64 },
]

const spread = segmentsOf([2, 67], [67, 67], [67, 80, 130], [83, 150, 70], [150, 150])
const decoding = segmentsOf([0, 1, 4000], [1, 2, 0], [3, 4, 63], [4, 5, 64], [5, 6, 1_000_000])

const segmented: Sized[] = [
  { title: "five segments, two without rows, spare rows, no rings", rows: 153, window: 40, segments: spread },
  { title: "the same, window 0", rows: 153, heads: [4, 2], segments: spread },
  { title: "no row in any segment", rows: 5, segments: segmentsOf([0, 0], [5, 5]), window: 3 },
  {
    title: "the same segments, three of them with rings, one of which has wrapped",
    replay: true,
    rows: 153,
    heads: [2, 1],
    window: 40,
    segments: spread,
    rings: [1, 9, 3, 2, 9],
    capacity: 128,
  },
  {
    title: "a decoding batch of five with rings, one of them new, one at position 4000",
    replay: true,
    rows: 7,
    heads: [4, 2],
    headDim: 16,
    window: 70,
    segments: decoding,
    rings: [5, 1, 2, 0, 4],
    capacity: 128,
  },
  {
    title: "one row at position 300 of a ring of 320, window 257",
    replay: true,
    rows: 1,
    heads: [3, 1],
    headDim: 20,
    window: 257,
    segments: segmentsOf([0, 1, 300]),
    rings: [1],
    capacity: 320,
  },
  {
    title: "one row of 26 heads that see all 600 positions of their ring",
    rows: 1,
    heads: [26, 2],
    headDim: 32,
    segments: segmentsOf([0, 1, 599]),
    rings: [1],
    capacity: 640,
  },
  {
    title: "30 rows at position 250, window 90",
    rows: 30,
    heads: [4, 2],
    headDim: 32,
    window: 90,
    segments: segmentsOf([0, 30, 250]),
    rings: [1],
  },
  {
    title: "window 1 with a ring",
    rows: 9,
    window: 1,
    segments: segmentsOf([0, 9, 60]),
    rings: [1],
  },
]

const sharp: Sized = { title: "scores up to hundreds", rows: 66, heads: [2, 2], window: 30, scale: 6 }
const sizedAll = [...lengths, ...shapes, ...segmented]
const large: Sized = {
  title: "2048 rows of 8 heads of 64 on 4 of keys, window 256",
  rows: 2048,
  heads: [8, 4],
  headDim: 64,
  window: 256,
}

// Weights rounded to bf16 are off by 2⁻⁹ of themselves, so y by 2⁻⁹ of the largest value: at most four times the largest y. In the
// gradient dy, p and ds rounded to bf16 are each off by 2⁻⁹ of a term, and terms cancel in the sums.
const forwardRounding = 2 ** -7
const backwardRounding = 2 ** -6

const caseOf = (shape: Sized, inputs: object, precision: string, rounding: number): OpCase => ({
  title: precision === "f32" ? shape.title : `bf16: ${shape.title}`,
  inputs: { ...inputs },
  attrs: { ...sizes(shape, precision) },
  ...(precision === "bf16" && { rtol: rounding }),
  ...(shape.replay && { replay: true }),
})

const forward = (precision: string, cases: readonly OpCase[]): OpSpec => ({
  op: slidingAttention,
  reference,
  differentiable: precision === "f32" ? ["qkv"] : [], // rounding has no derivative
  bf16: [{ inputs: ["qkv"] }],
  work: workOf,
  cases,
})
const forwardCase = (shape: Sized, precision: string) =>
  caseOf(shape, inputsOf(shape, precision), precision, forwardRounding)

const backward = (precision: string): OpSpec => ({
  op: slidingAttentionGrad,
  reference: gradReference,
  differentiable: [],
  bf16: [{ inputs: ["dy", "qkv", "y"] }],
  work: (inputs, attrs) => 3 * workOf(inputs, attrs),
  cases: sizedAll.map((shape) => caseOf(shape, gradInputs(shape, precision), precision, backwardRounding)),
})

export const specs: OpSpec[] = [
  forward("f32", [
    ...sizedAll.map((shape) => forwardCase(shape, "f32")),
    // Scores of hundreds keep 1e-7 of themselves: weights are off by a few 1e-5.
    { ...forwardCase(sharp, "f32"), rtol: 1e-4 },
    { ...forwardCase(large, "f32"), slow: true, bench: true },
  ]),
  forward(
    "bf16",
    sizedAll.map((shape) => forwardCase(shape, "bf16")),
  ),
  backward("f32"),
  backward("bf16"),
]
