import { rope } from "../../lib/ops/rope.ts"
import { normal, type OpCase, type OpSpec, segmentLine, segmentsOf, type Tensor64, uniform } from "./spec.ts"

type Given = Record<"x" | "segments", Tensor64>
interface Attrs {
  headDim: number
  heads: number
  base: number
  rotary: number
  interleaved: boolean
  inverse: boolean
}

/** One pair of one head of one row at a time. */
function reference({ x, segments }: Given, { headDim, heads, base, rotary, interleaved, inverse }: Attrs) {
  const width = x.shape[1]!
  const turning = rotary === 0 ? headDim : rotary
  const y = new Float64Array(x.data.length)
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end, position] = segmentLine(segments, s)
    for (let row = begin; row < end; row++) {
      const line = y.subarray(row * width, (row + 1) * width)
      line.set(x.data.subarray(row * width, (row + 1) * width))
      for (let head = 0; head < heads; head++) {
        for (let i = 0; i < turning / 2; i++) {
          const angle = (position + row - begin) * base ** ((-2 * i) / turning) * (inverse ? -1 : 1)
          const first = head * headDim + (interleaved ? 2 * i : i)
          const second = interleaved ? first + 1 : first + turning / 2
          const [a, b] = [line[first]!, line[second]!]
          line[first] = a * Math.cos(angle) - b * Math.sin(angle)
          line[second] = b * Math.cos(angle) + a * Math.sin(angle)
        }
      }
    }
  }
  return { y }
}

/** A case of `rows` rows; `beyond` columns pass after the heads. */
function sized(rows: number, attrs: Partial<Attrs>, beyond = 0, segments = segmentsOf([0, rows])): OpCase {
  const { heads = 1, headDim = 64 } = attrs
  const words = Object.entries({ rows, ...attrs, ...(beyond > 0 && { beyond }) }).map(
    ([key, value]) => `${key} ${value}`,
  )
  return { title: words.join(", "), inputs: { x: normal([rows, heads * headDim + beyond], rows), segments }, attrs }
}

const spread = segmentsOf([1, 4], [4, 4, 9], [4, 5, 77], [7, 20, 1000])
const cases: OpCase[] = [
  sized(1, { headDim: 2 }),
  ...[false, true].flatMap((interleaved) => [
    sized(3, { headDim: 4, heads: 3, interleaved }),
    sized(5, { headDim: 32, heads: 4, rotary: 12, interleaved }, 7),
    sized(9, { headDim: 64, heads: 3, interleaved }, 64),
    sized(2, { headDim: 256, heads: 2, base: 500000, interleaved }),
    sized(6, { headDim: 5, heads: 3, rotary: 4, interleaved }, 2),
    sized(4, { headDim: 48, heads: 2, rotary: 32, interleaved, inverse: true }, 16),
  ]),
  { ...sized(23, { headDim: 34, heads: 2 }, 3, spread), title: "four segments, one without rows, and spare rows" },
  { ...sized(4, { headDim: 8 }, 0, segmentsOf([0, 0], [4, 4])), title: "no row in any segment" },
  { ...sized(512, { headDim: 64, heads: 24 }, 512), slow: true, bench: true },
]

// Sine and cosine may be off by 2⁻²², each times one element, and three roundings follow.
const exact = 6e-7
const far = (position: number, attrs: Partial<Attrs>, rtol: number): OpCase => ({
  title: `position ${position}, ${Object.entries(attrs)}`,
  inputs: { x: uniform([2, 512], position, -1, 1), segments: segmentsOf([0, 1, position], [1, 2, position - 1]) },
  attrs: { headDim: 128, heads: 4, ...attrs },
  rtol,
})
const last = 2 ** 31 - 2 // and one row: positions stay below 2³¹ − 1

export const specs: OpSpec[] = [
  { op: rope, reference, differentiable: ["x"], cases },
  {
    op: rope,
    reference,
    differentiable: [],
    cases: [
      far(1_000_000, {}, exact),
      far(1_000_003, { base: 500000, interleaved: true }, exact),
      far(33_554_435, { rotary: 96 }, exact),
      // Powers of two: f64 holds these angles exactly.
      far(last, { base: 65536, rotary: 8 }, exact),
      far(last, { base: 4, rotary: 4, interleaved: true, inverse: true }, exact),
      // The reference's own angle in f64 is off by up to 5e-7.
      far(last, { base: 10000 }, 1.6e-6),
      far(last, { base: 1.0001 }, 1.6e-6),
      far(last, { base: 1e300, headDim: 256, heads: 2 }, 1.6e-6),
    ],
  },
]
