import { selectiveScan } from "../../../lib/ops/selective-scan.ts"
import { batchSegments, type CaseFamily, present, runForm } from "../family.ts"
import { bandRows, groupsOf, reshaped, tokenRows } from "../layout.ts"

/** u, delta, z (B,D,L); A (D,N); B, C (B,N,L), (B,G,N,L) or static (D,N); initial_state, last_state (B,D,N). */
export const selectiveScanFamily: CaseFamily = {
  ops: ["selective_scan"],
  run: (golden) => {
    const [batch = 1, inner = 1, length = 1] = golden.shape("in.u")
    const [forB, forC] = ["in.B", "in.C"].map((name) => groupsOf(golden.shape(name)))
    // The op has one number of groups for both; a channel each is a multiple of every number.
    const groups = forB === forC ? forB! : inner
    const bands = (shape: readonly number[]) => bandRows(shape, batch, length, groups)
    const state = golden.shape("in.A")[1]!
    return runForm(golden, {
      inputs: present(golden, {
        u: tokenRows,
        delta: tokenRows,
        A: reshaped,
        B: bands,
        C: bands,
        D: reshaped,
        z: tokenRows,
        delta_bias: reshaped,
        initial_state: reshaped,
      }),
      outputs: { y: tokenRows([batch, inner, length]), last_state: reshaped([batch, inner, state]) },
      extra: { segments: batchSegments(batch, length) },
      forward: ({ u, delta, A, B, C, D, z, delta_bias: bias, initial_state: initial, segments }) => {
        const { y, final } = selectiveScan(
          { x: u!, delta: delta!, A: A!, B: B!, C: C!, D, z, bias, segments: segments!, initial },
          { softplus: golden.flag("softplus", false) },
        )
        return { y, last_state: final }
      },
    })
  },
}
