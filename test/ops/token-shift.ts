import { tokenShift } from "../../lib/ops/token-shift.ts"
import { normal, type OpCase, type OpSpec, segmentLine, segmentsOf, type Tensor64 } from "./spec.ts"

type Given = Record<"x" | "segments", Tensor64> & { carried?: Tensor64 }

/** One row after the other: its left columns, and the right ones of what came before. */
function reference({ x, segments, carried }: Given): Record<string, Float64Array> {
  const dim = x.shape[1]!
  const kept = Math.ceil(dim / 2)
  const y = new Float64Array(x.data.length)
  const slots = carried?.data.slice()
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end, , from, to] = segmentLine(segments, s)
    if (begin === end) continue
    const half = dim - kept
    let before = carried && from > 0 ? carried.data.slice(from * half, (from + 1) * half) : new Float64Array(half)
    for (let row = begin; row < end; row++) {
      const line = x.data.slice(row * dim, (row + 1) * dim)
      y.set(line.slice(0, kept), row * dim)
      y.set(before, row * dim + kept)
      before = line.slice(kept)
    }
    if (slots && to > 0) slots.set(before, to * half)
  }
  return { y, ...(slots && { carried: slots }) }
}

const spread = segmentsOf([2, 35], [35, 35], [35, 36], [36, 38], [40, 77])
const carrying = segmentsOf(
  [0, 30, 7, 1, 2],
  [30, 31, 0, 0, 3],
  [31, 31, 0, 1, 1],
  [33, 35, 100, 4, 4],
  [36, 41, 0, 0, 0],
)

// Short segments in several blocks of rows, and lines that are not used before, between and after them.
const crowded = segmentsOf(
  ...Array.from({ length: 90 }, (_, i): [number, number] =>
    i % 3 === 0 || i > 80 ? [0, 0] : i % 4 === 0 ? [7, 7] : [i * 4 + 1, i * 4 + 4],
  ),
)

const sized = (rows: number, dim: number, segments = segmentsOf([0, rows])) => ({
  x: normal([rows, dim], rows + dim),
  segments,
})
const cases: OpCase[] = [
  ...[2, 3, 4, 5, 8, 16, 31, 64].map((dim) => ({ title: `3 rows of ${dim}`, inputs: sized(3, dim) })),
  ...[1, 2, 31, 32, 33].map((rows) => ({ title: `${rows} rows of 18`, inputs: sized(rows, 18) })),
  ...[6, 33, 256].map((dim) => ({
    title: `five segments, one without rows, and spare rows of ${dim}`,
    inputs: sized(80, dim, spread),
  })),
  { title: "many segments between lines that are not used", inputs: sized(330, 4, crowded) },
  { title: "no row in any segment", inputs: sized(5, 8, segmentsOf([0, 0], [5, 5])) },
  ...[2, 7, 64].map((dim) => ({
    title: `halves carried from slot to slot, dim ${dim}`,
    inputs: { ...sized(43, dim, carrying), carried: normal([6, Math.floor(dim / 2)], 5) },
  })),
]

export const specs: OpSpec[] = [{ op: tokenShift, reference, differentiable: ["x"], cases }]
