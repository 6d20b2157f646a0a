import { broadcast, broadcastLike, sum, sumRows, sumSquares } from "../../lib/ops/reduce.ts"
import { normal, type OpSpec, type Tensor64, uniform, values } from "./spec.ts"

const add = (a: number, b: number) => a + b

const shapes = [[], [1], [2], [7], [8], [9], [4095], [4096], [4097], [3, 5], [2, 3, 4], [13_001]]
const cases = shapes.map((shape, i) => ({ title: `shape [${shape}]`, inputs: { x: normal(shape, i) } }))
const cancelling = values(
  "f32",
  [9001],
  Array.from({ length: 9001 }, (_, i) => (i === 4500 ? 1 : i % 2 ? -1e7 : 1e7)),
)
const hard = [
  // A sum kept in f32 would be off by a tenth of a percent, or lose everything.
  { title: "a million values around 1", inputs: { x: uniform([1_000_003], 3, 0.5, 1.5) }, rtol: 2e-7, bench: true },
  { title: "large values that cancel", inputs: { x: cancelling }, rtol: 2e-7 },
]

export const specs: OpSpec[] = [
  {
    op: sum,
    reference: ({ x }: { x: Tensor64 }) => ({ y: Float64Array.of(x.data.reduce(add, 0)) }),
    differentiable: ["x"],
    cases,
  },
  {
    op: sum,
    reference: ({ x }: { x: Tensor64 }) => ({ y: Float64Array.of(x.data.reduce(add, 0)) }),
    differentiable: [],
    cases: hard,
  },
  {
    op: sumSquares,
    reference: ({ x }: { x: Tensor64 }) => ({ y: Float64Array.of(x.data.reduce((all, value) => all + value ** 2, 0)) }),
    differentiable: ["x"],
    cases,
  },
  {
    op: sumRows,
    reference: ({ x }: { x: Tensor64 }) => {
      const [rows, dim] = x.shape as [number, number]
      const y = new Float64Array(dim)
      for (let row = 0; row < rows; row++) for (let i = 0; i < dim; i++) y[i]! += x.data[row * dim + i]!
      return { y }
    },
    differentiable: [],
    cases: [
      [1, 1],
      [2, 7],
      [63, 17],
      [64, 16],
      [65, 257],
      [331, 255],
      [129, 512],
    ].map(([rows, dim], i) => ({
      title: `${rows} rows of ${dim}`,
      inputs: { x: normal([rows!, dim!], 20 + i) },
      rtol: 2e-7, // of f64 sums rounded once
    })),
  },
  {
    op: broadcast,
    reference: ({ x }: { x: Tensor64 }, { rows }: { rows: number }) => ({
      y: new Float64Array(rows).fill(x.data[0]!),
    }),
    differentiable: ["x"],
    cases: [1, 2, 17, 4097].map((rows) => ({
      title: `${rows} rows`,
      inputs: { x: normal([], rows) },
      attrs: { rows },
    })),
  },
  {
    op: broadcastLike,
    reference: ({ x, like }: { x: Tensor64; like: Tensor64 }) => ({ y: like.data.map(() => x.data[0]!) }),
    differentiable: ["x"],
    cases: [[], [5], [3, 1367]].map((shape) => ({
      title: `shape [${shape}]`,
      inputs: { x: normal([], 3), like: normal(shape, 4) },
    })),
  },
]
