/**
 * The most probable tokens beside the one that was chosen.
 */

/** A token with its log-probability under the model, before penalties and temperature. */
export interface RankedToken {
  readonly id: number
  readonly logprob: number
}

/** As many as OpenAI's API gives. */
export const topLogprobsMost = 20

/**
 * The `count` greatest logits as tokens, ties by the lower id; those of probability 0 are left out. Log-probabilities are measured from
 * the chosen token's, which the device has computed, so that it has the same one in both places.
 */
export function topTokens(logits: Float32Array, chosen: RankedToken, count: number): RankedToken[] {
  const best: number[] = []
  for (let id = 0; id < logits.length; id++) {
    if (best.length === count && !(logits[id]! > logits[best.at(-1)!]!)) continue
    if (logits[id] === Number.NEGATIVE_INFINITY) continue
    let at = best.length
    while (at > 0 && logits[id]! > logits[best[at - 1]!]!) at--
    best.splice(at, 0, id)
    if (best.length > count) best.pop()
  }
  const normaliser = logits[chosen.id]! - chosen.logprob
  return best.map((id) => (id === chosen.id ? { ...chosen } : { id, logprob: logits[id]! - normaliser }))
}
