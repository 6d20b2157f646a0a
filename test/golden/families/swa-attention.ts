import { slidingAttention } from "../../../lib/ops/attention.ts"
import { concat, gatherRows } from "../../../lib/ops/columns.ts"
import { batchSegments, type CaseFamily, type Extra, present, runForm } from "../family.ts"
import { reshaped } from "../layout.ts"

/** q and y (B,T,heads,headDim), k and v (B,S,kvHeads,headDim) with S ≥ T: the queries are the last T of S positions. */
export const swaAttentionFamily: CaseFamily = {
  ops: ["causal_sliding_window_attention"],
  run: (golden) => {
    const [batch = 1, queries = 1, heads = 1, headDim = 1] = golden.shape("in.q")
    const [, length = 1, kvHeads = 1] = golden.shape("in.k")
    const window = golden.number("window", 0)
    const rowsOf = ([b = 1, l = 1, h = 1, d = 1]: readonly number[]) => reshaped([b, l, h, d], [b * l, h * d])
    // Rows before the first query have keys and values alone: their q is zero, and nobody looks at their y.
    const places = Array.from({ length: batch * length }, (_, row) => {
      const query = (row % length) - (length - queries)
      return query < 0 ? -1 : Math.floor(row / length) * queries + query
    })
    const [into, outOf] = [Int32Array.from(places), Int32Array.from(rowsWith(places))]
    const index = (data: Int32Array): Extra => ({ shape: [data.length], data })
    return runForm(golden, {
      inputs: present(golden, { q: rowsOf, k: rowsOf, v: rowsOf }),
      outputs: { y: rowsOf([batch, queries, heads, headDim]) },
      extra: { segments: batchSegments(batch, length), into: index(into), outOf: index(outOf) },
      forward: ({ q, k, v, segments, into, outOf }) => {
        const spread = gatherRows({ x: q!, index: into! }).y
        const width = [heads * headDim, kvHeads * headDim] as const
        const keysAndValues = concat({ a: k, b: v }, { first: width[1], second: width[1] }).y
        const qkv = concat({ a: spread, b: keysAndValues }, { first: width[0], second: 2 * width[1] }).y
        const { y } = slidingAttention({ qkv, segments: segments! }, { heads, kvHeads, headDim, window })
        return { y: gatherRows({ x: y, index: outOf! }).y }
      },
    })
  },
}

/** The rows that hold a query, in order. */
const rowsWith = (places: readonly number[]) => places.flatMap((place, row) => (place < 0 ? [] : [row]))
