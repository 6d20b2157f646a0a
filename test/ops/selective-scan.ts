import { selectiveScan } from "../../lib/ops/selective-scan.ts"
import { normal, type OpCase, type OpSpec, segmentLine, segmentsOf, type Tensor64, uniform } from "./spec.ts"

type Inputs = Record<"x" | "delta" | "A" | "B" | "C" | "segments", Tensor64> &
  Partial<Record<"D" | "z" | "bias" | "initial" | "carried", Tensor64>>

const sigmoid = (v: number) => 1 / (1 + Math.exp(-v))

/** The recurrence as in the paper, one channel and one segment at a time. */
function reference(inputs: Inputs, { softplus }: { softplus: boolean }): Record<string, Float64Array> {
  const { x, delta, A, B, C, D, z, bias, segments, initial, carried } = inputs
  const [inner, state] = A.shape as [number, number]
  const bands = B.shape[1]!
  const y = new Float64Array(x.data.length)
  const final = new Float64Array(segments.shape[0]! * inner * state)
  const slots = carried?.data.slice()
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end, , from, to] = segmentLine(segments, s)
    if (begin === end) continue
    for (let d = 0; d < inner; d++) {
      const band = Math.floor(d / ((inner * state) / bands)) * state
      const start = initial
        ? initial.data.subarray((s * inner + d) * state)
        : carried && from > 0
          ? carried.data.subarray((from * inner + d) * state)
          : new Float64Array(state)
      const h = start.slice(0, state)
      for (let t = begin; t < end; t++) {
        const at = t * inner + d
        const raw = delta.data[at]! + (bias?.data[d] ?? 0)
        const step = !softplus || raw > 20 ? raw : Math.log1p(Math.exp(raw))
        let sum = (D?.data[d] ?? 0) * x.data[at]!
        for (let n = 0; n < state; n++) {
          h[n] = Math.exp(step * A.data[d * state + n]!) * h[n]! + step * B.data[t * bands + band + n]! * x.data[at]!
          sum += C.data[t * bands + band + n]! * h[n]!
        }
        y[at] = z ? sum * z.data[at]! * sigmoid(z.data[at]!) : sum
      }
      final.set(h, (s * inner + d) * state)
      if (slots && to > 0) slots.set(h, (to * inner + d) * state)
    }
  }
  return { y, final, ...(slots && { carried: slots }) }
}

interface Shape {
  rows: number
  inner: number
  state: number
  groups?: number
  segments?: Tensor64
}

/** Everything optional present; Δ between 0.05 and 4, and A from −4 to −0.2: memories of one to a hundred rows. */
function full({ rows, inner, state, groups = 1, segments = segmentsOf([0, rows]) }: Shape): Inputs {
  return {
    x: normal([rows, inner], 1),
    delta: normal([rows, inner], 2),
    A: uniform([inner, state], 3, -4, -0.2),
    B: normal([rows, groups * state], 4),
    C: normal([rows, groups * state], 5),
    D: normal([inner], 6),
    z: normal([rows, inner], 7),
    bias: uniform([inner], 8, -2, 1),
    segments,
    initial: normal([segments.shape[0]!, inner, state], 9),
  }
}

const without = (inputs: Inputs, ...keys: readonly string[]) =>
  Object.fromEntries(Object.entries(inputs).filter(([key]) => !keys.includes(key)))

const spread = segmentsOf([2, 67], [67, 67], [67, 80], [83, 212])
const long = segmentsOf([3, 40, 0, 0, 1], [41, 1090, 7, 2, 2], [1090, 1090])
const carrying = segmentsOf([0, 30, 7, 1, 2], [30, 31, 0, 0, 3], [33, 99, 100, 4, 4], [100, 105, 0, 0, 0])

/** How Δ comes from delta, for inputs made by `full`: for the scan and for its gradient. */
export function stepSizes(full: (shape: { rows: number; inner: number; state: number }) => OpCase["inputs"]): OpCase[] {
  return [
    {
      title: "no softplus",
      inputs: {
        ...full({ rows: 67, inner: 20, state: 16 }),
        delta: uniform([67, 20], 12, 0, 1),
        bias: uniform([20], 13, 0, 0.1),
      },
      attrs: { softplus: false },
    },
    {
      title: "delta on both sides of the threshold of softplus",
      inputs: {
        ...full({ rows: 40, inner: 16, state: 16 }),
        delta: uniform([40, 16], 14, -30, 25),
        A: uniform([16, 16], 15, -1, -1e-3),
      },
    },
  ]
}

const cases: OpCase[] = [
  ...[1, 2, 31, 32, 33, 63, 64, 65, 127, 129].map((rows) => ({
    title: `${rows} rows of 19 channels`,
    inputs: full({ rows, inner: 19, state: 16 }),
  })),
  ...[1, 2, 3, 15, 17, 32, 64].map((state) => ({
    title: `state ${state}`,
    inputs: full({ rows: 70, inner: 17, state }),
  })),
  ...[
    [1, 1],
    [3, 16],
    [16, 3],
    [130, 16],
    [16, 64],
  ].map(([inner, state]) => ({
    title: `${inner} channels of state ${state}`,
    inputs: full({ rows: 35, inner: inner!, state: state! }),
  })),
  { title: "one channel", inputs: full({ rows: 66, inner: 1, state: 4 }) },
  { title: "state 64, 100 channels, three stripes", inputs: full({ rows: 20, inner: 100, state: 64 }) },
  {
    title: "four segments, one without rows, and spare rows",
    inputs: full({ rows: 215, inner: 35, state: 16, segments: spread }),
  },
  {
    title: "1100 rows, most of them in one segment, states carried",
    inputs: {
      ...without(full({ rows: 1100, inner: 5, state: 16, segments: long }), "initial"),
      carried: normal([3, 5, 16], 16),
    },
  },
  {
    title: "twenty segments of one row",
    inputs: full({
      rows: 20,
      inner: 33,
      state: 16,
      segments: segmentsOf(...Array.from({ length: 20 }, (_, i) => [i, i + 1] as const)),
    }),
  },
  {
    title: "no row in any segment",
    inputs: full({ rows: 5, inner: 18, state: 16, segments: segmentsOf([0, 0], [5, 5]) }),
  },
  { title: "three groups of 11 channels", inputs: full({ rows: 70, inner: 33, state: 16, groups: 3 }) },
  { title: "a group for every channel", inputs: full({ rows: 9, inner: 8, state: 4, groups: 8 }) },
  {
    title: "two groups of 40 channels",
    inputs: full({ rows: 66, inner: 80, state: 5, groups: 2, segments: segmentsOf([0, 65]) }),
  },
  ...["D", "z", "bias", "initial"].map((key) => ({
    title: `no ${key}`,
    inputs: without(full({ rows: 67, inner: 20, state: 16 }), key),
  })),
  {
    title: "none of the optional inputs",
    inputs: without(full({ rows: 67, inner: 20, state: 8 }), "D", "z", "bias", "initial"),
  },
  ...stepSizes(full),
  {
    title: "states carried from slot to slot",
    inputs: {
      ...without(full({ rows: 107, inner: 21, state: 16, segments: carrying }), "initial"),
      carried: normal([6, 21, 16], 10),
    },
  },
  {
    title: "initial states come before carried ones",
    inputs: { ...full({ rows: 107, inner: 21, state: 3, segments: carrying }), carried: normal([6, 21, 3], 11) },
  },
  { title: "128 rows of 512 channels", inputs: full({ rows: 128, inner: 512, state: 16 }), bench: true, slow: true },
]

export const specs: OpSpec[] = [
  {
    op: selectiveScan,
    reference,
    differentiable: ["x", "delta", "A", "B", "C", "D", "z", "bias", "initial"],
    cotangents: ["y", "final"],
    work: ({ x, A }) => 4 * x.data.length * A.shape[1],
    cases,
  },
]
