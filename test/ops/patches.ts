import { fold, patchRows } from "../../lib/ops/patches.ts"
import { normal, type OpCase, type OpSpec, segmentLine, segmentsOf, type Tensor64 } from "./spec.ts"

interface Given {
  x?: Tensor64
  segments: Tensor64
  carried?: Tensor64
}

/** One row of one patch at a time. */
function reference({ x, segments, carried }: Given, { rows, patch }: { rows: number; patch: number }) {
  const width = (x ?? carried)!.shape[1]!
  const dim = width / patch
  const y = new Float64Array(rows * dim)
  const slots = carried?.data.slice()
  for (let s = 0; s < segments.shape[0]!; s++) {
    const [begin, end, position, from, to] = segmentLine(segments, s)
    if (begin === end) continue
    const source =
      position === 0 ? x!.data.subarray(s * width) : from > 0 ? carried?.data.subarray(from * width) : undefined
    const whole = source?.slice(0, width) ?? new Float64Array(width)
    for (let t = begin; t < end; t++) {
      const place = position + t - begin
      if (place > 0) y.set(whole.subarray((place - 1) * dim, place * dim), t * dim)
    }
    if (slots && to > 0) slots.set(whole, to * width)
  }
  return { y, ...(slots && { carried: slots }) }
}

/** `rows` rows in patches of `patch`, each with the row before its first. */
function begun(count: number, patch: number, dim: number, last = patch + 1): OpCase {
  const lines = Array.from({ length: count }, (_, s) => {
    const begin = s * (patch + 1)
    return [begin, begin + (s === count - 1 ? last : patch + 1)] as const
  })
  const rows = (count - 1) * (patch + 1) + last
  const inputs = { x: normal([count, patch * dim], count), segments: segmentsOf(...lines) }
  return {
    title: `patches: ${count}, of ${patch} by ${dim}, with ${last} rows in the last`,
    inputs,
    attrs: { rows, patch },
    rtol: 0,
  }
}

const mixed = segmentsOf(
  [1, 4, 0, 0, 2],
  [4, 4, 9],
  [5, 7, 2, 1, 3],
  [7, 8, 4, 4, 4],
  [8, 9, 1, 0, 5],
  [11, 12, 0, 0, 0],
)

export const specs: OpSpec[] = [
  {
    op: fold,
    reference: ({ x }: { x: Tensor64 }) => ({ y: x.data.slice() }),
    differentiable: ["x"],
    cases: [
      { title: "one row to one element each", inputs: { x: normal([1, 5], 1) }, attrs: { width: 1 }, rtol: 0 },
      { title: "8 rows of 3 to patches of 4", inputs: { x: normal([8, 3], 2) }, attrs: { width: 12 }, rtol: 0 },
      { title: "6 rows to 4", inputs: { x: normal([6, 10], 3) }, attrs: { width: 15 }, rtol: 0 },
      { title: "300,000 elements", inputs: { x: normal([300, 1000], 4) }, attrs: { width: 500 }, rtol: 0 },
    ],
  },
  {
    op: patchRows,
    reference,
    differentiable: ["x"],
    cases: [
      begun(1, 1, 1),
      begun(1, 4, 3, 1),
      begun(3, 4, 5, 2),
      begun(5, 8, 16, 4),
      begun(70, 2, 4),
      begun(7, 3, 130, 3),
      ...[3, 8].map((dim) => ({
        title: `patches begun and continued, dim ${dim}, with lines of no rows and spare rows`,
        inputs: { x: normal([6, 4 * dim], 1), segments: mixed, carried: normal([6, 4 * dim], 2) },
        attrs: { rows: 13, patch: 4 },
        rtol: 0,
      })),
      {
        title: "no row in any segment",
        inputs: { x: normal([2, 6], 3), segments: segmentsOf([0, 0], [3, 3]) },
        attrs: { rows: 3, patch: 2 },
        rtol: 0,
      },
      { ...begun(2048, 8, 512), title: "2048 patches of 8 by 512", slow: true, bench: true },
    ],
  },
  {
    op: patchRows,
    reference,
    differentiable: [], // without x
    cases: [
      {
        title: "one row of a patch begun before",
        inputs: { segments: segmentsOf([0, 1, 3, 2, 1]), carried: normal([3, 4 * 36], 2) },
        attrs: { rows: 1, patch: 4 },
        rtol: 0,
      },
    ],
  },
]
