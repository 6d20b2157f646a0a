/**
 * What a test of an op states: its f64 reference and its cases. `test/ops.test.ts` runs them all.
 */

import type { AnyOp } from "../../lib/graph/op.ts"
import type { Attribute, Dtype } from "../../lib/graph/value.ts"

/** A tensor as the references see it: exact f64 values of what the kernel receives. */
export interface Tensor64 {
  readonly dtype: Dtype
  readonly shape: readonly number[]
  readonly data: Float64Array
}

export interface OpCase {
  readonly title: string
  readonly inputs: Readonly<Record<string, Tensor64 | undefined>>
  readonly attrs?: Readonly<Record<string, Attribute>>
  /** Allowed difference relative to the largest magnitude of the reference output; say why where it is not the default. */
  readonly rtol?: number
  readonly slow?: boolean
  readonly bench?: boolean
  /** Becomes a replay file whatever its size: the smallest case in which some barrier of a CUDA kernel is needed. */
  readonly replay?: boolean
}

export interface OpSpec {
  // biome-ignore lint/suspicious/noExplicitAny: specs of all ops stand in one list
  readonly op: ((inputs: any, attrs?: any) => any) & { readonly definition: AnyOp }
  // biome-ignore lint/suspicious/noExplicitAny: each reference destructures its own op's inputs
  readonly reference: (inputs: any, attrs: any) => Record<string, Float64Array>
  /** Inputs whose gradient is held against finite differences of the reference. */
  readonly differentiable: readonly string[]
  /** Outputs through which gradients flow; the first output alone unless stated. */
  readonly cotangents?: readonly string[]
  /** Multiply-adds of one run, where they are more than the elements of the inputs. */
  // biome-ignore lint/suspicious/noExplicitAny: each reads its own op's inputs and attributes
  readonly work?: (inputs: any, attrs: any) => number
  /**
   * Mixtures of bf16 and f32 that models on a GPU have: the inputs that are bf16 and, where it is not that of the first, the
   * dtype of the outputs. Default: all activations are bf16.
   */
  readonly bf16?: readonly { readonly inputs: readonly string[]; readonly dtype?: "f32" | "bf16" }[]
  readonly cases: readonly OpCase[]
}

/** A small, well-mixed generator (xorshift32 seeded through a multiplicative hash): cases are the same on every machine. */
export function random(seed: number): () => number {
  let state = (Math.imul(seed + 1, 0x9e3779b1) ^ 0x5bf03635) >>> 0 || 1
  return () => {
    state ^= state << 13
    state >>>= 0
    state ^= state >>> 17
    state ^= state << 5
    state >>>= 0
    return state / 2 ** 32
  }
}

const size = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1)

function tensor(dtype: Dtype, shape: readonly number[], next: (index: number) => number): Tensor64 {
  return { dtype, shape, data: Float64Array.from({ length: size(shape) }, (_, i) => next(i)) }
}

/** f32 values from N(0, scale²). */
export function normal(shape: readonly number[], seed: number, scale = 1): Tensor64 {
  const next = random(seed)
  return tensor("f32", shape, () =>
    Math.fround(scale * Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())),
  )
}

/** f32 values from U(low, high). */
export function uniform(shape: readonly number[], seed: number, low = 0, high = 1): Tensor64 {
  const next = random(seed)
  return tensor("f32", shape, () => Math.fround(low + (high - low) * next()))
}

/** Whole numbers from [low, high). */
export function ints(shape: readonly number[], seed: number, low: number, high: number): Tensor64 {
  const next = random(seed)
  return tensor("i32", shape, () => low + Math.floor((high - low) * next()))
}

export function values(dtype: Dtype, shape: readonly number[], data: ArrayLike<number>): Tensor64 {
  return tensor(dtype, shape, (i) => (dtype === "f32" ? Math.fround(data[i]!) : data[i]!))
}

/** The same values as bf16 weights: rounded to nearest even, the reference sees the rounded ones. */
export function bf16(from: Tensor64): Tensor64 {
  const word = new Uint32Array(1)
  const float = new Float32Array(word.buffer)
  return tensor("bf16", from.shape, (i) => {
    float[0] = from.data[i]!
    const bits = word[0]!
    word[0] = ((bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000) >>> 0
    return float[0]!
  })
}

/** Lines [begin, end, position, from, to] of a segments input. */
export function segmentsOf(...lines: readonly (readonly [number, number, number?, number?, number?])[]): Tensor64 {
  return values(
    "i32",
    [lines.length, 5],
    lines.flatMap(([begin, end, position = 0, from = 0, to = 0]) => [begin, end, position, from, to]),
  )
}

/** One line of a segments input, as a reference reads it. */
export function segmentLine({ data }: Tensor64, s: number): readonly [number, number, number, number, number] {
  const [begin, end, position, from, to] = data.subarray(5 * s, 5 * s + 5)
  return [begin!, end!, position!, from!, to!]
}
