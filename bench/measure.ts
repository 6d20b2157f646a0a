/**
 * What a benchmark returns, and how samples are taken and summed up.
 */
import { Bench as Tinybench } from "tinybench"

/** The middle and the ends of a set of samples. */
export interface Statistics {
  readonly median: number
  readonly min: number
  readonly max: number
}

/** One line of a table and of `bench/results/cpu.jsonl`. */
export interface Measurement extends Statistics {
  /** What was measured; the same words in every run, so that two commits can be compared. */
  readonly shape: string
  readonly unit: string
  /** What one sample moves or computes at least. */
  readonly bytes?: number
  readonly operations?: number
  /** The same number said another way: `{ value: 41.2, unit: "GB/s" }`. */
  readonly rate?: { readonly value: number; readonly unit: string }
  /** How much of what was possible in this very run: `{ value: 0.8, of: "41 GB/s read" }`. */
  readonly share?: { readonly value: number; readonly of: string }
}

export interface Outcome {
  readonly results: readonly Measurement[]
  /** Sentences about what the numbers say: targets met or missed, what was left out and why. */
  readonly notes?: readonly string[]
}

/** What every `*.bench.ts` exports. */
export interface BenchModule {
  /** One line for `--help`. */
  readonly summary: string
  readonly run: () => Promise<Outcome>
}

export function statistics(samples: readonly number[]): Statistics {
  const sorted = samples.toSorted((a, b) => a - b)
  const middle = (sorted.length - 1) / 2
  const median = (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2
  return { median, min: sorted[0]!, max: sorted.at(-1)! }
}

/** Of what was measured in turns, round by round: how many times the one is the other. */
export function ratios(above: readonly number[], below: readonly number[]): Statistics {
  return statistics(above.map((value, round) => value / below[round]!))
}

/** Divides every number: milliseconds of a run to nanoseconds of an element, say. */
export function scaled({ median, min, max }: Statistics, factor: number): Statistics {
  return { median: median * factor, min: min * factor, max: max * factor }
}

/**
 * Milliseconds of `fn` over at least ten calls and `time` milliseconds, after a warm-up of two calls. Where `fn` resolves
 * with a number, that is the duration: what a kernel took, without the way to it.
 */
export async function timed(
  fn: () => Promise<number | undefined>,
  { time = 400, iterations = 10 } = {},
): Promise<Statistics> {
  const bench = new Tinybench({
    time,
    iterations,
    warmupIterations: 2,
    warmupTime: 0,
    throws: true,
    retainSamples: true,
  })
  bench.add("one", async () => {
    const began = performance.now()
    const duration = await fn()
    // The budget of time is for all of it.
    const cost = performance.now() - began
    return duration === undefined ? undefined : { overriddenDuration: duration, overriddenIterationCost: cost }
  })
  await bench.run()
  const { result } = bench.tasks[0]!
  if (result.state !== "completed") throw new Error(`bench: a measurement ended as ${result.state}`)
  return statistics(result.latency.samples ?? [])
}
