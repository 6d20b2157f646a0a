/**
 * Between the files' layouts and ours. A layout says for every element of our tensor which element of the file's it is;
 * reading that map backwards and adding is its adjoint, so one map serves an input, its gradient, an output and its cotangent.
 */
import { expect } from "../../lib/errors.ts"

export interface Layout {
  /** Our shape. */
  readonly shape: readonly number[]
  /** For each of our elements, the index of the file's element. */
  readonly source: Int32Array
  /** Elements of the file's tensor. */
  readonly elements: number
}

const product = (shape: readonly number[]) => shape.reduce((total, size) => total * size, 1)

/** The same order, perhaps under another shape. */
export function reshaped(from: readonly number[], shape: readonly number[] = from): Layout {
  expect(product(from) === product(shape), "BAD_SHAPE", () => `layout: [${from}] and [${shape}] have as many elements`)
  return { shape, source: Int32Array.from({ length: product(shape) }, (_, i) => i), elements: product(from) }
}

/** Axes in another order: `permuted([B, D, L], [0, 2, 1], [B * L, D])`. */
export function permuted(from: readonly number[], order: readonly number[], shape: readonly number[]): Layout {
  const sizes = order.map((axis) => from[axis]!)
  const strides = order.map((axis) => product(from.slice(axis + 1)))
  expect(
    order.length === from.length && product(sizes) === product(shape),
    "BAD_SHAPE",
    () => `layout: [${from}] in the order [${order}] becomes [${shape}]`,
  )
  const source = new Int32Array(product(shape))
  const at = sizes.map(() => 0)
  for (let i = 0; i < source.length; i++) {
    source[i] = at.reduce((index, position, axis) => index + position * strides[axis]!, 0)
    for (let axis = at.length - 1; axis >= 0 && ++at[axis]! === sizes[axis]!; axis--) at[axis] = 0
  }
  return { shape, source, elements: product(from) }
}

/** Channel-first sequences (batch, channels, length) as token rows (batch·length, channels). */
export function tokenRows(from: readonly number[]): Layout {
  const [batch = 1, channels = 1, length = 1] = from
  return permuted(from, [0, 2, 1], [batch * length, channels])
}

/** A vector repeated in each of `rows` rows; its gradient sums over them. */
export function everyRow(from: readonly number[], rows: number): Layout {
  const elements = product(from)
  return {
    shape: [rows, elements],
    source: Int32Array.from({ length: rows * elements }, (_, i) => i % elements),
    elements,
  }
}

/** Number of groups that a tensor B or C of the scan has: (B,N,L) one, (B,G,N,L) G, and static (D,N) one per channel. */
export function groupsOf(shape: readonly number[]): number {
  return shape.length === 2 ? shape[0]! : shape.length === 3 ? 1 : shape[1]!
}

/** B or C of the scan as rows of (groups·N); `groups` is a multiple of the tensor's own number of groups. */
export function bandRows(from: readonly number[], batch: number, length: number, groups: number): Layout {
  const own = groupsOf(from)
  const state = from.length === 2 ? from[1]! : from.at(-2)!
  const steady = from.length === 2
  expect(
    groups % own === 0 && (steady || (from[0] === batch && from.at(-1) === length)),
    "BAD_SHAPE",
    () =>
      `layout: [${from}] is (B,N,L), (B,G,N,L) or (D,N) with batch ${batch}, length ${length}, groups dividing ${groups}`,
  )
  const source = new Int32Array(batch * length * groups * state)
  let i = 0
  for (let b = 0; b < batch; b++) {
    for (let l = 0; l < length; l++) {
      for (let group = 0; group < groups; group++) {
        const kept = Math.floor(group / (groups / own))
        for (let n = 0; n < state; n++) {
          source[i++] = steady ? kept * state + n : ((b * own + kept) * state + n) * length + l
        }
      }
    }
  }
  return { shape: [batch * length, groups * state], source, elements: product(from) }
}

/** The file's data in our layout. */
export function toOurs({ source, elements }: Layout, data: Float32Array): Float32Array {
  expect(data.length === elements, "BAD_SHAPE", () => `layout: a tensor of ${elements} elements, got ${data.length}`)
  return Float32Array.from(source, (index) => data[index]!)
}

/** Our data in the file's layout; elements that we repeat are summed, in f64. */
export function toTheirs({ source, elements }: Layout, data: Float32Array): Float32Array {
  expect(data.length === source.length, "BAD_SHAPE", () => `layout: ${source.length} elements, got ${data.length}`)
  const sums = new Float64Array(elements)
  for (let i = 0; i < data.length; i++) sums[source[i]!]! += data[i]!
  return Float32Array.from(sums)
}
