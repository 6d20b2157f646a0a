/**
 * Measurements as a table for people.
 */
import type { Measurement } from "./measure.ts"

/** Four significant digits, never an exponent: 0.01234, 12.34, 12340. */
export function digits(value: number): string {
  if (value === 0) return "0"
  const decimals = 3 - Math.floor(Math.log10(Math.abs(value)))
  return value.toFixed(Math.min(6, Math.max(0, decimals)))
}

function cells({ shape, median, min, max, unit, rate, share }: Measurement): string[] {
  return [
    shape,
    digits(median),
    min === max ? "" : `${digits(min)} – ${digits(max)}`,
    unit,
    rate ? `${digits(rate.value)} ${rate.unit}` : "",
    share ? `${(100 * share.value).toFixed(0)}% of ${share.of}` : "",
  ]
}

/** Columns padded to their widest cell, numbers to the right; empty columns are left out. */
export function aligned(
  heads: readonly string[],
  rows: readonly (readonly string[])[],
  right: readonly number[],
): string {
  const used = heads.map((_, i) => i).filter((i) => rows.some((row) => row[i] !== ""))
  const widths = heads.map((head, i) => Math.max(head.length, ...rows.map((row) => row[i]!.length)))
  const line = (row: readonly string[]) =>
    used
      .map((i) => (right.includes(i) ? row[i]!.padStart(widths[i]!) : row[i]!.padEnd(widths[i]!)))
      .join("  ")
      .trimEnd()
  return [heads, ...rows].map(line).join("\n")
}

export function table(results: readonly Measurement[]): string {
  return aligned(["", "median", "min – max", "unit", "rate", "share"], results.map(cells), [1, 2, 4])
}
