import test from "ava"
import fc from "fast-check"
import { BytePairs } from "../../lib/text/byte-pairs.ts"

/** The definition: again and again the pair of lowest rank, the leftmost of them, until there is none. */
function reference(word: string, merges: readonly (readonly [string, string])[]): string[] {
  const ranks = new Map(merges.map((pair, rank) => [pair.join(" "), rank]))
  const symbols = Array.from(word)
  for (;;) {
    const pairs = symbols.slice(1).map((second, i) => ranks.get(`${symbols[i]} ${second}`) ?? Number.POSITIVE_INFINITY)
    const lowest = Math.min(...pairs)
    if (!(lowest < Number.POSITIVE_INFINITY)) return symbols
    const at = pairs.indexOf(lowest)
    symbols.splice(at, 2, symbols[at]! + symbols[at + 1]!)
  }
}

test("words are merged as the definition says", (t) => {
  const symbol = fc.string({ unit: fc.constantFrom("a", "b", "🙂"), minLength: 1, maxLength: 4 })
  const merges = fc.array(fc.tuple(symbol, symbol), { maxLength: 12 })
  const word = fc.string({ unit: fc.constantFrom("a", "b", "🙂", "x"), maxLength: 90 })
  fc.assert(
    fc.property(merges, fc.array(word, { minLength: 1, maxLength: 4 }), (merges, words) => {
      const pairs = new BytePairs(merges)
      for (const word of words) t.deepEqual(pairs.split(word), reference(word, merges))
    }),
    { numRuns: 1500, seed: 1 },
  )
})

test("a million letters in one word are merged in time that hardly grows faster than they do", (t) => {
  const pairs = new BytePairs([
    ["a", "a"],
    ["aa", "aa"],
    ["aaaa", "b"],
  ])
  const began = performance.now()
  const symbols = pairs.split(`${"a".repeat(1e6)}b`)
  t.is(symbols.length, 250_000)
  t.is(symbols.at(-1), "aaaab")
  t.true(performance.now() - began < 30_000) // 0.5 s on an idle machine
})
