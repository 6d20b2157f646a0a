import { expect } from "../../../lib/errors.ts"
import { scaleBy } from "../../../lib/ops/elementwise.ts"
import { linearCrossEntropy } from "../../../lib/ops/linear-cross-entropy.ts"
import { sum } from "../../../lib/ops/reduce.ts"
import { type CaseFamily, type Extra, runForm } from "../family.ts"
import { permuted, reshaped } from "../layout.ts"

/**
 * logits (tokens, vocab), target (tokens). Our op makes its logits itself, x·Wᵀ, so one of the two factors is the logits and
 * the other the identity of their smaller side: W = I when the vocabulary is smaller, else x = I and W = logitsᵀ.
 */
export const softmaxCrossEntropyFamily: CaseFamily = {
  ops: ["softmax_cross_entropy"],
  run: (golden) => {
    const [tokens = 1, vocab = 1] = golden.shape("in.logits")
    const ignore = golden.number("ignore_index", -100)
    const smoothing = golden.number("label_smoothing", 0)
    const { reduction } = golden.attrs
    expect(
      reduction === "none" || reduction === "sum" || reduction === "mean",
      "BAD_FILE",
      () => `${golden.path}: reduction is none, sum or mean, got ${reduction}`,
    )
    const target = golden.integers("in.target")
    const counted = target.filter((id) => id !== ignore).length
    const side = Math.min(tokens, vocab)
    const logits = vocab < tokens ? reshaped([tokens, vocab]) : permuted([tokens, vocab], [1, 0], [vocab, tokens])
    return runForm(golden, {
      inputs: { logits },
      outputs: { loss: reshaped(reduction === "none" ? [tokens] : []), per_token: reshaped([tokens]) },
      extra: {
        target: { shape: [tokens], data: target },
        identity: identity(side),
        by: { shape: [], data: Float32Array.of(reduction === "mean" ? 1 / counted : 1) },
      },
      forward: ({ logits, identity, target, by }) => {
        const factors = vocab < tokens ? { x: logits!, weight: identity! } : { x: identity!, weight: logits! }
        const { losses } = linearCrossEntropy({ ...factors, targets: target! }, { ignore, smoothing, precision: "f32" })
        const loss = reduction === "none" ? losses : scaleBy({ x: sum({ x: losses }).y, by: by! }).y
        return { loss, per_token: losses }
      },
    })
  },
}

function identity(size: number): Extra {
  return {
    shape: [size, size],
    data: Float32Array.from({ length: size * size }, (_, i) => Number(i % (size + 1) === 0)),
  }
}
