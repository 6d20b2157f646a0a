import { layerNorm, rmsNorm } from "../../../lib/ops/norm.ts"
import { type Family, present, runForm } from "../family.ts"
import { reshaped } from "../layout.ts"

/** y = norm(x + residual)·weight + bias over the last axis; residual_out = x + residual. */
const normFamily = (name: string, norm: typeof rmsNorm | typeof layerNorm): Family => ({
  ops: [name],
  run: (golden) => {
    const shape = golden.shape("in.x")
    const dim = shape.at(-1)!
    const rows = (from: readonly number[]) => reshaped(from, [shape.slice(0, -1).reduce((n, size) => n * size, 1), dim])
    return runForm(golden, {
      inputs: present(golden, { x: rows, weight: reshaped, bias: reshaped, residual: rows }),
      outputs: { y: rows(shape), residual_out: rows(shape) },
      forward: ({ x, weight, bias, residual }) => {
        const { y, sum } = norm({ x: x!, weight: weight!, bias, residual }, { eps: golden.number("eps", 1e-5) })
        return { y, residual_out: sum }
      },
    })
  },
})

export const rmsNormFamily = normFamily("rms_norm", rmsNorm)
export const layerNormFamily = normFamily("layer_norm", layerNorm)
