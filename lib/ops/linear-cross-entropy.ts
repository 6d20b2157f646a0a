/**
 * The head of a language model and its loss as one op, so that the logits of all rows are never in memory at once.
 */
import { expect } from "../errors.ts"
import { op } from "../graph/op.ts"
import { checkPrecision } from "../graph/trace.ts"
import { checkGroups, checkTrainable } from "./linear.ts"

/**
 * Cross entropy of a linear's logits against target ids, in nats per row.
 *
 *   l = x·Wᵀ + bias      logsumexp = log Σ_v e^l[v]      loss = (1 − s)·(logsumexp − l[target]) + s·mean_v (logsumexp − l[v])
 *
 * s is `smoothing`, as in torch. Rows whose target equals `ignore` (−100, as in torch) have loss 0 and no gradient.
 * Logits, their sums and the loss are f32 or better; with precision bf16, x, the weight and, in the gradient, dl are rounded
 * to bf16 (dl for dbias too, which is the sum of what the products read); bf16x3 is as in `linear`. Logits are computed a block of rows at a time, and again for the gradient. Sum the losses and
 * divide by the number of rows that count; `logsumexp` is there for the gradient. A weight of 8 bits comes with its scales, as in `linear`.
 *
 * @throws BAD_INPUT at run time, for a target outside the vocabulary that is not `ignore`
 * @example
 * const { losses } = linearCrossEntropy({ x: hidden, weight: embedding, targets })
 * @see Szegedy et al. 2016, arXiv:1512.00567, section 7 (label smoothing)
 */
export const linearCrossEntropy = op({
  name: "linearCrossEntropy",
  inputs: {
    x: "float rows dim",
    weight: "matrix vocab dim",
    "bias?": "vocab",
    targets: "i32 rows",
    "scales?": "bf16 vocab groups",
  },
  outputs: { losses: "rows", logsumexp: "rows" },
  attrs: { ignore: -100, smoothing: 0, precision: "f32" },
  dims: (dims, { ignore, smoothing, precision }) => {
    expect(
      Number.isInteger(ignore) && Math.abs(ignore) < 2 ** 31,
      "BAD_OPTION",
      () => `linearCrossEntropy: ignore is a whole number that fits i32, got ${ignore}; -100 is what torch uses`,
    )
    expect(
      smoothing >= 0 && smoothing <= 1,
      "BAD_OPTION",
      () => `linearCrossEntropy: smoothing is in [0, 1], got ${smoothing}; 0 is the plain cross entropy`,
    )
    checkPrecision("linearCrossEntropy", precision)
    checkGroups("linearCrossEntropy", dims.dim!, dims.groups)
    return {}
  },
  auxiliary: ["logsumexp"],
  grad: ({ x, weight, bias, targets, scales }, { logsumexp }, attrs, grads) => {
    checkTrainable("linearCrossEntropy", scales)
    const { dx, dweight, dbias } = linearCrossEntropyGrad(
      { dlosses: grads.losses!, x, weight, bias, targets, logsumexp },
      attrs,
    )
    return { x: dx, weight: dweight, ...(bias && { bias: dbias }), targets: null }
  },
})

/**
 * Gradient of linearCrossEntropy; logits are computed again, a piece of rows and words at a time.
 *
 *   dl[v] = dloss·(e^(l[v] − logsumexp) − s/vocab − (1 − s)·[v is the target])      dx = dl·W      dW = dlᵀ·x
 *   dbias = Σ_row dl
 */
export const linearCrossEntropyGrad = op({
  name: "linearCrossEntropyGrad",
  inputs: {
    dlosses: "rows",
    x: "float rows dim",
    weight: "float vocab dim",
    "bias?": "vocab",
    targets: "i32 rows",
    logsumexp: "rows",
  },
  outputs: { dx: "float rows dim", dweight: "vocab dim", dbias: "vocab" },
  attrs: { ignore: -100, smoothing: 0, precision: "f32" },
  grad: null,
})
