import { accumulate, add, exp, multiply, negExp, scale, scaleBy, silu } from "../../lib/ops/elementwise.ts"
import { normal, type OpSpec, type Tensor64, values } from "./spec.ts"

type Given = Record<"a" | "b" | "x" | "by" | "total", Tensor64>
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x))

// One element, a tail shorter than any vector, whole blocks of 4096 and one beyond, three dimensions.
const shapes = [[], [1], [2], [15], [16], [17], [4096], [4097], [3, 7], [2, 3, 5], [8191]]
const binary = shapes.map((shape, i) => ({
  title: `shape [${shape}]`,
  inputs: { a: normal(shape, i), b: normal(shape, 100 + i) },
}))
const unary = shapes.map((shape, i) => ({ title: `shape [${shape}]`, inputs: { x: normal(shape, i, 2) } }))

export const specs: OpSpec[] = [
  {
    op: add,
    reference: ({ a, b }: Given) => ({ y: a.data.map((value, i) => value + b.data[i]!) }),
    differentiable: ["a", "b"],
    cases: binary,
  },
  {
    op: multiply,
    reference: ({ a, b }: Given) => ({ y: a.data.map((value, i) => value * b.data[i]!) }),
    differentiable: ["a", "b"],
    cases: binary,
  },
  {
    op: scale,
    reference: ({ x }: Given, { factor }: { factor: number }) => ({ y: x.data.map((value) => value * factor) }),
    differentiable: ["x"],
    cases: [
      ...unary.map((given) => ({ ...given, attrs: { factor: -0.375 } })),
      { title: "the factor is 1 unless given", inputs: { x: normal([9], 1) } },
    ],
  },
  {
    op: scaleBy,
    reference: ({ x, by }: Given) => ({ y: x.data.map((value) => value * by.data[0]!) }),
    differentiable: ["x", "by"],
    cases: unary.map(({ title, inputs }, i) => ({ title, inputs: { ...inputs, by: normal([], 50 + i) } })),
  },
  {
    op: exp,
    reference: ({ x }: Given) => ({ y: x.data.map(Math.exp) }),
    differentiable: ["x"],
    cases: unary,
  },
  {
    op: exp,
    reference: ({ x }: Given) => ({ y: x.data.map(Math.exp) }),
    differentiable: [],
    cases: [
      {
        title: "infinities, NaN and what f32 cannot hold",
        inputs: { x: values("f32", [5], [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN, -1000, 0]) },
      },
    ],
  },
  {
    op: negExp,
    reference: ({ x }: Given) => ({ y: x.data.map((value) => -Math.exp(value)) }),
    differentiable: ["x"],
    cases: unary,
  },
  {
    op: silu,
    reference: ({ x }: Given) => ({ y: x.data.map((value) => value * sigmoid(value)) }),
    differentiable: ["x"],
    cases: [...unary, { title: "far from zero", inputs: { x: values("f32", [6], [-90, -30, -0, 30, 88, 1e6]) } }],
  },
  {
    op: accumulate,
    reference: ({ total, x }: Given) => ({ total: total.data.map((value, i) => value + x.data[i]!) }),
    differentiable: [],
    cases: unary.map(({ title, inputs }, i) => ({
      title,
      inputs: { total: normal(inputs.x.shape, 200 + i), x: inputs.x },
    })),
  },
]
