import { linearAttentionGrad } from "../../lib/ops/linear-attention.ts"
import { full as forward, spread, strongDecays, ungated, without } from "./linear-attention.ts"
import { normal, type OpCase, type OpSpec, segmentLine, segmentsOf, type Tensor64 } from "./spec.ts"

type Inputs = Record<"q" | "k" | "v" | "segments" | "saved", Tensor64> &
  Partial<Record<"dy" | "dfinal" | "g", Tensor64>>
interface Attributes {
  readonly heads: number
  readonly scale: number
  readonly retention: boolean
}

const chunk = 16
const saveRows = 64

/**
 * Where a segment's rows begin with a saved state, whatever that state is: its first row, and the first chunk that begins in each
 * further 64 rows. The number of the saved state by row.
 */
function savesOf(rows: number, position: number): Map<number, number> {
  const saves = new Map([[0, 0]])
  for (let row = 1; row < rows; row++) {
    const save = Math.floor(row / saveRows)
    if ((position + row) % chunk === 0 && save > 0 && ![...saves.values()].includes(save)) saves.set(row, save)
  }
  return saves
}

/** The equations of lib/ops/linear-attention.ts, row by row, one head of one segment at a time. */
function reference(inputs: Inputs, { heads, scale, retention }: Attributes): Record<string, Float64Array> {
  const { dy, dfinal, q, k, v, g, segments, saved } = inputs
  const [keys, all] = [k.shape[1]!, v.shape[1]!]
  const [key, value] = [keys / heads, all / heads]
  const size = key * value
  const [dq, dk, dg] = [q, q, q].map(({ data }) => new Float64Array(data.length)) as [
    Float64Array,
    Float64Array,
    Float64Array,
  ]
  const dv = new Float64Array(v.data.length)
  const dinitial = new Float64Array(segments.shape[0]! * heads * size)
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end, position] = segmentLine(segments, s)
    for (let h = 0; h < heads && begin < end; h++) {
      const decay = (t: number, n: number) =>
        g ? Math.exp(g.data[t * keys + h * key + n]!) : retention ? 1 - 2 ** (-5 - h) : 1
      const saves = savesOf(end - begin, position)
      const before: Float64Array[] = []
      const after: Float64Array[] = []
      for (let t = begin; t < end; t++) {
        const save = saves.get(t - begin)
        const at = save === undefined ? 0 : ((Math.floor(begin / saveRows) + s + save) * heads + h) * size
        const S = save === undefined ? after.at(-1)! : saved.data.slice(at, at + size)
        before.push(S)
        after.push(
          S.map((x, i) => {
            const [n, d] = [Math.floor(i / value), i % value]
            return decay(t, n) * x + k.data[t * keys + h * key + n]! * v.data[t * all + h * value + d]!
          }),
        )
      }
      const dS = dinitial.subarray((s * heads + h) * size, (s * heads + h + 1) * size)
      if (dfinal) dS.set(dfinal.data.subarray((s * heads + h) * size, (s * heads + h + 1) * size))
      for (let t = end - 1; t >= begin; t--) {
        for (let n = 0; n < key; n++) {
          const a = t * keys + h * key + n
          for (let d = 0; d < value; d++) {
            const [b, i] = [t * all + h * value + d, n * value + d]
            const out = scale * (dy?.data[b] ?? 0)
            dq[a]! += out * after[t - begin]![i]!
            dS[i]! += out * q.data[a]!
            dk[a]! += v.data[b]! * dS[i]!
            dv[b]! += k.data[a]! * dS[i]!
            dS[i]! *= decay(t, n)
            dg[a]! += before[t - begin]![i]! * dS[i]!
          }
        }
      }
    }
  }
  return { dq, dk, dv, dinitial, ...(g && { dg }) }
}

/** The saved states are no result of a forward pass, so that a state from the wrong place is seen. */
function full(shape: Parameters<typeof forward>[0]): OpCase["inputs"] {
  const { rows, heads = 1, key, value } = shape
  const { initial, ...inputs } = forward(shape)
  return {
    dy: normal([rows, heads * value], 21),
    dfinal: normal([...initial.shape], 22),
    ...inputs,
    saved: normal([Math.ceil(rows / saveRows) + inputs.segments.shape[0]!, heads, key, value], 23),
  }
}

const cases: OpCase[] = [
  ...[1, 2, 15, 16, 17, 47, 63, 64, 65, 129].map((rows) => ({
    title: `${rows} rows`,
    inputs: full({ rows, key: 5, value: 6 }),
    attrs: { scale: 0.4 },
  })),
  ...[1, 15, 16].map((position) => ({
    title: `150 rows from position ${position}`,
    inputs: full({ rows: 150, key: 3, value: 4, segments: segmentsOf([0, 150, position]) }),
  })),
  ...[
    [1, 1],
    [1, 64],
    [16, 7],
    [24, 66],
    [64, 24],
    [35, 33],
    [256, 20],
    [3, 512],
  ].map(([key, value]) => ({
    title: `${key} keys and ${value} values`,
    inputs: full({ rows: 21, key: key!, value: value!, segments: segmentsOf([0, 21, 9]) }),
  })),
  {
    title: "3 heads, six segments, one without rows, and spare rows",
    inputs: full({ rows: 87, heads: 3, key: 6, value: 10, segments: spread }),
    attrs: { heads: 3, scale: 0.25 },
  },
  ...ungated.map(({ title, attrs }) => ({
    title,
    inputs: without(full({ rows: 85, heads: Number(attrs!.heads), key: 7, value: 5, segments: spread }), "g"),
    attrs: attrs!,
  })),
  {
    title: "strong decays beside weak ones",
    inputs: { ...full({ rows: 50, heads: 2, key: 8, value: 4 }), g: strongDecays(50, 16) },
    attrs: { heads: 2 },
  },
  { title: "no row in any segment", inputs: full({ rows: 5, key: 3, value: 4, segments: segmentsOf([0, 0], [5, 5]) }) },
  ...["dy", "dfinal"].map((name) => ({
    title: `no ${name}`,
    inputs: without(full({ rows: 40, key: 9, value: 8, segments: segmentsOf([0, 37, 5]) }), name),
  })),
]

export const specs: OpSpec[] = [
  {
    op: linearAttentionGrad,
    reference,
    differentiable: [],
    work: ({ k, v, saved }) => 5 * k.shape[0] * v.shape[1] * saved.shape[2],
    cases,
  },
]
