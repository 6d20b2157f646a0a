import { adamW, clipScale } from "../../lib/ops/adam-w.ts"
import { normal, type OpSpec, type Tensor64, uniform, values } from "./spec.ts"

type Given = Record<"param" | "grad" | "m" | "v" | "rate" | "step" | "clip", Tensor64>
const scalar = (value: number) => values("f32", [], [value])

/** Moments as after some steps; the squares far enough from zero for the root to be tame. */
function given(shape: readonly number[], seed: number, rate: number, step: number, clip: number) {
  const first = step === 1 ? { m: uniform(shape, 0, 0, 0), v: uniform(shape, 0, 0, 0) } : undefined
  const moments = first ?? { m: normal(shape, seed + 1, 0.1), v: uniform(shape, seed + 2, 1e-4, 0.1) }
  const state = { param: normal(shape, seed), grad: normal(shape, seed + 3), ...moments }
  return { ...state, rate: scalar(rate), step: scalar(step), clip: scalar(clip) }
}

export const specs: OpSpec[] = [
  {
    op: adamW,
    reference: (
      inputs: Given,
      {
        beta1,
        beta2,
        eps,
        decay,
      }: Record<string, number> & { beta1: number; beta2: number; eps: number; decay: number },
    ) => {
      const [rate, step, clip] = [inputs.rate.data[0]!, inputs.step.data[0]!, inputs.clip.data[0]!]
      const g = inputs.grad.data.map((value) => value * clip)
      const m = inputs.m.data.map((value, i) => beta1 * value + (1 - beta1) * g[i]!)
      const v = inputs.v.data.map((value, i) => beta2 * value + (1 - beta2) * g[i]! ** 2)
      const param = inputs.param.data.map((value, i) => {
        const size = Math.sqrt(v[i]!) / Math.sqrt(1 - beta2 ** step) + eps
        return value * (1 - rate * decay) - ((rate / (1 - beta1 ** step)) * m[i]!) / size
      })
      return { param, m, v }
    },
    differentiable: [],
    cases: [
      { title: "the first step", inputs: given([3, 7], 1, 1e-3, 1, 1), attrs: { decay: 0.01 }, rtol: 1e-6 },
      { title: "a late step, clipped", inputs: given([17], 2, 3e-4, 10_000, 0.13), attrs: { decay: 0.1 }, rtol: 1e-6 },
      { title: "one element without decay", inputs: given([1], 3, 1e-2, 2, 1), rtol: 1e-6 },
      {
        title: "other constants",
        inputs: given([4097], 4, 1e-1, 7, 1),
        attrs: { beta1: 0.5, beta2: 0.95, eps: 1e-3, decay: 0.5 },
        rtol: 1e-6,
      },
      {
        title: "a rate of zero leaves the weights",
        inputs: given([33], 5, 0, 3, 1),
        attrs: { decay: 0.1 },
        rtol: 1e-6,
      },
      { title: "a million weights", inputs: given([1024, 1023], 6, 1e-3, 5, 1), rtol: 1e-6, bench: true, slow: true },
    ],
  },
  {
    op: clipScale,
    reference: ({ squares }: { squares: Tensor64 }, { max }: { max: number }) => {
      const norm = Math.sqrt(squares.data[0]!)
      return { norm: Float64Array.of(norm), scale: Float64Array.of(Math.min(1, max / (norm + 1e-6))) }
    },
    differentiable: [],
    cases: [
      { title: "a small norm stays", inputs: { squares: scalar(0.25) } },
      { title: "a large norm is brought down", inputs: { squares: scalar(1e4) }, attrs: { max: 0.5 } },
      { title: "a norm at the limit", inputs: { squares: scalar(1) } },
      { title: "zero", inputs: { squares: scalar(0) } },
      { title: "infinity gives zero", inputs: { squares: scalar(Number.POSITIVE_INFINITY) } },
      { title: "NaN stays NaN", inputs: { squares: scalar(Number.NaN) } },
    ],
  },
]
