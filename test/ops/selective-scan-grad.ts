import { selectiveScanGrad } from "../../lib/ops/selective-scan.ts"
import { stepSizes } from "./selective-scan.ts"
import { normal, type OpCase, type OpSpec, segmentLine, segmentsOf, type Tensor64, uniform } from "./spec.ts"

type Inputs = Record<"x" | "delta" | "A" | "B" | "C" | "segments" | "saved", Tensor64> &
  Partial<Record<"dy" | "dfinal" | "D" | "z" | "bias", Tensor64>>

const chunk = 64
const sigmoid = (v: number) => 1 / (1 + Math.exp(-v))

/** The states of channel d before and after each row of a segment; at every 64th row they are the saved ones, whatever those are. */
function statesOf({ x, B, A, saved }: Inputs, s: number, begin: number, end: number, d: number, step: Float64Array) {
  const [inner, state] = A.shape as [number, number]
  const band = Math.floor(d / ((inner * state) / B.shape[1]!)) * state
  const before: Float64Array[] = []
  const after: Float64Array[] = []
  for (let t = begin; t < end; t++) {
    const item = (Math.floor(begin / chunk) + s + (t - begin) / chunk) * inner + d
    const h = (t - begin) % chunk === 0 ? saved.data.subarray(item * state, (item + 1) * state) : after.at(-1)!
    before.push(h)
    after.push(
      h.map((value, n) => {
        const input = B.data[t * B.shape[1]! + band + n]! * x.data[t * inner + d]!
        return Math.exp(step[t]! * A.data[d * state + n]!) * value + step[t]! * input
      }),
    )
  }
  return { before, after, band }
}

/** The equations of lib/ops/selective-scan.ts, one channel of one segment at a time. */
function reference(inputs: Inputs, { softplus }: { softplus: boolean }): Record<string, Float64Array> {
  const { dy, dfinal, x, delta, A, B, C, D, z, bias, segments } = inputs
  const [inner, state] = A.shape as [number, number]
  const bands = B.shape[1]!
  const zeros = (tensor: Tensor64) => new Float64Array(tensor.data.length)
  const [dx, ddelta, dz, dA, dB, dC] = [zeros(x), zeros(x), zeros(x), zeros(A), zeros(B), zeros(C)]
  const [dD, dbias] = [new Float64Array(inner), new Float64Array(inner)]
  const dinitial = new Float64Array(segments.shape[0]! * inner * state)
  const raw = delta.data.map((value, i) => value + (bias?.data[i % inner] ?? 0))
  const bent = (v: number) => softplus && v <= 20
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end] = segmentLine(segments, s)
    for (let d = 0; d < inner && begin < end; d++) {
      const step = x.data.slice(0, end).map((_, t) => {
        const v = raw[t * inner + d]!
        return bent(v) ? Math.log1p(Math.exp(v)) : v
      })
      const { before, after, band } = statesOf(inputs, s, begin, end, d, step)
      const dh = dinitial.subarray((s * inner + d) * state, (s * inner + d + 1) * state)
      if (dfinal) dh.set(dfinal.data.subarray((s * inner + d) * state, (s * inner + d + 1) * state))
      for (let t = end - 1; t >= begin; t--) {
        const at = t * inner + d
        const [value, out, gate] = [x.data[at]!, dy?.data[at] ?? 0, z?.data[at] ?? 0]
        const dp = z ? out * gate * sigmoid(gate) : out
        let [p, sumB, sumA] = [(D?.data[d] ?? 0) * value, 0, 0]
        for (let n = 0; n < state; n++) {
          const [i, a] = [t * bands + band + n, A.data[d * state + n]!]
          const now = dh[n]! + C.data[i]! * dp
          p += C.data[i]! * after[t - begin]![n]!
          dB[i]! += now * step[t]! * value
          dC[i]! += dp * after[t - begin]![n]!
          dh[n] = now * Math.exp(step[t]! * a)
          const through = dh[n]! * before[t - begin]![n]!
          sumB += now * B.data[i]!
          sumA += through * a
          dA[d * state + n]! += through * step[t]!
        }
        dx[at] = (D?.data[d] ?? 0) * dp + step[t]! * sumB
        ddelta[at] = (value * sumB + sumA) * (bent(raw[at]!) ? sigmoid(raw[at]!) : 1)
        dz[at] = out * p * sigmoid(gate) * (1 + gate * (1 - sigmoid(gate)))
        dD[d]! += dp * value
        dbias[d]! += ddelta[at]!
      }
    }
  }
  return { dx, ddelta, dA, dB, dC, dD, dbias, dinitial, ...(z && { dz }) }
}

interface Shape {
  rows: number
  inner: number
  state: number
  groups?: number
  segments?: Tensor64
}

/** Everything optional present; the saved states are no result of a scan, so that a state from the wrong place is seen. */
function full({ rows, inner, state, groups = 1, segments = segmentsOf([0, rows]) }: Shape): Inputs {
  return {
    dy: normal([rows, inner], 1),
    dfinal: normal([segments.shape[0]!, inner, state], 2),
    x: normal([rows, inner], 3),
    delta: normal([rows, inner], 4),
    A: uniform([inner, state], 5, -4, -0.2),
    B: normal([rows, groups * state], 6),
    C: normal([rows, groups * state], 7),
    D: normal([inner], 8),
    z: normal([rows, inner], 9),
    bias: uniform([inner], 10, -2, 1),
    segments,
    saved: normal([Math.ceil(rows / chunk) + segments.shape[0]!, inner, state], 11),
  }
}

const without = (inputs: Inputs, ...keys: readonly string[]) =>
  Object.fromEntries(Object.entries(inputs).filter(([key]) => !keys.includes(key)))

const rowByRow = (count: number) => segmentsOf(...Array.from({ length: count }, (_, i) => [i, i + 1] as const))
const spread = segmentsOf([2, 67], [67, 67], [67, 80], [83, 212], [212, 212])

const cases: OpCase[] = [
  ...[1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 130].map((rows) => ({
    title: `${rows} rows of 5 channels`,
    inputs: full({ rows, inner: 5, state: 16 }),
  })),
  ...[1, 3, 4, 16, 17, 20, 32, 33, 64].map((state) => ({
    title: `state ${state}`,
    inputs: full({ rows: 70, inner: 17, state }),
  })),
  ...[1, 8, 33, 64, 100].map((inner) => ({
    title: `${inner} channels`,
    inputs: full({ rows: 21, inner, state: 16, segments: segmentsOf([1, 10], [10, 20]) }),
  })),
  { title: "2056 channels: large blocks", inputs: full({ rows: 9, inner: 2056, state: 9 }) },
  { title: "two groups of 40 channels", inputs: full({ rows: 66, inner: 80, state: 5, groups: 2 }) },
  { title: "three groups of 11 channels, state 32", inputs: full({ rows: 9, inner: 33, state: 32, groups: 3 }) },
  {
    title: "five segments, two without rows, and spare rows",
    inputs: full({ rows: 215, inner: 24, state: 16, segments: spread }),
  },
  {
    title: "ten segments of one row, 1032 channels: more segments than parts",
    inputs: full({ rows: 10, inner: 1032, state: 33, segments: rowByRow(10) }),
  },
  {
    title: "no row in any segment",
    inputs: full({ rows: 5, inner: 18, state: 16, segments: segmentsOf([0, 0], [5, 5]) }),
  },
  ...["dy", "dfinal", "D", "z", "bias"].map((key) => ({
    title: `no ${key}`,
    inputs: without(full({ rows: 67, inner: 20, state: 16 }), key),
  })),
  {
    title: "none of the optional inputs but dy",
    inputs: without(full({ rows: 67, inner: 20, state: 8 }), "dfinal", "D", "z", "bias"),
  },
  ...stepSizes(full),
]

export const specs: OpSpec[] = [
  {
    op: selectiveScanGrad,
    reference,
    differentiable: [],
    work: ({ x, A }) => x.data.length * A.shape[1],
    cases,
  },
]
