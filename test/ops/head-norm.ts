import { gatedHeadNorm } from "../../lib/ops/head-norm.ts"
import { normal, type OpCase, type OpSpec, type Tensor64, uniform } from "./spec.ts"

type Given = Record<"x" | "gate" | "weight", Tensor64>

function reference({ x, gate, weight }: Given, { eps }: { eps: number }) {
  const value = weight.data.length
  const rstd = Float64Array.from({ length: x.data.length / value }, (_, head) => {
    const own = x.data.subarray(head * value, (head + 1) * value)
    return 1 / Math.sqrt(own.reduce((all, element) => all + element * element, 0) / value + eps)
  })
  const silu = (v: number) => v / (1 + Math.exp(-v))
  const y = x.data.map((v, i) => v * rstd[Math.floor(i / value)]! * weight.data[i % value]! * silu(gate.data[i]!))
  return { y, rstd }
}

const sizes = [
  [1, 1, 2],
  [1, 1, 7],
  [3, 2, 5],
  [2, 8, 16],
  [33, 3, 17],
  [40, 2, 64],
  [65, 1, 129],
  [2, 2, 384],
  [3, 1, 1024],
] as const
const cases: OpCase[] = sizes.map(([rows, heads, value], i) => ({
  title: `${rows} rows of ${heads} heads of ${value}`,
  inputs: {
    x: normal([rows, heads * value], i),
    gate: normal([rows, heads * value], 20 + i, 3),
    weight: uniform([value], 40 + i, 0.5, 1.5),
  },
  ...(i % 2 === 1 && { attrs: { eps: 1e-3 } }),
}))
const extremes: OpCase = {
  title: "a head of zeros, and gates far out",
  inputs: {
    x: { ...normal([2, 8], 1), data: Float64Array.of(0, 0, 0, 0, 1, 2, 3, 4, 0, 1, 0, 0, 1e3, 1e-3, 0, 0) },
    gate: uniform([2, 8], 2, -120, 120),
    weight: normal([4], 3),
  },
}

// Normalised to ±1 whatever it is: its gradient is nothing but the rounding of a difference.
const single: OpCase = {
  title: "heads of one column",
  inputs: { x: normal([3, 2], 1), gate: normal([3, 2], 2), weight: normal([1], 3) },
}

export const specs: OpSpec[] = [
  {
    op: gatedHeadNorm,
    reference,
    differentiable: ["x", "gate", "weight"],
    cases: [
      ...cases,
      {
        title: "2048 rows of 4 heads of 384",
        inputs: { x: normal([2048, 1536], 1), gate: normal([2048, 1536], 2), weight: normal([384], 3) },
        slow: true,
        bench: true,
      },
    ],
  },
  { op: gatedHeadNorm, reference, differentiable: ["gate", "weight"], cases: [extremes, single] },
]
