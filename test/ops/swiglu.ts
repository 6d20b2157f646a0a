import { swiglu } from "../../lib/ops/swiglu.ts"
import { normal, type OpCase, type OpSpec, type Tensor64, values } from "./spec.ts"

type Given = Record<"gate" | "up", Tensor64>
const silu = (v: number) => v / (1 + Math.exp(-v))

const reference = ({ gate, up }: Given) => ({ y: gate.data.map((value, i) => silu(value) * up.data[i]!) })

// One element, tails shorter than any vector, and whole blocks of 4096 with one beyond.
const shapes = [
  [1, 1],
  [3, 5],
  [2, 8],
  [7, 33],
  [16, 256],
  [17, 241],
  [9, 1001],
] as const
const cases: OpCase[] = shapes.map(([rows, inner], i) => ({
  title: `${rows} rows of ${inner}`,
  inputs: { gate: normal([rows, inner], i, 2), up: normal([rows, inner], 50 + i) },
}))

export const specs: OpSpec[] = [
  { op: swiglu, reference, differentiable: ["gate", "up"], cases },
  {
    op: swiglu,
    reference,
    differentiable: [],
    cases: [
      {
        title: "gates far from zero",
        inputs: { gate: values("f32", [2, 3], [-1e6, -90, -0, 30, 88, 1e6]), up: normal([2, 3], 1) },
      },
      {
        title: "2048 rows of 4096",
        inputs: { gate: normal([2048, 4096], 1), up: normal([2048, 4096], 2) },
        slow: true,
        bench: true,
      },
    ],
  },
]
