/**
 * Choosing the next token on the device.
 */
import { op } from "../graph/op.ts"

/**
 * Chooses one token per sample. Steps in the order of transformers and vLLM; l are the logits, p = softmax(l):
 *
 * 1. repetition r (CTRL): l ← l > 0 ? l/r : l·r for every token seen in the prompt or generated; 1 does nothing
 * 2. frequency f and presence q (OpenAI): l ← l − f·count − q·[count > 0], count of the generated tokens alone
 * 3. temperature t: l ← l/t. t = 0 is greedy: the greatest l, ties by the lower id; steps 4 to 7 are left out
 * 4. topK: tokens below the K-th largest l go (0: none); ties with it stay
 * 5. topP (nucleus): stays the shortest run of most probable tokens that holds at least P of what step 4 left, ties by the
 *    lower id; 1 does nothing
 * 6. minP: stays what has p ≥ minP·max p; 0 does nothing
 * 7. draw: the token, in the order of ids, at which the cumulative probability passes u ∈ [0, 1). u comes from
 *    Philox4x32-10 with the 64-bit seed as key and `position` as counter: one seed gives one text.
 *
 * Probabilities are f32, their sums f64. `logprobs` is the log-probability of the chosen token under the softmax of the raw
 * logits, before every step. Where no token can be chosen (a logit is NaN or +∞, or all are −∞) the id is −1 and the
 * log-probability NaN.
 *
 * A line of `settings`: temperature, topP, minP, repetition, frequency, presence. A line of `limits`: topK, seed's low and
 * high word, and the slots `from` and `to` of `history`: penalties read slot `from` (0: no history), slot `to` becomes that
 * row plus the chosen token (0: nobody). `history` holds an i32 per slot and token: the low 24 bits count how often it was
 * generated, bit 24 says that it was in the prompt (see `recordTokens`). settings, limits and position are inputs of the
 * run; settings out of range do nothing in the kernel, so callers check them before.
 *
 * Running throws BAD_INPUT for slots out of range, two samples writing one slot, one reading what another writes, and
 * negative positions.
 * @example const { ids, logprobs } = sample({ logits, settings, limits, position, history })
 * @see Keskar et al. 2019, arXiv:1909.05858, §4.1 (repetition); OpenAI API reference, "Frequency and presence penalties";
 *   Fan, Lewis & Dauphin 2018, arXiv:1805.04833, §5.4 (top-k); Holtzman et al. 2020, arXiv:1904.09751, §3.1 (top-p);
 *   Nguyen et al. 2024, arXiv:2407.01082, §3 (min-p); Salmon et al. 2011, doi:10.1145/2063384.2063405 (Philox)
 */
export const sample = op({
  name: "sample",
  inputs: {
    logits: "samples vocab",
    settings: "samples 6",
    limits: "i32 samples 5",
    position: "i32 samples",
    "history?": "i32 slots vocab",
  },
  outputs: { ids: "i32 samples", logprobs: "samples" },
  updates: ["history"],
  grad: null,
})

/**
 * Marks the tokens of prompts in the penalty history: for each segment, row `to` of `history` becomes row `from` (zeros for
 * slot 0) with bit 24 set for each of the segment's ids. Counts of `from` become bit 24 too: what was generated before a
 * prompt is context now, and frequency and presence penalties count the tokens of one answer, as in OpenAI's API.
 *
 * ids and segments are inputs of the run. Running throws BAD_INPUT for ids outside the vocabulary and segments that are not
 * well formed; ids of spare rows are not looked at.
 * @example recordTokens({ ids, segments, history })
 */
export const recordTokens = op({
  name: "recordTokens",
  inputs: { ids: "i32 rows", segments: "i32 segments 5", history: "i32 slots vocab" },
  outputs: {},
  updates: ["history"],
  grad: null,
})
