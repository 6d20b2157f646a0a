import { recordTokens, sample } from "../../lib/ops/sample.ts"
import { ints, normal, type OpCase, type OpSpec, segmentsOf, type Tensor64, values } from "./spec.ts"

const inPrompt = 1 << 24
type Given = Record<"logits" | "settings" | "limits" | "position", Tensor64> & { history?: Tensor64 }

/** Philox4x32-10 in exact integers; the first 53 bits of the block at (position, 0, 0, 0) as a number in [0, 1). */
export function uniformAt(position: number, seedLow: number, seedHigh: number): number {
  const word = (value: bigint) => BigInt.asUintN(32, value)
  let counter = [BigInt(position), 0n, 0n, 0n] as [bigint, bigint, bigint, bigint]
  let key = [word(BigInt(seedLow)), word(BigInt(seedHigh))] as [bigint, bigint]
  for (let round = 0; round < 10; round++) {
    const even = 0xd2511f53n * counter[0]
    const odd = 0xcd9e8d57n * counter[2]
    counter = [(odd >> 32n) ^ counter[1] ^ key[0], word(odd), (even >> 32n) ^ counter[3] ^ key[1], word(even)]
    key = [word(key[0] + 0x9e3779b9n), word(key[1] + 0xbb67ae85n)]
  }
  return Number(((counter[0] << 32n) | counter[1]) >> 11n) / 2 ** 53
}

const sumOf = (weights: readonly number[]) => weights.reduce((a, b) => a + b, 0)

/** Probabilities up to a factor: the greatest is exactly 1, equals are exactly equal, and so are whole multiples of them. */
const weightsOf = (logits: readonly number[]) => {
  const most = logits.reduce((a, b) => Math.max(a, b))
  return logits.map((logit) => Math.exp(logit - most))
}

function penalised(logits: readonly number[], seen: readonly number[], settings: readonly number[]): number[] {
  const [, , , repetition = 1, frequency = 0, presence = 0] = settings
  return logits.map((logit, id) => {
    const count = seen[id]! & (inPrompt - 1)
    const repeated = seen[id] === 0 ? logit : logit > 0 ? logit / repetition : logit * repetition
    return repeated - frequency * count - (count > 0 ? presence : 0)
  })
}

/** One sample, step by step as the op's documentation has them. */
function choose(
  logits: readonly number[],
  seen: readonly number[],
  settings: readonly number[],
  topK: number,
  u: number,
) {
  const [temperature = 1, topP = 1, minP = 0] = settings
  const scores = penalised(logits, seen, settings)
  const order = scores.map((_, id) => id).sort((a, b) => scores[b]! - scores[a]! || a - b)
  if (temperature === 0) return order[0]!
  const worst = topK > 0 && topK < scores.length ? scores[order[topK - 1]!]! : Number.NEGATIVE_INFINITY
  const top = weightsOf(scores.map((score) => (score < worst ? Number.NEGATIVE_INFINITY : score / temperature)))
  const nucleus = new Set<number>()
  const enough = topP * sumOf(top)
  let held = 0
  for (const id of order) {
    if (nucleus.size > 0 && held >= enough) break
    nucleus.add(id)
    held += top[id]!
  }
  const kept = top.map((weight, id) => (nucleus.has(id) && weight >= minP ? weight : 0))
  const total = sumOf(kept)
  let passed = 0
  return kept.findIndex((weight) => {
    passed += weight
    return weight > 0 && passed > u * total
  })
}

function reference({ logits, settings, limits, position, history }: Given) {
  const [samples, vocab] = logits.shape as [number, number]
  const ids = new Float64Array(samples)
  const logprobs = new Float64Array(samples)
  const after = history?.data.slice()
  const row = (tensor: Tensor64, line: number) => {
    const width = tensor.shape[1]!
    return Array.from(tensor.data.subarray(line * width, (line + 1) * width))
  }
  for (let s = 0; s < samples; s++) {
    const [topK = 0, low = 0, high = 0, from = 0, to = 0] = row(limits, s)
    const own = row(logits, s)
    const seen = history && from > 0 ? row(history, from) : new Array<number>(vocab).fill(0)
    const possible =
      own.every((logit) => logit < Number.POSITIVE_INFINITY) && own.some((logit) => logit > Number.NEGATIVE_INFINITY)
    ids[s] = possible ? choose(own, seen, row(settings, s), topK, uniformAt(position.data[s]!, low, high)) : -1
    const weights = weightsOf(own)
    logprobs[s] = possible ? Math.log(weights[ids[s]!]! / sumOf(weights)) : Number.NaN
    if (after === undefined || to === 0) continue
    if (possible) seen[ids[s]!]!++
    after.set(seen, to * vocab)
  }
  return { ids, logprobs, ...(after && { history: after }) }
}

/** One setting for all samples, each with a seed and a position of its own. */
function drawn(title: string, settings: readonly number[], topK: number, vocab = 97, samples = 24): OpCase {
  const logits = normal([samples, vocab], vocab + topK, 2)
  return {
    title,
    inputs: {
      logits,
      settings: values("f32", [samples, 6], Array.from({ length: samples }, () => settings).flat()),
      limits: values(
        "i32",
        [samples, 5],
        Array.from({ length: samples }, (_, s) => [topK, s * 77_777, -s, 0, 0]).flat(),
      ),
      position: values(
        "i32",
        [samples],
        Array.from({ length: samples }, (_, s) => s * s * 1001),
      ),
    },
  }
}

/** Logits that are whole multiples of a step: many are equal, with a step beyond them all. */
function tied(title: string, settings: readonly number[], topK: number, vocab: number, step = 0.5): OpCase {
  const base = drawn(title, settings, topK, vocab, 6)
  const { logits } = base.inputs as { logits: Tensor64 }
  return {
    ...base,
    inputs: { ...base.inputs, logits: { ...logits, data: logits.data.map((x) => step * Math.round(x / step)) } },
  }
}

/** Counts of 0 to 3, every third token in the prompt. */
function histories(slots: number, vocab: number): Tensor64 {
  const counts = ints([slots, vocab], 5, 0, 4)
  return { ...counts, data: counts.data.map((count, i) => count + (i % 3 === 0 ? inPrompt : 0)) }
}

/** From and to slots of six samples: fresh, forked, in place, read only, written only, none. */
function remembered(title: string, settings: readonly number[], topK: number, vocab = 61): OpCase {
  const slots = [
    [0, 1],
    [2, 3],
    [4, 4],
    [2, 0],
    [0, 5],
    [0, 0],
  ]
  const base = drawn(title, settings, topK, vocab, slots.length)
  const limits = values(
    "i32",
    [slots.length, 5],
    slots.flatMap(([from, to], s) => [topK, s, s + 9, from!, to!]),
  )
  return { ...base, inputs: { ...base.inputs, limits, history: histories(6, vocab) } }
}

const inf = Number.POSITIVE_INFINITY
const odd = [
  [1, 3, 3, 2, -1], // a tie: the lower id
  [-inf, -inf, 4, -inf, -inf], // one token is left
  [-inf, -inf, -inf, -inf, -inf],
  [0, Number.NaN, 1, 2, 3],
  [0, inf, 1, 2, 3],
  [3e38, -3e38, 3.4e38, 0, 0], // differences that f32 cannot hold
]
function oddities(title: string, settings: readonly number[], topK: number): OpCase {
  const base = drawn(title, settings, topK, 5, odd.length)
  return { ...base, inputs: { ...base.inputs, logits: values("f32", [odd.length, 5], odd.flat()) } }
}

const neutral = [1, 1, 0, 1, 0, 0]
const cases: OpCase[] = [
  drawn("nothing is restricted", neutral, 0),
  drawn("a cold temperature", [0.3, 1, 0, 1, 0, 0], 0),
  drawn("a hot temperature and a vocabulary that is not a multiple of 4", [1e3, 1, 0, 1, 0, 0], 0, 259),
  drawn("a temperature near zero", [1e-30, 1, 0, 1, 0, 0], 0),
  drawn("greedy, whatever the other settings", [0, 0.01, 0.9, 1, 0, 0], 3),
  drawn("topK 1 is greedy too", neutral, 1),
  drawn("topK 5", neutral, 5),
  drawn("topK in heat keeps its number", [1e30, 1, 0, 1, 0, 0], 5),
  drawn("topK beyond the vocabulary", neutral, 1000),
  drawn("topP 0.5", [1, 0.5, 0, 1, 0, 0], 0),
  drawn("topP 0 keeps one token", [1, 0, 0, 1, 0, 0], 0),
  drawn("topP needs more than one sorted piece", [5, 0.97, 0, 1, 0, 0], 0, 1009, 16),
  drawn("minP 0.2", [1, 1, 0.2, 1, 0, 0], 0),
  drawn("minP 1 keeps the most probable", [1, 1, 1, 1, 0, 0], 0),
  drawn("all at once", [0.9, 0.8, 0.05, 1, 0, 0], 12),
  drawn("one token in the vocabulary", neutral, 0, 1, 2),
  drawn("more samples than tasks", neutral, 0, 7, 50),
  { ...drawn("5003 tokens, top-k and top-p", [0.9, 0.9, 0, 1, 0, 0], 400, 5003, 2), replay: true },
  drawn("20000 tokens, top-p", [1.1, 0.8, 0, 1, 0, 0], 0, 20_000, 2),
  ...[1, 2, 15, 16, 17, 255, 256, 257].map((vocab) =>
    drawn(`all at once of ${vocab}`, [0.9, 0.8, 0.02, 1, 0, 0], Math.ceil(vocab / 2), vocab, 8),
  ),
  drawn("50280 tokens, greedy", [0, 1, 0, 1, 0, 0], 0, 50_280, 1),
  drawn("50280 tokens, nothing is restricted", [0.8, 1, 0, 1, 0, 0], 0, 50_280, 1),
  drawn("50280 tokens, top-k 40", [0.8, 1, 0, 1, 0, 0], 40, 50_280, 2),
  drawn("50280 tokens, a top-k of nearly all, and min-p", [1.5, 1, 0.05, 1, 0, 0], 50_000, 50_280, 1),
  drawn("50280 tokens, top-p 0.95", [0.8, 0.95, 0, 1, 0, 0], 0, 50_280, 2),
  drawn("50280 tokens in heat, top-p 0.95", [1e4, 0.95, 0, 1, 0, 0], 0, 50_280, 1),
  drawn("topP 1e-9 keeps one token", [1.5, 1e-9, 0, 1, 0, 0], 0),
  drawn("topP 0.999999 of 20000", [0.7, 0.999999, 0, 1, 0, 0], 0, 20_000, 2),
  tied("ties with the k-th stay", [1, 1, 0, 1, 0, 0], 30, 300),
  tied("a nucleus ends among equals, of which the lower ids are in it", [1, 0.6, 0, 1, 0, 0], 0, 300),
  tied("20000 tokens, a nucleus among ties", [2, 0.7, 0, 1, 0, 0], 0, 20_000),
  tied("all logits are equal, greedy", [0, 1, 0, 1, 0, 0], 0, 20_000, 1e3),
  tied("all logits are equal, drawn", [1, 1, 0, 1, 0, 0], 0, 777, 1e3),
  tied("all logits are equal: a top-k keeps all, a nucleus the lower ids", [1, 0.303, 0.9, 1, 0, 0], 5, 777, 1e3),
  remembered("a history without penalties counts", neutral, 0),
  remembered("repetition penalty", [1, 1, 0, 1.7, 0, 0], 0),
  remembered("frequency and presence penalties", [1, 1, 0, 1, 0.6, 0.9], 0),
  remembered("penalties below zero, greedy", [0, 1, 0, 0.8, -0.5, -0.2], 0),
  remembered("every setting", [0.8, 0.9, 0.02, 1.3, 0.3, 0.4], 20),
  remembered("every setting, 17000 tokens", [0.8, 0.9, 0.02, 1.3, 0.3, 0.4], 400, 17_000),
  oddities("logits that are not finite, greedy", [0, 1, 0, 1, 0, 0], 0),
  oddities("logits that are not finite, drawn", [1, 0.9, 0.01, 1, 0, 0], 4),
]

export const specs: OpSpec[] = [
  { op: sample, reference, differentiable: [], cases },
  {
    op: recordTokens,
    reference: ({ ids, segments, history }: Record<"ids" | "segments" | "history", Tensor64>) => {
      const vocab = history.shape[1]!
      const after = history.data.slice()
      for (let s = 0; s < segments.shape[0]!; s++) {
        const [begin, end, , from, to] = segments.data.subarray(5 * s, 5 * s + 5) as unknown as number[]
        if (begin === end || to === 0) continue
        const row =
          from! > 0
            ? history.data.slice(from! * vocab, (from! + 1) * vocab).map((seen) => (seen === 0 ? 0 : inPrompt))
            : new Float64Array(vocab)
        for (let i = begin!; i < end!; i++) row[ids.data[i]!]! |= inPrompt
        after.set(row, to! * vocab)
      }
      return { history: after }
    },
    differentiable: [],
    cases: [
      {
        title: "a fresh row, a fork, one in place, nobody's and spare rows",
        inputs: {
          ids: ints([20], 3, 0, 61),
          segments: segmentsOf([0, 4, 0, 0, 1], [5, 6, 9, 2, 3], [6, 12, 1, 4, 4], [13, 17, 0, 2, 0], [0, 0, 0, 0, 5]),
          history: histories(6, 61),
        },
      },
      {
        title: "a segment of 200 rows that repeat",
        inputs: { ids: ints([200], 4, 0, 7), segments: segmentsOf([0, 200, 0, 0, 1]), history: histories(2, 7) },
        replay: true,
      },
      {
        title: "ids of spare rows are not looked at",
        inputs: {
          ids: values("i32", [3], [-1, 2, 999]),
          segments: segmentsOf([1, 2, 0, 0, 1]),
          history: histories(2, 5),
        },
      },
    ],
  },
]
