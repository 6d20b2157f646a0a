import { causalConv } from "../../lib/ops/causal-conv.ts"
import { normal, type OpCase, type OpSpec, segmentLine, segmentsOf, type Tensor64 } from "./spec.ts"

type Inputs = Record<"x" | "weight" | "segments", Tensor64> & Partial<Record<"bias" | "initial" | "carried", Tensor64>>

/** One channel and one segment at a time, on the tail and the rows laid end to end. */
function reference(inputs: Inputs, { silu }: { silu: boolean }): Record<string, Float64Array> {
  const { x, weight, bias, segments, initial, carried } = inputs
  const [inner, , width] = weight.shape as [number, 1, number]
  const tail = width - 1
  const y = new Float64Array(x.data.length)
  const start = new Float64Array(segments.shape[0]! * inner * tail)
  const final = start.slice()
  const slots = carried?.data.slice()
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end, , from, to] = segmentLine(segments, s)
    if (begin === end) continue
    for (let d = 0; d < inner; d++) {
      const before = initial
        ? initial.data.subarray((s * inner + d) * tail)
        : carried && from > 0
          ? carried.data.subarray((from * inner + d) * tail)
          : new Float64Array(tail)
      const sequence = [...before.slice(0, tail)]
      start.set(sequence, (s * inner + d) * tail)
      for (let t = begin; t < end; t++) sequence.push(x.data[t * inner + d]!)
      for (let t = begin; t < end; t++) {
        let sum = bias?.data[d] ?? 0
        for (let k = 0; k < width; k++) sum += weight.data[d * width + k]! * sequence[t - begin + k]!
        y[t * inner + d] = silu ? sum / (1 + Math.exp(-sum)) : sum
      }
      const last = sequence.slice(-tail)
      final.set(last, (s * inner + d) * tail)
      if (slots && to > 0) slots.set(last, (to * inner + d) * tail)
    }
  }
  return { y, final, start, ...(slots && { carried: slots }) }
}

function full(rows: number, inner: number, width: number, segments = segmentsOf([0, rows])): Inputs {
  return {
    x: normal([rows, inner], 1),
    weight: normal([inner, 1, width], 2, 0.7),
    bias: normal([inner], 3),
    segments,
    initial: normal([segments.shape[0]!, inner, width - 1], 4),
  }
}

const without = (inputs: Inputs, ...keys: readonly string[]) =>
  Object.fromEntries(Object.entries(inputs).filter(([key]) => !keys.includes(key)))

const spread = segmentsOf([2, 35], [35, 35], [35, 36], [36, 38], [40, 77])
const carrying = segmentsOf([0, 30, 7, 1, 2], [30, 31, 0, 0, 3], [33, 35, 100, 4, 4], [36, 41, 0, 0, 0])

const cases: OpCase[] = [
  ...[1, 2, 3, 4, 31, 32, 33, 67].map((rows) => ({ title: `${rows} rows of 19 channels`, inputs: full(rows, 19, 4) })),
  ...[2, 3].flatMap((width) =>
    [1, 2, 37].map((rows) => ({
      title: `width ${width}, ${rows} rows`,
      inputs: full(rows, 21, width),
    })),
  ),
  { title: "one channel", inputs: full(9, 1, 4) },
  { title: "300 channels: several pieces of a row", inputs: full(7, 300, 4) },
  ...[2, 3, 4].map((width) => ({
    title: `width ${width}, five segments, one without rows, and spare rows`,
    inputs: full(80, 35, width, spread),
  })),
  { title: "no row in any segment", inputs: full(5, 18, 4, segmentsOf([0, 0], [5, 5])) },
  ...["bias", "initial"].map((key) => ({ title: `no ${key}`, inputs: without(full(35, 20, 4), key) })),
  { title: "neither bias nor SiLU", inputs: without(full(35, 20, 3), "bias", "initial"), attrs: { silu: false } },
  ...[2, 4].map((width) => ({
    title: `width ${width}, tails carried from slot to slot`,
    inputs: { ...without(full(43, 21, width, carrying), "initial"), carried: normal([6, 21, width - 1], 5) },
  })),
  {
    title: "initial tails come before carried ones",
    inputs: { ...full(43, 21, 4, carrying), carried: normal([6, 21, 3], 6) },
  },
  { title: "128 rows of 512 channels", inputs: full(128, 512, 4), bench: true, slow: true },
]

export const specs: OpSpec[] = [
  {
    op: causalConv,
    reference,
    differentiable: ["x", "weight", "bias", "initial"],
    cotangents: ["y", "final"],
    work: ({ x, weight }) => x.data.length * weight.shape[2],
    cases,
  },
]
