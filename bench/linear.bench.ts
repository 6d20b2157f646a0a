/**
 * The products of a linear layer on one thread, and sgemm of OpenBLAS on the same sizes, taking turns in one native process
 * (bench/native/linear.cpp).
 */
import { expect } from "../lib/errors.ts"
import { devices } from "../lib/native.ts"
import { type Measurement, type Outcome, ratios, statistics } from "./measure.ts"
import { nativeBench } from "./native.ts"

export const summary = "products of a linear layer beside OpenBLAS, one thread, in turns"

interface LinearTimes {
  readonly fmaGFlops: number
  /** 0 where the processor has no instruction for products of bf16. */
  readonly halfGFlops: number
  readonly difference: number
  readonly kernels: string
  readonly missing: string
  readonly milliseconds: Readonly<Record<string, readonly number[]>>
}

/** A square layer as in the papers, a prompt's and a training batch's of the presets, and rows as in decoding. */
const shapes = [
  [512, 1024, 1024],
  [512, 768, 3072],
  [8192, 256, 1024],
  [8, 768, 3072],
] as const

function measure([rows, inner, out]: (typeof shapes)[number]): { results: Measurement[]; times: LinearTimes } {
  const words = { rounds: 15, rows, in: inner, out, threads: 1 }
  const times = nativeBench<LinearTimes>("linear", ...Object.entries(words).flatMap(([k, v]) => [`--${k}`, String(v)]))
  expect(times.difference < 1e-4, "NATIVE", () => `linear: our f32 and sgemm differ by ${times.difference}`)
  const of = `${rows} × ${inner} × ${out}`
  const operations = 2 * rows * inner * out
  const results = Object.entries(times.milliseconds).map(([name, milliseconds]): Measurement => {
    const peak = name.endsWith("bf16") && times.halfGFlops > 0 ? times.halfGFlops : times.fmaGFlops
    const taken = statistics(milliseconds)
    const value = operations / taken.median / 1e6
    return {
      shape: `${of}: ${name}`,
      unit: "ms",
      ...taken,
      operations,
      rate: { value, unit: "GFLOP/s" },
      share: { value: value / peak, of: `${Math.round(peak)} GFLOP/s` },
    }
  })
  const { sgemm, ...ours } = times.milliseconds
  for (const name of sgemm ? (["bf16", "f32"] as const) : []) {
    results.push({ shape: `${of}: sgemm over ${name}`, unit: "×", ...ratios(sgemm!, ours[name]!) })
  }
  return { results, times }
}

export async function run(): Promise<Outcome> {
  // An OpenBLAS older than the processor takes its kernels for AVX2: half the speed, and no fair neighbour.
  if (/^(avx512|amx)/.test(devices()[0]!.instructionSet ?? "")) process.env.OPENBLAS_CORETYPE ??= "SkylakeX"
  const all = shapes.map(measure)
  const { missing, kernels } = all[0]!.times
  return {
    results: all.flatMap(({ results }) => results),
    notes: [missing ? `sgemm: not measured, ${missing}` : `sgemm: kernels of OpenBLAS for ${kernels}`],
  }
}
