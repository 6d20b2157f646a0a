import { activationGrad, linear, linearInputGrad, linearWeightGrad } from "../../lib/ops/linear.ts"
import { device } from "../device.ts"
import { bf16, ints, normal, type OpCase, type OpSpec, type Tensor64, uniform, values } from "./spec.ts"

interface LinearInputs {
  x: Tensor64
  weight: Tensor64
  bias?: Tensor64
  residual?: Tensor64
  scales?: Tensor64
}
interface LinearAttrs {
  activation: string
  precision: string
}

/** The tensor as products in this precision see it. */
const rounded = (tensor: Tensor64, precision: string): Float64Array =>
  precision === "bf16" ? bf16(tensor).data : tensor.data

/** The precisions that the device multiplies in. */
export const precisions: readonly string[] = device === "cpu" ? ["f32", "bf16", "bf16x3"] : ["f32", "bf16"]

/** For bf16x3, which leaves at most 2⁻¹⁵ out of every product; sums, whose terms have either sign, lose less of their largest. */
export const splitRounding = 2 ** -15
export const roundingOf = (precision: string): Pick<OpCase, "rtol"> =>
  precision === "bf16x3" ? { rtol: splitRounding } : {}

const sigmoid = (v: number) => 1 / (1 + Math.exp(-v))
const density = (v: number) => Math.exp((-v * v) / 2) / Math.sqrt(2 * Math.PI)

/**
 * Φ(v) of the standard normal distribution, relatively to 1e-13 however far below 0.
 * @see Abramowitz & Stegun, 26.2.11 (series) and 26.2.14 (continued fraction)
 */
export function normalCdf(v: number): number {
  if (v > 0) return 1 - normalCdf(-v)
  if (v > -3) {
    let sum = 0
    for (let k = 0, term = v; Math.abs(term) > 1e-20; k++, term *= (v * v) / (2 * k + 1)) sum += term
    return 0.5 + density(v) * sum
  }
  let fraction = -v
  for (let k = 200; k >= 1; k--) fraction = -v + k / fraction
  return density(v) / fraction
}

/** What a linear applies, and its derivative. */
export const functions: Record<string, [value: (v: number) => number, derivative: (v: number) => number]> = {
  none: [(v) => v, () => 1],
  silu: [(v) => v * sigmoid(v), (v) => sigmoid(v) * (1 + v * (1 - sigmoid(v)))],
  softplus: [(v) => (v > 20 ? v : Math.log1p(Math.exp(v))), (v) => (v > 20 ? 1 : sigmoid(v))],
  gelu: [(v) => v * normalCdf(v), (v) => normalCdf(v) + v * density(v)],
}

/** C[m, n] = Σ_k a(m, k)·b(k, n) for m < rows, n < columns. */
function product(
  [rows, inner, columns]: readonly [number, number, number],
  a: (m: number, k: number) => number,
  b: (k: number, n: number) => number,
): Float64Array {
  return Float64Array.from({ length: rows * columns }, (_, i) => {
    const [m, n] = [Math.floor(i / columns), i % columns]
    let sum = 0
    for (let k = 0; k < inner; k++) sum += a(m, k) * b(k, n)
    return sum
  })
}

/** The nearest whole number, to even; NaN stays one. */
const nearest = (v: number) => (Math.abs(v % 1) === 0.5 ? 2 * Math.round(v / 2) : Math.round(v))

/** x as products with weights of 8 bits see it: each 32 of a row in multiples of their largest magnitude / 127, in f32. */
export function rounded8({ data, shape }: Tensor64): Float64Array {
  const columns = shape.at(-1)!
  const result = new Float64Array(data.length)
  for (let row = 0; row < data.length; row += columns)
    for (let first = row; first < row + columns; first += 32) {
      const group = data.subarray(first, Math.min(first + 32, row + columns))
      const top = group.reduce((most, v) => Math.max(most, Math.abs(v)), 0)
      const [scale, inverse] = [Math.fround(top / 127), top > 2 ** -100 ? Math.fround(127 / top) : 0]
      const finite = group.every(Number.isFinite)
      group.forEach((v, i) => {
        result[first + i] = finite ? scale * nearest(Math.fround(v * inverse)) : Number.NaN
      })
    }
  return result
}

/** What a weight of 8 bits stands for: q·s. */
export function scaled({ data, shape }: Tensor64, scales: Tensor64): Float64Array {
  const [columns, groups] = [shape[1]!, scales.shape[1]!]
  return data.map((q, i) => q * scales.data[Math.floor(i / columns) * groups + Math.floor((i % columns) / 32)]!)
}

/** A weight (out, in) of 8 bits, and its scales. */
export function eightBits(out: number, inner: number): { weight: Tensor64; scales: Tensor64 } {
  const weight = { ...ints([out, inner], 2, -127, 128), dtype: "i8" } as const
  return { weight, scales: bf16(uniform([out, Math.ceil(inner / 32)], 3, 0.001, 0.02)) }
}

function reference({ x, weight, bias, residual, scales }: LinearInputs, { activation, precision }: LinearAttrs) {
  const [rows, inner, out] = [x.shape[0]!, x.shape[1]!, weight.shape[0]!]
  const left = scales ? rounded8(x) : rounded(x, precision)
  const right = scales ? scaled(weight, scales) : rounded(weight, precision)
  const sums = product(
    [rows, inner, out],
    (m, k) => left[m * inner + k]!,
    (k, n) => right[n * inner + k]!,
  )
  const pre = sums.map((sum, i) => sum + (bias?.data[i % out] ?? 0))
  return { pre, y: pre.map((value, i) => functions[activation]![0](value) + (residual?.data[i] ?? 0)) }
}

/** One case of x (rows, in) times weight (out, in), with what else the layer takes. */
function sized(rows: number, inner: number, out: number, extras: readonly ("bias" | "residual" | "halves")[] = []) {
  const weight = normal([out, inner], 2, 1 / Math.sqrt(inner))
  return {
    x: normal([rows, inner], 1),
    weight: extras.includes("halves") ? bf16(weight) : weight,
    bias: extras.includes("bias") ? normal([out], 3) : undefined,
    residual: extras.includes("residual") ? normal([rows, out], 4) : undefined,
  }
}

// Around the register tiles (12 rows or 6, 32 columns or 16), strips of two heights (13 to 16 rows), row blocks (96) and step blocks (256).
const shapes = [
  { title: "one by one by one", inputs: sized(1, 1, 1) },
  { title: "2 rows, 3 in, 5 out", inputs: sized(2, 3, 5) },
  { title: "a decoding row", inputs: sized(1, 257, 131, ["bias"]) },
  { title: "5 rows, odd sizes", inputs: sized(5, 33, 17, ["bias", "residual"]) },
  { title: "7 rows", inputs: sized(7, 16, 16) },
  { title: "12 rows", inputs: sized(12, 24, 70) },
  { title: "14 rows", inputs: sized(14, 31, 100, ["bias"]) },
  { title: "25 rows", inputs: sized(25, 18, 50) },
  { title: "33 rows, one panel too many", inputs: sized(33, 31, 65, ["residual"]) },
  { title: "95 rows", inputs: sized(95, 40, 48, ["bias"]) },
  { title: "96 rows", inputs: sized(96, 64, 300) },
  { title: "97 rows", inputs: sized(97, 64, 272, ["bias", "residual"]) },
  { title: "inner 255", inputs: sized(3, 255, 20) },
  { title: "inner 513", inputs: sized(13, 513, 20, ["bias"]) },
  { title: "two slabs and a prime in the weight gradient", inputs: sized(1031, 24, 23) },
  { title: "bf16 weight", inputs: sized(6, 100, 40, ["bias", "halves"]) },
]
const activated = ["silu", "softplus", "gelu"].flatMap((activation) => [
  { title: `${activation}`, inputs: sized(9, 32, 40), attrs: { activation } },
  { title: `${activation}, bias and residual`, inputs: sized(34, 19, 21, ["bias", "residual"]), attrs: { activation } },
])

// Around groups (32), the groups that are rounded at a time (32 of them), panels and the register tiles (12 rows on AVX-512, 3 on AVX2).
const eights: OpCase[] = [
  ...[1, 2, 31, 32, 33, 127, 1024, 1061].map((inner) => [7, inner, 37] as const),
  ...[1, 2, 3, 4, 5, 6, 8, 9, 11, 12, 13, 23, 96, 97].map((rows) => [rows, 67, 81] as const),
  ...[1, 15, 16, 17, 63, 64, 65, 257].map((out) => [1, 96, out] as const),
].map(([rows, inner, out]) => ({
  title: `8 bits, ${rows} × ${inner} × ${out}`,
  inputs: { x: normal([rows, inner], 1), ...eightBits(out, inner) },
  attrs: { precision: "bf16" },
}))

/** Rows with groups of zeros, of what is too small to tell from zero, of one large number, and of what is none. */
const oddRows = values(
  "f32",
  [6, 40],
  Float64Array.from({ length: 240 }, (_, i) => {
    const kinds = [
      0,
      1e-38,
      i % 40 === 5 ? 1e30 : 1e-3,
      i === 125 ? Number.NaN : 1,
      i === 199 ? -Infinity : 1,
      (i % 40) - 20,
    ]
    return kinds[Math.floor(i / 40)]!
  }),
)

const forwardWork = ({ x, weight }: Record<string, Tensor64>) => x!.data.length * weight!.shape[0]!
// As in a model: inside layers all is bf16; a linear that ends a branch adds to the f32 stream, and its gradient begins there.
const forwardMixtures = [{ inputs: ["x", "residual"] }, { inputs: ["x"], dtype: "f32" }] as const

export const specs: OpSpec[] = [
  {
    op: linear,
    reference,
    work: forwardWork,
    bf16: forwardMixtures,
    differentiable: ["x", "weight", "bias", "residual"],
    cases: [
      ...shapes,
      ...activated,
      { title: "512 × 1024 × 1024", inputs: sized(512, 1024, 1024), slow: true, bench: true },
      { title: "8192 × 384 × 1536", inputs: sized(8192, 384, 1536), slow: true, bench: true },
    ].map((one) => (one.inputs.weight.dtype === "f32" ? one : { ...one, title: `${one.title}, f32 products` })),
  },
  {
    op: linear,
    reference,
    work: forwardWork,
    bf16: forwardMixtures,
    differentiable: ["x", "weight", "bias"],
    cotangents: ["y", "pre"],
    cases: [
      { title: "gradients through pre as well", inputs: sized(6, 10, 7, ["bias"]), attrs: { activation: "silu" } },
    ],
  },
  {
    op: linear,
    reference,
    work: forwardWork,
    bf16: forwardMixtures,
    differentiable: [], // rounding has no derivative; the gradients' own products follow
    cases: [...shapes.map((one) => ({ ...one, attrs: {} })), ...activated].map(({ title, inputs, attrs }) => ({
      title: `bf16: ${title}`,
      inputs,
      attrs: { ...attrs, precision: "bf16" },
    })),
  },
  {
    op: linear,
    reference,
    differentiable: ["x", "weight", "bias", "residual"],
    cases: [...shapes.map((one) => ({ ...one, attrs: {} })), ...activated]
      .map(({ title, inputs, attrs }) => ({
        title: `bf16x3: ${title}`,
        inputs,
        attrs: { ...attrs, precision: "bf16x3" },
        ...roundingOf("bf16x3"),
      }))
      .filter(() => device === "cpu"), // elsewhere it is refused
  },
  {
    op: linear,
    reference,
    differentiable: [],
    cases: [
      ...eights,
      { title: "8 bits, rows of odd numbers", inputs: { x: oddRows, ...eightBits(19, 40) } },
      ...activated.slice(0, 2).map(({ title, inputs: { x, bias, residual, weight }, attrs }) => {
        const [out, inner] = weight.shape as [number, number]
        return { title: `8 bits, ${title}`, inputs: { x, bias, residual, ...eightBits(out, inner) }, attrs }
      }),
    ].filter(() => device === "cpu"), // the only one that multiplies so
  },
  ...precisions.flatMap((precision): OpSpec[] => [
    {
      op: linearInputGrad,
      work: ({ dy, weight }) => dy.data.length * weight.shape[1],
      bf16: [{ inputs: ["dy"] }, { inputs: [], dtype: "bf16" }],
      reference: ({ dy, weight }: Record<string, Tensor64>) => {
        const [rows, out, inner] = [dy!.shape[0]!, dy!.shape[1]!, weight!.shape[1]!]
        const [left, right] = [rounded(dy!, precision), rounded(weight!, precision)]
        return {
          dx: product(
            [rows, out, inner],
            (m, k) => left[m * out + k]!,
            (k, n) => right[k * inner + n]!,
          ),
        }
      },
      differentiable: [],
      cases: shapes.map(({ title, inputs: { x, weight } }) => ({
        title: `${precision}: ${title}`,
        inputs: { dy: normal([x.shape[0]!, weight.shape[0]!], 5), weight },
        attrs: { precision },
        ...roundingOf(precision),
      })),
    },
    {
      op: linearWeightGrad,
      work: ({ dy, x }) => dy.data.length * x.shape[1],
      bf16: [{ inputs: ["dy", "x"] }, { inputs: ["x"] }],
      reference: ({ dy, x }: Record<string, Tensor64>) => {
        const [rows, out, inner] = [dy!.shape[0]!, dy!.shape[1]!, x!.shape[1]!]
        const [left, right] = [rounded(dy!, precision), rounded(x!, precision)]
        return {
          dweight: product(
            [out, rows, inner],
            (m, k) => left[k * out + m]!,
            (k, n) => right[k * inner + n]!,
          ),
        }
      },
      differentiable: [],
      cases: shapes.map(({ title, inputs: { x, weight } }) => ({
        title: `${precision}: ${title}`,
        inputs: { dy: normal([x.shape[0]!, weight.shape[0]!], 5), x },
        attrs: { precision },
        ...roundingOf(precision),
      })),
    },
  ]),
  {
    op: activationGrad,
    reference: ({ dy, pre }: Record<string, Tensor64>, { activation }: LinearAttrs) => ({
      dx: dy!.data.map((value, i) => value * functions[activation]![1](pre!.data[i]!)),
    }),
    differentiable: [],
    cases: ["none", "silu", "softplus", "gelu"].map((activation) => ({
      title: activation,
      inputs: { dy: normal([3, 1367], 1), pre: uniform([3, 1367], 2, -30, 30) },
      attrs: { activation },
    })),
  },
]
