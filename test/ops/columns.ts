import { concat, gatherRows, split } from "../../lib/ops/columns.ts"
import { normal, type OpSpec, type Tensor64, values } from "./spec.ts"

/** Columns [from, to) of a matrix. */
function columns({ shape, data }: Tensor64, from: number, to: number): Float64Array {
  const [rows, width] = shape as [number, number]
  return Float64Array.from({ length: rows * (to - from) }, (_, i) => {
    const row = Math.floor(i / (to - from))
    return data[row * width + from + (i % (to - from))]!
  })
}

const sizes = [
  [1, 2, 1],
  [2, 7, 3],
  [15, 33, 32],
  [16, 32, 16],
  [17, 5, 1],
  [33, 4, 3],
] as const

export const specs: OpSpec[] = [
  {
    op: split,
    reference: ({ x }: { x: Tensor64 }, { first }: { first: number }) => ({
      a: columns(x, 0, first),
      b: columns(x, first, x.shape[1]!),
    }),
    differentiable: ["x"],
    cotangents: ["a", "b"],
    cases: sizes.map(([rows, width, first], i) => ({
      title: `${rows} rows of ${width} at ${first}`,
      inputs: { x: normal([rows, width], i) },
      attrs: { first },
      rtol: 0,
    })),
  },
  ...(["a", "b"] as const).map(
    (key): OpSpec => ({
      op: split,
      reference: ({ x }: { x: Tensor64 }, { first }: { first: number }) => {
        const sides = { a: columns(x, 0, first), b: columns(x, first, x.shape[1]!) }
        return { [key]: sides[key] }
      },
      differentiable: ["x"],
      cotangents: [key],
      cases: [{ title: `only ${key} is used`, inputs: { x: normal([19, 7], 9) }, attrs: { first: 3 }, rtol: 0 }],
    }),
  ),
  {
    op: concat,
    reference: ({ a, b }: { a?: Tensor64; b?: Tensor64 }, { first, second }: { first: number; second: number }) => {
      const rows = (a ?? b)!.shape[0]!
      const width = first + second
      const y = Float64Array.from({ length: rows * width }, (_, i) => {
        const [row, column] = [Math.floor(i / width), i % width]
        if (column < first) return a?.data[row * first + column] ?? 0
        return b?.data[row * second + column - first] ?? 0
      })
      return { y }
    },
    differentiable: ["a", "b"],
    cases: sizes.flatMap(([rows, width, first], i) => {
      const a = normal([rows, first], i)
      const b = normal([rows, width - first], 10 + i)
      const attrs = { first, second: width - first }
      const of = `${rows} rows of ${first} and ${width - first}`
      return [
        { title: `${of}`, inputs: { a, b }, attrs, rtol: 0 },
        { title: `${of}, left alone`, inputs: { a, b: undefined }, attrs, rtol: 0 },
        { title: `${of}, right alone`, inputs: { a: undefined, b }, attrs, rtol: 0 },
      ]
    }),
  },
  {
    op: gatherRows,
    reference: ({ x, index }: { x: Tensor64; index: Tensor64 }) => {
      const dim = x.shape[1]!
      const y = Float64Array.from({ length: index.data.length * dim }, (_, i) => {
        const row = index.data[Math.floor(i / dim)]!
        return row < 0 ? 0 : x.data[row * dim + (i % dim)]!
      })
      return { y }
    },
    differentiable: ["x"],
    cases: [
      { title: "one row", rows: 1, dim: 1, picks: [0] },
      { title: "rows in another order", rows: 5, dim: 7, picks: [4, 0, 2, 1, 3] },
      { title: "a row picked three times and others never", rows: 40, dim: 17, picks: [39, 16, 3, 16, 15, 16] },
      { title: "picks of nothing", rows: 3, dim: 16, picks: [-1, 2, -1] },
      { title: "more picks than rows", rows: 2, dim: 3, picks: Array.from({ length: 100 }, (_, i) => (i % 3) - 1) },
    ].map(({ title, rows, dim, picks }) => ({
      title,
      inputs: { x: normal([rows, dim], rows), index: values("i32", [picks.length], picks) },
    })),
  },
]
