import type { Value } from "../../../lib/graph/value.ts"
import { causalConv } from "../../../lib/ops/causal-conv.ts"
import { split } from "../../../lib/ops/columns.ts"
import { add } from "../../../lib/ops/elementwise.ts"
import { linear } from "../../../lib/ops/linear.ts"
import { selectiveScan } from "../../../lib/ops/selective-scan.ts"
import type { GoldenCase } from "../case.ts"
import { batchSegments, type CaseFamily, type Extra, present, runForm } from "../family.ts"
import { bandRows, everyRow, groupsOf, reshaped, tokenRows } from "../layout.ts"

/**
 * xz (B,2E,L), x first, then conv, x_proj (rows Δ, B, C), dt_proj, scan, gate, out_proj; y (B,L,D). B or C may be given,
 * static or per token; x_proj then has no rows for it. B_proj_bias and C_proj_bias (N) are added to what x_proj gives.
 */
export const mambaInnerFamily: CaseFamily = {
  ops: ["mamba_inner"],
  run: (golden) => {
    const [batch = 1, both = 2, length = 1] = golden.shape("in.xz")
    const inner = both / 2
    const rows = batch * length
    const width = golden.shape("in.out_proj_weight")[0]!
    // x_proj's own B and C are one group; a given one may have more.
    const given = ["in.B", "in.C"].filter((name) => golden.has(name)).map((name) => groupsOf(golden.shape(name)))
    const groups = given.every((count) => count === 1) ? 1 : inner
    const bands = (shape: readonly number[]) => bandRows(shape, batch, length, groups)
    const perRow = (shape: readonly number[]) => everyRow(shape, rows)
    return runForm(golden, {
      inputs: present(golden, {
        xz: tokenRows,
        conv1d_weight: (shape) => reshaped(shape, [inner, 1, shape.at(-1)!]),
        conv1d_bias: reshaped,
        x_proj_weight: reshaped,
        delta_proj_weight: reshaped,
        out_proj_weight: reshaped,
        out_proj_bias: reshaped,
        A: reshaped,
        B: bands,
        C: bands,
        D: reshaped,
        delta_bias: reshaped,
        B_proj_bias: perRow,
        C_proj_bias: perRow,
      }),
      outputs: { y: reshaped([batch, length, width], [rows, width]) },
      extra: {
        segments: batchSegments(batch, length),
        ...(groups > 1 && { repeat: repeat(golden.shape("in.A")[1]!, groups) }),
      },
      forward: (values) => ({ y: mambaInner(golden, values, inner) }),
    })
  },
}

function mambaInner(golden: GoldenCase, values: Readonly<Record<string, Value | undefined>>, inner: number): Value {
  const { xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias } = values
  const { A, D, delta_bias, B_proj_bias, C_proj_bias, segments } = values
  const { a: signal, b: z } = split({ x: xz! }, { first: inner })
  const conv = { x: signal, weight: conv1d_weight!, bias: conv1d_bias, segments: segments! }
  const x = causalConv(conv, { silu: true }).y
  const rank = delta_proj_weight!.shape[1]!
  let rest: Value | undefined = linear({ x, weight: x_proj_weight! }).y // (rows, rank + N for each of B and C not given)
  let low = rest
  if (rest.shape[1]! > rank) ({ a: low, b: rest } = split({ x: rest }, { first: rank }))
  else rest = undefined
  let { B, C } = values
  if (B === undefined && C === undefined) {
    const halves = split({ x: rest! }, { first: A!.shape[1]! })
    B = biased(halves.a, B_proj_bias)
    C = biased(halves.b, C_proj_bias)
  }
  const own = (bias: Value | undefined) => {
    const one = biased(rest!, bias)
    return values.repeat ? linear({ x: one, weight: values.repeat }).y : one
  }
  B ??= own(B_proj_bias)
  C ??= own(C_proj_bias)
  const delta = linear({ x: low, weight: delta_proj_weight! }).y
  const { y } = selectiveScan(
    { x, delta, A: A!, B, C, D, z, bias: delta_bias, segments: segments! },
    { softplus: golden.flag("delta_softplus", true) },
  )
  return linear({ x: y, weight: out_proj_weight!, bias: out_proj_bias }).y
}

const biased = (x: Value, bias: Value | undefined): Value => (bias === undefined ? x : add({ a: x, b: bias }).y)

/** The 0/1 matrix (groups·N, N) that repeats a row of N for every group. */
function repeat(state: number, groups: number): Extra {
  const data = Float32Array.from({ length: groups * state * state }, (_, i) =>
    Number(Math.floor(i / state) % state === i % state),
  )
  return { shape: [groups * state, state], data }
}
