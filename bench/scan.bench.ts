/**
 * Selective scan, f32, with D, z and bias: our kernel on one thread and on two, a plain scalar loop with expf, and forward and
 * backward as in training, taking turns in one native process (bench/native/scan.cpp).
 */
import { expect } from "../lib/errors.ts"
import { type Measurement, type Outcome, ratios, statistics } from "./measure.ts"
import { nativeBench } from "./native.ts"

export const summary = "selective scan beside a plain scalar loop, one thread and two, in turns"

interface ScanTimes {
  readonly usableCores: number
  readonly difference: number
  readonly plain: readonly number[]
  readonly one: readonly number[]
  readonly two: readonly number[]
  /** Forward and backward on one thread. */
  readonly training: readonly number[]
}

function measure(state: number, rounds: number): { results: Measurement[]; times: ScanTimes } {
  const times = nativeBench<ScanTimes>("scan", "--state", String(state), "--rounds", String(rounds))
  expect(times.difference < 1e-4, "NATIVE", () => `scan: kernel and plain loop differ by ${times.difference}`)
  const of = `512 × 1024, state ${state}`
  const unit = "ns per channel·token"
  const results = [
    { shape: `${of}: plain loop`, unit, ...statistics(times.plain) },
    { shape: `${of}: one thread`, unit, ...statistics(times.one) },
    { shape: `${of}: two threads`, unit, ...statistics(times.two) },
    { shape: `${of}: forward and backward, one thread`, unit, ...statistics(times.training) },
    { shape: `${of}: plain loop over one thread`, unit: "×", ...ratios(times.plain, times.one) },
    { shape: `${of}: one thread over two`, unit: "×", ...ratios(times.one, times.two) },
  ]
  return { results, times }
}

export async function run(): Promise<Outcome> {
  const main = measure(16, 21)
  const wide = measure(64, 7)
  const [, one, , training, overPlain, overOne] = main.results
  const verdict = (holds: boolean) => (holds ? "met" : "missed")
  return {
    results: [...main.results, ...wide.results],
    notes: [
      `target at most 6 ns on one thread: ${verdict(one!.median <= 6)}, ${one!.median.toFixed(2)} ns`,
      `target forward and backward at most 25 ns: ${verdict(training!.median <= 25)}, ${training!.median.toFixed(1)} ns`,
      `target at least 15 times the plain loop: ${verdict(overPlain!.median >= 15)}, ${overPlain!.median.toFixed(1)} times`,
      main.times.usableCores < 2
        ? "target of two threads: not measured, this process has one core"
        : `target two threads at least 1.7 times one: ${verdict(overOne!.median >= 1.7)}, ${overOne!.median.toFixed(2)} times`,
    ],
  }
}
