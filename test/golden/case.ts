/**
 * One golden case: a safetensors file whose `__metadata__.case` names the op, its attributes and the tolerances.
 *
 * Tensors are `in.*` inputs, `out.*` expected outputs, `dout.*` cotangents of outputs, `grad.*` gradients of
 * Σ dout·out with respect to inputs, `aux.*` tables for information.
 */
import { readFile } from "node:fs/promises"
import { toF32 } from "../../lib/checkpoint/dtypes.ts"
import { parseSafetensors, type SafetensorsBytes } from "../../lib/checkpoint/safetensors.ts"
import { expect, SelscanError } from "../../lib/errors.ts"

export interface Tolerance {
  readonly atol: number
  readonly rtol: number
}

/** The JSON text of a file's metadata, as far as a runner reads it. */
interface Metadata {
  readonly op?: unknown
  readonly attrs?: Readonly<Record<string, unknown>>
  readonly tolerance?: Readonly<Record<string, Tolerance | undefined>>
  readonly [other: string]: unknown
}

/** Without a stated tolerance: what f32 does on sums of a few hundred terms, relative to the tensor's largest value. */
const defaultTolerance: Tolerance = { atol: 1e-5, rtol: 1e-4 }

export class GoldenCase {
  readonly path: string
  readonly op: string
  readonly attrs: Readonly<Record<string, unknown>>
  readonly metadata: Metadata
  readonly #file: SafetensorsBytes
  readonly #read = new Set<string>()

  constructor(path: string, file: SafetensorsBytes) {
    this.path = path
    this.#file = file
    const text = file.metadata.case
    expect(text !== undefined, "BAD_FILE", () => `${path}: metadata has a case, got none; give a golden file`)
    this.metadata = parseMetadata(text, path)
    this.op = String(this.metadata.op)
    this.attrs = this.metadata.attrs ?? {}
  }

  /** Names of all tensors that begin with a prefix, without it: `names("out.")`. */
  names(prefix: string): string[] {
    return [...this.#file.tensors.keys()]
      .filter((name) => name.startsWith(prefix))
      .map((name) => name.slice(prefix.length))
  }

  has(name: string): boolean {
    return this.#file.tensors.has(name)
  }

  shape(name: string): readonly number[] {
    const tensor = this.#file.tensors.get(name)
    expect(tensor !== undefined, "NOT_FOUND", () => `${this.path}: tensor ${name} is expected, got none`, { name })
    return tensor.shape
  }

  /** A tensor as f32, whatever its dtype. */
  floats(name: string): Float32Array {
    this.shape(name)
    this.#read.add(name)
    return this.#file.readF32(name)
  }

  /** A tensor of whole numbers as i32. */
  integers(name: string): Int32Array {
    this.shape(name)
    this.#read.add(name)
    const { dtype } = this.#file.tensors.get(name)!
    const bytes = this.#file.read(name)
    const values = dtype === "I64" ? Array.from(new BigInt64Array(bytes.buffer), Number) : toF32(dtype, bytes)
    const exact = dtype === "I32" ? new Int32Array(bytes.buffer) : Int32Array.from(values)
    expect(
      dtype === "I32" || exact.every((value, i) => value === values[i]),
      "BAD_FILE",
      () => `${this.path}: ${name} holds whole numbers of 32 bits, got others`,
    )
    return exact
  }

  /** Inputs and cotangents that nobody has read: a case that ignores one has not been run. */
  unread(): string[] {
    return [
      ...this.names("in.").map((name) => `in.${name}`),
      ...this.names("dout.").map((name) => `dout.${name}`),
    ].filter((name) => !this.#read.has(name))
  }

  /** The file's tolerance of a tensor, or a default whose atol is relative to the largest finite value of `want`. */
  tolerance(name: string, want: Float32Array): Tolerance {
    const stated = this.metadata.tolerance?.[name]
    if (stated !== undefined) return stated
    const largest = want.reduce((most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most), 0)
    return { atol: defaultTolerance.atol * Math.max(1, largest), rtol: defaultTolerance.rtol }
  }

  /** A numeric attribute, or `absent` where the case has none. */
  number(name: string, absent: number): number {
    const value = this.attrs[name] ?? absent
    expect(typeof value === "number", "BAD_FILE", () => `${this.path}: attribute ${name} is a number, got ${value}`)
    return value
  }

  flag(name: string, absent: boolean): boolean {
    const value = this.attrs[name] ?? absent
    expect(
      typeof value === "boolean",
      "BAD_FILE",
      () => `${this.path}: attribute ${name} is true or false, got ${value}`,
    )
    return value
  }
}

/** Reads a case whole: the files are small. */
export async function readCase(path: string): Promise<GoldenCase> {
  try {
    return new GoldenCase(path, parseSafetensors(await readFile(path), path))
  } catch (cause) {
    if (cause instanceof SelscanError) throw cause
    const message = `${path}: a golden file is expected, got ${(cause as Error).message}; check the path`
    throw new SelscanError("NOT_FOUND", message, { path }, { cause })
  }
}

function parseMetadata(text: string, path: string): Metadata {
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (cause) {
    throw new SelscanError(
      "BAD_FILE",
      `${path}: metadata.case is JSON, got ${(cause as Error).message}`,
      { path },
      { cause },
    )
  }
  expect(
    typeof parsed === "object" && parsed !== null && !Array.isArray(parsed),
    "BAD_FILE",
    () => `${path}: metadata.case is a JSON object, got ${text.slice(0, 40)}`,
  )
  return parsed as Metadata
}
