import { cast } from "../../lib/ops/cast.ts"
import { bf16, normal, type OpSpec, type Tensor64, values } from "./spec.ts"

/** Nearest multiple of the spacing of bf16 at x, ties to even: 8 bits of significand, exponents from −126. */
function nearest(x: number): number {
  if (!Number.isFinite(x) || x === 0) return x
  let exponent = Math.floor(Math.log2(Math.abs(x)))
  if (2 ** exponent > Math.abs(x)) exponent--
  const unit = 2 ** (Math.max(exponent, -126) - 7)
  const below = Math.floor(x / unit)
  const rest = x / unit - below
  const steps = rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below
  return Math.abs(steps * unit) >= 2 ** 128 ? Math.sign(x) * Number.POSITIVE_INFINITY : steps * unit
}

// One element, a tail shorter than any vector, whole blocks of 4096 and one beyond.
const shapes = [[], [1], [7], [15], [16], [17], [4096], [4097], [2, 3, 5]]
const one = 2 ** -7 // spacing of bf16 at 1
const corners = values(
  "f32",
  [16],
  [
    ...[0, -0, 1, 1 + one / 2, 1 + (3 * one) / 2, 1 + one / 2 + 2 ** -23, -1 - one / 2, 2 - one / 2],
    ...[Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 3.4e38, -3.4e38, 2 ** -126, 1e-40, 2 ** -149],
  ],
)

export const specs: OpSpec[] = [
  {
    op: cast,
    reference: ({ x }: { x: Tensor64 }) => ({ y: x.data.map(nearest) }),
    differentiable: [], // rounding has no derivative; the cast back is a case of its own
    bf16: [],
    cases: [
      ...shapes.map((shape, i) => ({
        title: `to bf16, shape [${shape}]`,
        inputs: { x: normal(shape, i) },
        attrs: { dtype: "bf16" },
        rtol: 0,
      })),
      {
        title: "to bf16: ties, NaN, infinities and what bf16 cannot hold",
        inputs: { x: corners },
        attrs: { dtype: "bf16" },
        rtol: 0,
      },
    ],
  },
  {
    op: cast,
    reference: ({ x }: { x: Tensor64 }) => ({ y: x.data }),
    differentiable: ["x"],
    bf16: [],
    cases: [
      ...shapes.map((shape, i) => ({
        title: `to f32, shape [${shape}]`,
        inputs: { x: bf16(normal(shape, i)) },
        rtol: 0,
      })),
      { title: "f32 to f32", inputs: { x: normal([33], 5) }, rtol: 0 },
      { title: "bf16 to bf16", inputs: { x: bf16(normal([33], 5)) }, attrs: { dtype: "bf16" }, rtol: 0 },
    ],
  },
]
