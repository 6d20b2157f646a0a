/**
 * The arena of a training batch: what is in memory beside weights, gradient accumulators and the optimizer. Nothing is run
 * or timed; the planner says how much it needs.
 */
import { modelConfig } from "../lib/models/config.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { Store } from "../lib/native.ts"
import { batchProgram, optimizerDefaults } from "../lib/train/program.ts"
import type { Measurement, Outcome } from "./measure.ts"

export const summary = "arena of a training batch, plain and with checkpoint(), state 16 and 64"

const shape = { batch: 4, length: 512, streams: 4 }
const [dim, layers] = [512, 16]

/** Bytes of the states of every token, channel and layer: what a scan without recomputation would keep. */
export const materialisedBytes = (state: number) => shape.batch * shape.length * 2 * dim * state * 4 * layers

/** Peak of the arena for 16 layers of width 512 over bytes, batch 4 × 512, f32. */
export async function arenaBytes({ state, recompute }: { state: number; recompute: boolean }): Promise<number> {
  const model = new PatternModel(modelConfig({ dim, layers, vocab: 256, state }))
  const program = batchProgram(model, { ...shape, recompute, precision: "f32" }, "accumulate", optimizerDefaults)
  await using store = new Store("cpu")
  return (await store.compile(program)).peakBytes
}

const megabytes = (shape: string, bytes: number): Measurement => {
  const value = bytes / 1e6
  return { shape, unit: "MB", median: value, min: value, max: value, bytes }
}

export async function run(): Promise<Outcome> {
  const results: Measurement[] = []
  const peaks: Record<string, number> = {}
  for (const state of [16, 64]) {
    for (const recompute of [false, true]) {
      const peak = await arenaBytes({ state, recompute })
      peaks[`${state} ${recompute}`] = peak
      const title = `16 layers of 512, batch 4 × 512, state ${state}, ${recompute ? "checkpoint()" : "plain"}`
      const all = materialisedBytes(state)
      results.push({
        ...megabytes(title, peak),
        share: { value: peak / all, of: `${(all / 1e6).toFixed(0)} MB of states` },
      })
    }
  }
  const more = (recompute: boolean) => peaks[`64 ${recompute}`]! - peaks[`16 ${recompute}`]!
  const added = materialisedBytes(64) - materialisedBytes(16)
  const percent = (bytes: number) => `${((100 * bytes) / added).toFixed(1)}%`
  return {
    results,
    notes: [
      "targets at state 16: at most 900 MB plain, 300 MB with checkpoint()",
      `state 64 instead of 16 adds ${percent(more(false))} of what materialised states would add, ${percent(more(true))} with checkpoint(); target below 10%`,
    ],
  }
}
