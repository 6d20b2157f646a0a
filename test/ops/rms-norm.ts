import { rmsNorm } from "../../lib/ops/norm.ts"
import { normal, type OpCase, type OpSpec, type Tensor64, uniform } from "./spec.ts"

type Given = { x: Tensor64; weight?: Tensor64; bias?: Tensor64; residual?: Tensor64 }

function reference({ x, weight, bias, residual }: Given, { eps }: { eps: number }) {
  const [rows, dim] = x.shape as [number, number]
  const sum = x.data.map((value, i) => value + (residual?.data[i] ?? 0))
  const rstd = Float64Array.from({ length: rows }, (_, row) => {
    const line = sum.subarray(row * dim, (row + 1) * dim)
    return 1 / Math.sqrt(line.reduce((all, value) => all + value * value, 0) / dim + eps)
  })
  const y = sum.map(
    (value, i) => value * rstd[Math.floor(i / dim)]! * (weight?.data[i % dim] ?? 1) + (bias?.data[i % dim] ?? 0),
  )
  return { y, sum, rstd }
}

const sizes = [
  [1, 1],
  [1, 7],
  [2, 16],
  [3, 17],
  [31, 5],
  [32, 64],
  [33, 63],
  [67, 129],
] as const
const cases: OpCase[] = sizes.flatMap(([rows, dim], i) => {
  const x = normal([rows, dim], i)
  const weight = uniform([dim], 20 + i, 0.5, 1.5)
  const bias = normal([dim], 40 + i)
  const residual = normal([rows, dim], 60 + i)
  const size = `${rows} rows of ${dim}`
  return [
    { title: size, inputs: { x, weight } },
    { title: `${size} with bias`, inputs: { x, weight, bias } },
    { title: `${size} with residual`, inputs: { x, weight, residual } },
    { title: `${size} with both`, inputs: { x, weight, bias, residual }, attrs: { eps: 1e-3 } },
  ]
})
const wide: OpCase = {
  title: "2048 rows of 1536",
  inputs: { x: normal([2048, 1536], 1), weight: normal([1536], 2), residual: normal([2048, 1536], 3) },
  slow: true,
  bench: true,
}
// Wider than a GPU block keeps in registers, backward and forward.
const broad = [4097, 8200].map(
  (dim, i): OpCase => ({
    title: `3 rows of ${dim}`,
    inputs: {
      x: normal([3, dim], 70 + i),
      weight: normal([dim], 72 + i),
      bias: normal([dim], 74 + i),
      residual: normal([3, dim], 76 + i),
    },
  }),
)
const zero: OpCase = { title: "a row of zeros", inputs: { x: uniform([2, 9], 1, 0, 0), weight: normal([9], 2) } }
const bare: OpCase[] = [
  [33, 16],
  [5, 63],
  [2, 4097],
  [2, 8200],
].map(([rows = 1, dim = 1], i) => ({
  title: `${rows} rows of ${dim} without a weight`,
  inputs: {
    x: normal([rows, dim], 80 + i),
    ...(i % 2 === 1 && { bias: normal([dim], 84 + i), residual: normal([rows, dim], 88 + i) }),
  },
  attrs: { eps: 1e-6 },
}))
const differentiable = ["x", "weight", "bias", "residual"]
// In a model x is the f32 stream, and y what the linears of a layer read.
const mixtures = [{ inputs: ["x"] }, { inputs: [], dtype: "bf16" }] as const

export const specs: OpSpec[] = [
  {
    op: rmsNorm,
    reference,
    differentiable,
    bf16: mixtures,
    cotangents: ["y", "sum"],
    cases: [...cases, ...broad, ...bare, zero],
  },
  ...["y", "sum"].map(
    (key): OpSpec => ({
      op: rmsNorm,
      reference,
      differentiable,
      bf16: mixtures,
      cotangents: [key],
      cases: cases.slice(-4).map((one) => ({ ...one, title: `${one.title}, gradient of ${key} alone` })),
    }),
  ),
  { op: rmsNorm, reference, differentiable: [], cases: [wide] },
  {
    op: rmsNorm,
    reference: (inputs: Given, attrs: { eps: number }) => ({ y: reference(inputs, attrs).y }),
    differentiable: ["x", "residual"],
    cases: cases.slice(-1).map((one) => ({ ...one, title: "only y is used" })),
  },
]
