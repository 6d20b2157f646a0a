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
  /** 0 without AVX512-VNNI. */
  readonly int8GOps: number
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
  [512, 1536, 6144],
  [16, 1536, 6144],
  [8, 768, 3072],
] as const

/** Three products of bf16 at 2.1 TFLOP/s of AMX are 0.7, where sgemm of AVX-512 has some 0.13 to 0.26. */
const splitTarget = 3

function peakOf(name: string, { halfGFlops, fmaGFlops, int8GOps }: LinearTimes): number {
  if (name === "bf16x3") return halfGFlops / 3
  return (name === "int8" && int8GOps) || (name.endsWith("bf16") && halfGFlops) || fmaGFlops
}

function measure([rows, inner, out]: (typeof shapes)[number]): { results: Measurement[]; times: LinearTimes } {
  const words = { rounds: 15, rows, in: inner, out, threads: 1 }
  const times = nativeBench<LinearTimes>("linear", ...Object.entries(words).flatMap(([k, v]) => [`--${k}`, String(v)]))
  expect(times.difference < 1e-4, "NATIVE", () => `linear: our f32 and sgemm differ by ${times.difference}`)
  const of = `${rows} × ${inner} × ${out}`
  const operations = 2 * rows * inner * out
  const results = Object.entries(times.milliseconds).map(([name, milliseconds]): Measurement => {
    const peak = peakOf(name, times)
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
  for (const name of sgemm ? ["bf16", "f32", "bf16x3"].filter((one) => one in ours) : []) {
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
    notes: [
      missing ? `sgemm: not measured, ${missing}` : `sgemm: kernels of OpenBLAS for ${kernels}`,
      splitNote(all[0]!.times),
    ],
  }
}

/** The f32 grade, which only tiles make faster than f32 itself. */
function splitNote({ milliseconds: { bf16x3, sgemm } }: LinearTimes): string {
  if (bf16x3 === undefined) return "f32 grade: no AMX on this processor: bf16x3 runs f32's kernels"
  const of = `target of the f32 grade, bf16x3, at least ${splitTarget} times sgemm at ${shapes[0].join(" × ")}`
  if (sgemm === undefined) return `${of}: not measured`
  const { median } = ratios(sgemm, bf16x3)
  return `${of}: ${median >= splitTarget ? "met" : "missed"}, ${median.toFixed(2)} times`
}
