/**
 * Comparing what was computed with what a golden file expects, element by element: |got − want| ≤ atol + rtol·|want|.
 */
import { expect } from "../../lib/errors.ts"
import type { GoldenCase, Tolerance } from "./case.ts"

/** One tensor compared; `worst` is the element that lies furthest outside its tolerance, or nearest to leaving it. */
export interface Comparison {
  readonly name: string
  readonly passed: boolean
  readonly elements: number
  readonly worst: {
    readonly index: number
    readonly got: number
    readonly want: number
    readonly difference: number
    readonly tolerance: number
  }
}

export interface CompareOptions {
  /** Compare only the last so many columns: of what is expected, `got` holds those. */
  readonly columns?: number
  /** Default: the file's own. */
  readonly tolerance?: Tolerance
}

/**
 * Compares a computed tensor with the one of that name, in the file's layout.
 *
 * Equal infinities agree, and NaN agrees with NaN.
 */
export function compare(golden: GoldenCase, name: string, got: Float32Array, options: CompareOptions = {}): Comparison {
  const { columns } = options
  const all = golden.floats(name)
  const want = columns === undefined ? all : lastColumns(all, golden.shape(name).at(-1) ?? 1, columns)
  expect(
    got.length === want.length,
    "BAD_SHAPE",
    () => `${golden.path}: ${name} has ${want.length} elements, got ${got.length}`,
  )
  const { atol, rtol } = options.tolerance ?? golden.tolerance(name, all)
  let worst = { index: 0, got: got[0] ?? 0, want: want[0] ?? 0, difference: 0, tolerance: atol }
  let most = -1
  for (let index = 0; index < want.length; index++) {
    const [g, w] = [got[index]!, want[index]!]
    const same = Object.is(g, w) || g === w
    const difference = same ? 0 : Math.abs(g - w)
    const tolerance = atol + rtol * Math.abs(w)
    const excess = same ? 0 : Number.isFinite(difference) ? difference / tolerance : Number.POSITIVE_INFINITY
    if (excess <= most) continue
    most = excess
    worst = { index, got: g, want: w, difference, tolerance }
  }
  return { name, passed: most <= 1, elements: want.length, worst }
}

/** Compares two tensors element by element, without any tolerance: the first one that differs is the worst. */
export function identical(name: string, got: Float32Array, want: Float32Array): Comparison {
  const lengths = `${name} has ${want.length} elements, got ${got.length}`
  expect(got.length === want.length, "BAD_SHAPE", () => lengths)
  const first = want.findIndex((value, i) => !Object.is(value, got[i]))
  const index = Math.max(first, 0)
  const [g, w] = [got[index] ?? 0, want[index] ?? 0]
  const worst = { index, got: g, want: w, difference: Math.abs(g - w), tolerance: 0 }
  return { name, passed: first < 0, elements: want.length, worst }
}

/** `grad.A: largest difference 3.1e-4 (tolerance 1.2e-5) at 17: expected 0.51, got 0.5103`. */
export function describe({ name, worst }: Comparison): string {
  const { index, got, want, difference, tolerance } = worst
  const figures = `largest difference ${difference.toExponential(2)} (tolerance ${tolerance.toExponential(2)})`
  return `${name}: ${figures} at ${index}: expected ${want}, got ${got}`
}

function lastColumns(data: Float32Array, width: number, columns: number): Float32Array {
  return data.filter((_, i) => i % width >= width - columns)
}
