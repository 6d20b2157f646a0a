import { linearAttention } from "../../lib/ops/linear-attention.ts"
import { normal, type OpCase, type OpSpec, segmentLine, segmentsOf, type Tensor64, uniform, values } from "./spec.ts"

type Inputs = Record<"q" | "k" | "v" | "segments", Tensor64> &
  Partial<Record<"g" | "initial" | "carried" | "tail", Tensor64>>
interface Attributes {
  readonly heads: number
  readonly scale: number
  readonly retention: boolean
}

const chunk = 16
const lines = chunk - 1

/** S ← diag(a)·S + kᵀ·v for one head; S is (key, value), the others are single rows. */
function advance(S: Float64Array, a: (n: number) => number, k: Float64Array, v: Float64Array): void {
  for (let n = 0; n < k.length; n++) {
    for (let d = 0; d < v.length; d++) S[n * v.length + d] = a(n) * S[n * v.length + d]! + k[n]! * v[d]!
  }
}

/** The recurrence row by row, one head and one segment at a time. */
function reference(inputs: Inputs, { heads, scale, retention }: Attributes): Record<string, Float64Array> {
  const { q, k, v, g, segments, initial, carried, tail } = inputs
  const [keys, all] = [k.shape[1]!, v.shape[1]!]
  const [key, value] = [keys / heads, all / heads]
  const [size, columns] = [key * value, tail?.shape[2] ?? 0]
  const y = new Float64Array(v.data.length)
  const final = new Float64Array(segments.shape[0]! * heads * size)
  const [slots, rest] = [carried?.data.slice(), tail?.data.slice()]
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end, position, from, to] = segmentLine(segments, s)
    if (begin === end) continue
    for (let h = 0; h < heads; h++) {
      const keyRow = (data: Float64Array, at: number) => data.subarray(at + h * key, at + (h + 1) * key)
      const valueRow = (data: Float64Array, at: number) => data.subarray(at + h * value, at + (h + 1) * value)
      const fixed = retention ? 1 - 2 ** (-5 - h) : 1
      const decay = (row: Float64Array | undefined) => (n: number) => (row ? Math.exp(row[n]!) : fixed)
      const own = (state: Tensor64, i: number) => state.data.slice((i * heads + h) * size, (i * heads + h + 1) * size)
      const S = initial ? own(initial, s) : carried && from > 0 ? own(carried, from) : new Float64Array(size)
      let start = S.slice()
      for (let i = 0; i < position % chunk && tail && from > 0; i++) {
        const at = (from * lines + i) * columns
        const gates = g && keyRow(tail.data, at + keys + all)
        advance(S, decay(gates), keyRow(tail.data, at), valueRow(tail.data, at + keys))
      }
      for (let t = begin; t < end; t++) {
        const row = valueRow(v.data, t * all)
        advance(S, decay(g && keyRow(g.data, t * keys)), keyRow(k.data, t * keys), row)
        const query = keyRow(q.data, t * keys)
        for (let d = 0; d < value; d++) {
          let sum = 0
          for (let n = 0; n < key; n++) sum += query[n]! * S[n * value + d]!
          y[t * all + h * value + d] = scale * sum
        }
        if ((position + t - begin + 1) % chunk === 0) start = S.slice()
      }
      final.set(S, (s * heads + h) * size)
      if (slots && to > 0) slots.set(start, (to * heads + h) * size)
    }
    if (rest && tail && to > 0) writeTail(rest, inputs, tail, [begin, end, position, from, to])
  }
  return { y, final, ...(slots && rest && { carried: slots, tail: rest }) }
}

/** The rows of the chunk that the segment's end is in, to its slot. */
function writeTail(to: Float64Array, { k, v, g }: Inputs, tail: Tensor64, line: readonly number[]): void {
  const [begin, end, position, from, slot] = line as [number, number, number, number, number]
  const columns = tail.shape[2]!
  const left = (position + end - begin) % chunk
  for (let i = 0; i < left; i++) {
    const row = end - left + i
    const own = [k, v, g].flatMap((x) => (x ? [...x.data.subarray(row * x.shape[1]!, (row + 1) * x.shape[1]!)] : []))
    const before = tail.data.subarray((from * lines + i) * columns, (from * lines + i + 1) * columns)
    to.set(row >= begin ? own : from > 0 ? before : new Float64Array(columns), (slot * lines + i) * columns)
  }
}

interface Shape {
  rows: number
  heads?: number
  key: number
  value: number
  segments?: Tensor64
}

/** Gated, with an initial state; decays between e⁻² and 1, most of them weak. */
export function full({ rows, heads = 1, key, value, segments = segmentsOf([0, rows]) }: Shape) {
  const g = uniform([rows, heads * key], 4, -1.2, 0)
  return {
    q: normal([rows, heads * key], 1),
    k: normal([rows, heads * key], 2),
    v: normal([rows, heads * value], 3),
    g: { ...g, data: g.data.map((x) => Math.fround(x ** 3)) },
    segments,
    initial: normal([segments.shape[0]!, heads, key, value], 5),
  }
}

export const without = (inputs: OpCase["inputs"], ...names: readonly string[]) =>
  Object.fromEntries(Object.entries(inputs).filter(([name]) => !names.includes(name)))

/** Log decays of 0, −50 and −10⁴ beside weak ones: what is weak must not be lost behind what is strong. */
export function strongDecays(rows: number, keys: number): Tensor64 {
  const kinds = [0, -50, -1e4, -0.01, -0.3, -1e-6, -2, 0]
  const pick = uniform([rows, keys], 77, 0, kinds.length)
  return values(
    "f32",
    [rows, keys],
    pick.data.map((x) => kinds[Math.floor(x)]!),
  )
}

/** Segments that begin at any place of a chunk, and spare rows between them. */
export const spread = segmentsOf([1, 3, 5], [3, 20, 16], [20, 20, 1], [22, 63, 1001], [63, 64, 15], [64, 85, 31])
const carrying = segmentsOf(
  [0, 17, 3, 1, 2],
  [17, 18, 32, 3, 3],
  [18, 20, 14, 4, 4],
  [20, 22, 21, 5, 5],
  [23, 58, 0, 0, 6],
  [58, 63, 40, 0, 7],
  [63, 65, 66, 1, 8],
)

function carried(inputs: OpCase["inputs"], slots: number, heads: number): OpCase["inputs"] {
  const { k, v, g } = inputs as Record<string, Tensor64>
  const columns = k!.shape[1]! + v!.shape[1]! + (g?.shape[1] ?? 0)
  const tail = normal([slots, lines, columns], 11)
  const gates = k!.shape[1]! + v!.shape[1]!
  return {
    ...without(inputs, "initial"),
    carried: normal([slots, heads, k!.shape[1]! / heads, v!.shape[1]! / heads], 10),
    tail: { ...tail, data: tail.data.map((x, i) => (i % columns < gates ? x : -Math.abs(x))) },
  }
}

/** Where g is absent: with a head's own decay, and with none. */
export const ungated: OpCase[] = [1, 3, 8].flatMap((heads) => {
  const inputs = without(full({ rows: 85, heads, key: 7, value: 5, segments: spread }), "g")
  return [
    { title: `retention of ${heads} heads`, inputs, attrs: { heads, scale: 0.3, retention: true } },
    { title: `no decay, ${heads} heads`, inputs, attrs: { heads, scale: 0.3 } },
  ]
})

const cases: OpCase[] = [
  ...[1, 2, 15, 16, 17, 31, 67].map((rows) => ({
    title: `${rows} rows`,
    inputs: full({ rows, key: 7, value: 9 }),
    attrs: { scale: 0.4 },
  })),
  ...[
    [1, 1],
    [1, 64],
    [7, 16],
    [16, 7],
    [24, 24],
    [64, 64],
    [17, 130],
    [33, 65],
    [256, 40],
    [3, 512],
  ].map(([key, value]) => ({
    title: `${key} keys and ${value} values`,
    inputs: full({ rows: 37, key: key!, value: value!, segments: segmentsOf([0, 37, 9]) }),
  })),
  ...[2, 3, 8].map((heads) => ({
    title: `${heads} heads, six segments, one without rows, and spare rows`,
    inputs: full({ rows: 87, heads, key: 6, value: 10, segments: spread }),
    attrs: { heads, scale: 0.25 },
  })),
  ...ungated,
  {
    title: "strong decays beside weak ones",
    inputs: { ...full({ rows: 50, heads: 2, key: 8, value: 4 }), g: strongDecays(50, 16) },
    attrs: { heads: 2 },
  },
  {
    title: "decays of −10⁴ in every row",
    inputs: { ...full({ rows: 20, key: 4, value: 4 }), g: uniform([20, 4], 6, -1e4, -1e4) },
  },
  {
    title: "no initial state",
    inputs: without(full({ rows: 40, key: 7, value: 9, segments: segmentsOf([2, 40, 5]) }), "initial"),
  },
  { title: "no row in any segment", inputs: full({ rows: 5, key: 3, value: 4, segments: segmentsOf([0, 0], [5, 5]) }) },
  {
    title: "twenty segments of one row",
    inputs: full({
      rows: 20,
      key: 5,
      value: 6,
      segments: segmentsOf(...Array.from({ length: 20 }, (_, i) => [i, i + 1, 3 * i] as const)),
    }),
  },
  {
    title: "states and tails carried from slot to slot",
    inputs: carried(full({ rows: 65, heads: 2, key: 9, value: 20, segments: carrying }), 9, 2),
    attrs: { heads: 2, scale: 0.5 },
  },
  {
    title: "states and tails carried, retention",
    inputs: carried(without(full({ rows: 65, heads: 3, key: 4, value: 7, segments: carrying }), "g"), 9, 3),
    attrs: { heads: 3, retention: true },
  },
  {
    title: "256 keys and 512 values",
    inputs: full({ rows: 18, key: 256, value: 512, segments: segmentsOf([0, 18, 10]) }),
    slow: true,
  },
  {
    title: "four heads of GLA in SAMBA's size",
    inputs: full({ rows: 512, heads: 4, key: 192, value: 384 }),
    attrs: { heads: 4, scale: 192 ** -0.5 },
    slow: true,
    bench: true,
  },
]

export const specs: OpSpec[] = [
  {
    op: linearAttention,
    reference,
    differentiable: ["q", "k", "v", "g", "initial"],
    cotangents: ["y", "final"],
    work: ({ k, v, initial, carried }) =>
      2 * k.shape[0] * v.shape[1] * (initial ?? carried ?? { shape: [0, 0, k.shape[1]] }).shape[2],
    cases,
  },
]
