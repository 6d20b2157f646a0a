/**
 * Embedding: from ids to vectors.
 */
import { expect } from "../errors.ts"
import { op } from "../graph/op.ts"
import { checkGroups, checkTrainable } from "./linear.ts"

/**
 * Rows of a table by id.
 *
 *   y[row] = W[ids[row]]
 *
 * Id −1 marks a spare row: its result is zero and it takes part in no gradient. bf16 tables give f32 rows, and so
 * do tables of 8 bits, which come with their scales, as in `linear`.
 *
 * @throws BAD_INPUT at run time, for an id outside the table, with its row
 * @example
 * const { y } = embedding({ ids, weight })
 */
export const embedding = op({
  name: "embedding",
  inputs: { ids: "i32 rows", weight: "matrix vocab dim", "scales?": "bf16 vocab groups" },
  outputs: { y: "rows dim" },
  dims: ({ dim, groups }) => {
    checkGroups("embedding", dim!, groups)
    return {}
  },
  grad: ({ ids, weight, scales }, _, __, { y: dy }) => {
    checkTrainable("embedding", scales)
    return { ids: null, weight: embeddingGrad({ dy: dy!, ids }, { vocab: weight.shape[0]! }).dweight }
  },
})

/**
 * Gradient of a table: for each id the sum of its rows, in row order, so that the bits are always the same.
 *
 *   dW[v] = Σ_{row: ids[row] = v} dy[row]
 */
export const embeddingGrad = op({
  name: "embeddingGrad",
  inputs: { dy: "rows dim", ids: "i32 rows" },
  outputs: { dweight: "vocab dim" },
  attrs: { vocab: 0 },
  dims: (_, { vocab }) => {
    expect(
      Number.isInteger(vocab) && vocab >= 1,
      "BAD_OPTION",
      () => `embeddingGrad: vocab is a whole number of at least 1, got ${vocab}; pass the number of rows of the table`,
    )
    return { vocab }
  },
  grad: null,
})
