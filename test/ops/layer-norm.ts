import { layerNorm, layerNormGrad } from "../../lib/ops/norm.ts"
import { normal, type OpCase, type OpSpec, type Tensor64, uniform, values } from "./spec.ts"

type Given = { x: Tensor64; weight: Tensor64; bias?: Tensor64; residual?: Tensor64 }

/** Of each row: its mean, and 1/√(variance + eps). */
function statistics(data: Float64Array, rows: number, eps: number) {
  const dim = data.length / rows
  const mean = new Float64Array(rows)
  const rstd = new Float64Array(rows)
  for (let row = 0; row < rows; row++) {
    const line = data.subarray(row * dim, (row + 1) * dim)
    const center = line.reduce((all, value) => all + value, 0) / dim
    mean[row] = center
    rstd[row] = 1 / Math.sqrt(line.reduce((all, value) => all + (value - center) ** 2, 0) / dim + eps)
  }
  return { mean, rstd }
}

function reference({ x, weight, bias, residual }: Given, { eps }: { eps: number }) {
  const [rows, dim] = x.shape as [number, number]
  const sum = x.data.map((value, i) => value + (residual?.data[i] ?? 0))
  const { mean, rstd } = statistics(sum, rows, eps)
  const y = sum.map((value, i) => {
    const row = Math.floor(i / dim)
    return (value - mean[row]!) * rstd[row]! * weight.data[i % dim]! + (bias?.data[i % dim] ?? 0)
  })
  return { y, sum, mean, rstd }
}

/** dx = rstd·(g − mean(g) − x̂·mean(g·x̂)) + dsum; the mean is that of x, not its rounded copy. */
function gradReference({ dy, dsum, x, weight }: Record<"dy" | "dsum" | "x" | "weight", Tensor64>) {
  const [rows, dim] = x.shape as [number, number]
  const { mean, rstd } = statistics(x.data, rows, eps)
  const [dx, dweight, dbias] = [new Float64Array(rows * dim), new Float64Array(dim), new Float64Array(dim)]
  for (let row = 0; row < rows; row++) {
    const at = (i: number) => row * dim + i
    const columns = Array.from({ length: dim }, (_, i) => i)
    const through = columns.map((i) => dy.data[at(i)]! * weight.data[i]!)
    const hat = columns.map((i) => (x.data[at(i)]! - mean[row]!) * rstd[row]!)
    const level = through.reduce((all, value) => all + value, 0) / dim
    const slope = through.reduce((all, value, i) => all + value * hat[i]!, 0) / dim
    for (const i of columns) {
      dx[at(i)] = rstd[row]! * (through[i]! - level - hat[i]! * slope) + dsum.data[at(i)]!
      dweight[i]! += dy.data[at(i)]! * hat[i]!
      dbias[i]! += dy.data[at(i)]!
    }
  }
  return { dx, dweight, dbias }
}

const sizes = [
  [1, 2],
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
  const attrs = { eps: 1e-3 } // with two elements a row, the variance may be near 0
  return [
    { title: size, inputs: { x, weight }, attrs },
    { title: `${size} with bias`, inputs: { x, weight, bias }, attrs },
    { title: `${size} with residual`, inputs: { x, weight, residual }, attrs },
    { title: `${size} with both`, inputs: { x, weight, bias, residual }, attrs },
  ]
})
const wide: OpCase = {
  title: "2048 rows of 1536",
  inputs: { x: normal([2048, 1536], 1), weight: normal([1536], 2), residual: normal([2048, 1536], 3) },
  slow: true,
  bench: true,
}
// Wider than a GPU block keeps in registers, backward and forward; the second in single elements.
const broad = [4100, 8201].map(
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

/** Rows of deviation 1 around ±`mean`: f32 holds their mean only to 2⁻²⁴ of it, which would be seen in every result. */
function distant(rows: number, dim: number, mean: number): Tensor64 {
  const { data } = normal([rows, dim], dim)
  return values(
    "f32",
    [rows, dim],
    data.map((value, i) => value + (Math.floor(i / dim) % 2 === 0 ? mean : -mean)),
  )
}
const far = [
  { title: "a mean of 10⁴", x: distant(3, 77, 1e4) },
  { title: "a mean of 10⁵ in wide rows", x: distant(2, 1024, 1e5) },
  { title: "a mean of 10⁴ in rows wider than registers", x: distant(2, 8200, 1e4) },
]
const same: OpCase = {
  title: "rows of equal elements",
  inputs: {
    x: values(
      "f32",
      [3, 9],
      Array.from({ length: 27 }, (_, i) => [0, 1e4 + 1 / 3, -7][Math.floor(i / 9)]!),
    ),
    weight: normal([9], 2),
  },
}

const eps = 1e-5
const differentiable = ["x", "weight", "bias", "residual"]
// In a model x is the f32 stream, and y what the linears of a layer read.
const mixtures = [{ inputs: ["x"] }, { inputs: [], dtype: "bf16" }] as const

export const specs: OpSpec[] = [
  {
    op: layerNorm,
    reference,
    differentiable,
    bf16: mixtures,
    cotangents: ["y", "sum"],
    cases: [...cases, ...broad],
  },
  ...["y", "sum"].map(
    (key): OpSpec => ({
      op: layerNorm,
      reference,
      differentiable,
      bf16: mixtures,
      cotangents: [key],
      cases: cases.slice(-4).map((one) => ({ ...one, title: `${one.title}, gradient of ${key} alone` })),
    }),
  ),
  {
    op: layerNorm,
    reference,
    differentiable: [],
    bf16: [],
    cases: [
      ...far.map(({ title, x }) => ({ title, inputs: { x, weight: uniform([x.shape[1]!], 1, 0.5, 1.5) } })),
      same,
      wide,
    ],
  },
  {
    op: layerNorm,
    reference: (inputs: Given, attrs: { eps: number }) => ({ y: reference(inputs, attrs).y }),
    differentiable: ["x", "residual"],
    cases: cases.slice(-1).map((one) => ({ ...one, title: "only y is used" })),
  },
  {
    op: layerNormGrad,
    reference: gradReference,
    differentiable: [],
    bf16: [],
    cases: far.map(({ title, x }) => {
      const [rows, dim] = x.shape as [number, number]
      const { mean, rstd } = statistics(x.data, rows, eps)
      return {
        title,
        inputs: {
          dy: normal([rows, dim], 90),
          dsum: normal([rows, dim], 91),
          x,
          weight: uniform([dim], 92, 0.5, 1.5),
          mean: values("f32", [rows], mean),
          rstd: values("f32", [rows], rstd),
        },
      }
    }),
  },
]
