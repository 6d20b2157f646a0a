import { expect } from "../../../lib/errors.ts"
import { clipScale } from "../../../lib/ops/adam-w.ts"
import { add, scaleBy } from "../../../lib/ops/elementwise.ts"
import { sumSquares } from "../../../lib/ops/reduce.ts"
import { type CaseFamily, runForm } from "../family.ts"
import { reshaped } from "../layout.ts"

/** gradK; total_norm over all together, clippedK = gradK·min(1, max_norm/(total_norm + 1e-6)). */
export const clipGradNormFamily: CaseFamily = {
  ops: ["clip_grad_norm"],
  run: (golden) => {
    expect(
      golden.number("norm_type", 2) === 2,
      "BAD_FILE",
      () => `${golden.path}: norm_type is 2, got ${golden.attrs.norm_type}`,
    )
    const keys = golden.names("in.grad")
    const layouts = keys.map((key) => reshaped(golden.shape(`in.grad${key}`)))
    return runForm(golden, {
      inputs: Object.fromEntries(keys.map((key, i) => [`grad${key}`, layouts[i]!])),
      outputs: {
        total_norm: reshaped([]),
        ...Object.fromEntries(keys.map((key, i) => [`clipped${key}`, layouts[i]!])),
      },
      forward: (values) => {
        const grads = keys.map((key) => values[`grad${key}`]!)
        const squares = grads.map((x) => sumSquares({ x }).y).reduce((a, b) => add({ a, b }).y)
        const { norm, scale: by } = clipScale({ squares }, { max: golden.number("max_norm", 1) })
        return {
          total_norm: norm,
          ...Object.fromEntries(keys.map((key, i) => [`clipped${key}`, scaleBy({ x: grads[i]!, by }).y])),
        }
      },
    })
  },
}
