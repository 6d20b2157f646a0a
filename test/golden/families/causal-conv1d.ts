import { expect } from "../../../lib/errors.ts"
import { causalConv } from "../../../lib/ops/causal-conv.ts"
import type { GoldenCase } from "../case.ts"
import { batchSegments, type CaseFamily, present, runForm } from "../family.ts"
import { reshaped, tokenRows } from "../layout.ts"

/** x (B,D,L); weight (D,W); initial_states and final_states (B,D,W−1), oldest first. */
export const causalConv1dFamily: CaseFamily = {
  ops: ["causal_conv1d"],
  run: (golden) => {
    const [batch = 1, inner = 1, length = 1] = golden.shape("in.x")
    const width = golden.shape("in.weight")[1]!
    return runForm(golden, {
      inputs: present(golden, {
        x: tokenRows,
        weight: (shape) => reshaped(shape, [inner, 1, width]),
        bias: reshaped,
        initial_states: reshaped,
      }),
      outputs: { y: tokenRows([batch, inner, length]), final_states: reshaped([batch, inner, width - 1]) },
      extra: { segments: batchSegments(batch, length) },
      forward: ({ x, weight, bias, initial_states: initial, segments }) => {
        const inputs = { x: x!, weight: weight!, bias, segments: segments!, initial }
        const { y, final } = causalConv(inputs, { silu: usesSilu(golden) })
        return { y, final_states: final }
      },
    })
  },
}

/** Whether `activation` asks for SiLU; null is none. */
export function usesSilu(golden: GoldenCase): boolean {
  const activation = golden.attrs.activation ?? null
  expect(
    activation === null || activation === "silu" || activation === "swish",
    "BAD_FILE",
    () => `${golden.path}: activation is null, silu or swish, got ${activation}`,
  )
  return activation !== null
}
