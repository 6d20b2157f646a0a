/**
 * How well the device's scan remembers: its exponential of arguments near 0, where 1 − exp is what a long memory loses.
 */
import { trace } from "../lib/graph/program.ts"
import { Store } from "../lib/native.ts"
import { selectiveScan } from "../lib/ops/selective-scan.ts"
import type { GpuMeasurement } from "./gpu.ts"
import { withSpread } from "./gpu-device.ts"

const channels = 4096

/**
 * One row of a scan of state 1 without input is h = exp(Δ·A)·h0: relative errors of 1 − exp2(v) for v from −10⁻³ to −10⁻⁶.
 * The floor is what rounding the exact result to f32 costs, 2⁻²⁵ of 1.
 */
export async function forgetting(device: string): Promise<GpuMeasurement[]> {
  await using store = new Store(device)
  const program = trace("forgetting", (t) => {
    const one = (name: string, shape: readonly number[]) => t.input(name, "f32", shape)
    const { final } = selectiveScan(
      {
        x: one("x", [1, channels]),
        delta: one("delta", [1, channels]),
        A: one("A", [channels, 1]),
        B: one("B", [1, 1]),
        C: one("C", [1, 1]),
        segments: t.input("segments", "i32", [1, 5]),
        initial: one("initial", [1, channels, 1]),
      },
      { softplus: false },
    )
    return { final }
  })
  const executable = await store.compile(program)
  const delta = Float32Array.from({ length: channels }, (_, i) => 10 ** (-3 - (3 * i) / (channels - 1)) * Math.LN2)
  const { final } = await executable.run({
    x: new Float32Array(channels),
    delta,
    A: new Float32Array(channels).fill(-1),
    B: Float32Array.of(1),
    C: Float32Array.of(1),
    segments: Int32Array.of(0, 1, 0, 0, 0),
    initial: new Float32Array(channels).fill(1),
  })
  const lost = Array.from(delta, (value) => -Math.expm1(-value))
  const errors = lost.map((exact, i) => Math.abs(1 - final![i]! - exact) / exact)
  const rounding = lost.map((exact) => Math.abs(1 - Math.fround(1 - exact) - exact) / exact)
  const [got, least] = [withSpread(errors), withSpread(rounding)]
  const share = {
    value: got.max > 0 ? least.max / got.max : 1,
    of: "the largest error, that of rounding the result to f32",
  }
  const shape = "1 − exp2(v), v from −1e-3 to −1e-6, in the scan"
  return [{ shape, dtype: "f32", unit: "relative error", ...got, floor: least.max, share }]
}
