/**
 * Reading prompts of 1K to 256K tokens, in turns: the time of a token does not depend on how many there are.
 */
import { load } from "../lib/generate/load.ts"
import { promptIds } from "../lib/generate/side-by-side.ts"
import { type Measurement, type Outcome, statistics } from "./measure.ts"

export const summary = "time per token of prompts of 1K to 256K tokens, the demo model: flat"

const lengths = [1, 4, 16, 64, 256] as const
const first = lengths[0]
/** Fewer than elsewhere, since a round reads 400,000 tokens. */
const rounds = 5
/** Tokens of a sample at least, in thousands: short prompts are read several times. */
const least = 16
/** A target of at most so many times the time at 1K, and no less than one over it. */
const target = 1.1

export async function run(): Promise<Outcome> {
  await using model = await load("demo", { sessions: 1 })
  const samples = new Map(lengths.map((length) => [length, [] as number[]]))
  for (let round = -1; round < rounds; round++) {
    for (const length of round % 2 === 0 ? lengths : lengths.toReversed()) {
      const tokens = 1024 * length
      const ids = promptIds(0, { prefill: tokens }, model.network.vocab)
      const times = Math.max(1, least / length)
      const began = performance.now()
      for (let time = 0; time < times; time++) {
        using session = model.session()
        await session.append(ids)
      }
      const perToken = (performance.now() - began) / (times * tokens)
      if (round >= 0) samples.get(length)!.push(perToken) // the one before compiles programs and packs weights
    }
  }
  const median = (length: (typeof lengths)[number]) => statistics(samples.get(length)!).median
  const results = lengths.map((length): Measurement => {
    const rate = { value: 1e3 / median(length), unit: "tokens/s" }
    const share = { value: median(length) / median(first), of: `its own at ${first}K` }
    return {
      shape: `demo, prompt of ${length}K`,
      unit: "ms per token",
      ...statistics(samples.get(length)!),
      rate,
      share,
    }
  })
  const ratios = lengths.map((length) => median(length) / median(first))
  const flat = ratios.every((ratio) => ratio <= target && ratio >= 1 / target)
  const notes = [
    `target within ${Math.round(100 * (target - 1))}% of the time at ${first}K: ${flat ? "met" : "missed"}, from ${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)} times`,
  ]
  return { results, notes }
}
