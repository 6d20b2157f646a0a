/**
 * Bursts: several tokens in one run of a program of one row, each step taking the token that the step before has sampled. Nothing of
 * JavaScript stands between them, and the device never waits for it.
 *
 * The first step reads the slot of the state that counts and writes the spare one, where all others go on. So the state before the burst
 * is there until the last of its tokens was asked for: whoever stops earlier holds that state and the tokens since, which are run with
 * what follows.
 */
import type { HostArray } from "../native.ts"
import type { SlotTurn } from "./session-slots.ts"

export interface BurstLimits {
  /** Tokens at most. Beyond some tens the way to the device and back is nothing beside them. */
  readonly tokens: number
  /** How long one may take. */
  readonly milliseconds: number
}

/**
 * Thirty times a second text still comes as it is written, and a model that takes longer for two tokens gives each by itself. The way to the device and
 * back, to threads that sleep and caches that a model of 260 MB has emptied, takes 0.4 ms; of the demo model 0.05 ms, where a token takes 0.1 ms
 * (AMD EPYC (Zen 5), two threads, 2026-11-22).
 */
export const burstLimits: BurstLimits = { tokens: 64, milliseconds: 33 }

/** Inputs of `count` steps, from those of the first: one row at the positions that follow, in the slot that the first has written. */
export function burstInputs(
  first: Readonly<Record<string, HostArray>>,
  { to }: SlotTurn,
  count: number,
): Record<string, HostArray> {
  const all = Object.fromEntries(Object.entries(first).map(([name, array]) => [name, repeated(array, count)]))
  const [segments, limits, position] = [all.segments!, all.limits!, all.position!]
  for (let step = 1; step < count; step++) {
    segments[5 * step + 2]! += step
    segments[5 * step + 3] = to
    limits[5 * step + 3] = to
    position[step]! += step
  }
  return all
}

function repeated(array: HostArray, count: number): HostArray {
  const all = new (array.constructor as new (length: number) => HostArray)(array.length * count)
  for (let i = 0; i < count; i++) all.set(array, i * array.length)
  return all
}
