/**
 * Elements of a strided view in row-major order, read through a small window whatever the strides are.
 *
 * A run of the view's elements is cut into boxes of its index space; a box whose elements lie within one window of the storage is read at
 * once and scattered, another is halved along the axis of its largest stride. A transposed matrix so passes through the window once for
 * every piece of the result, and no more of it is ever in memory.
 */
import { expect } from "../errors.ts"

/** Element (i, j, …) is the storage's at offset + i·strides[0] + j·strides[1] + … */
export interface View {
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  /** In elements. */
  readonly offset: number
}

/** Read at a time. */
const windowBytes = 1 << 20

/** One dimension of a box: steps in the storage and in the result. */
interface Axis {
  readonly size: number
  readonly stride: number
  readonly step: number
}

interface Box {
  readonly from: number
  readonly to: number
  readonly axes: readonly Axis[]
}

/** Whether the view's elements lie one after another. */
export function isContiguous({ shape, strides }: View): boolean {
  if (shape.includes(0)) return true
  let step = 1
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1 && strides[i] !== step) return false
    step *= shape[i]!
  }
  return true
}

/** Elements of the storage up to the view's last one; undefined beyond 2⁵³ − 1. 0 for an empty view. */
export function reachOf({ shape, strides, offset }: View): number | undefined {
  if (shape.includes(0)) return 0
  const reach = shape.reduce((last, size, i) => last + (size - 1) * strides[i]!, offset + 1)
  return Number.isSafeInteger(reach) ? reach : undefined
}

/** Fills bytes from an element of the storage on. */
export type ReadElements = (target: Uint8Array, element: number) => Promise<void>

/** Fills `target` with elements of `size` bytes from the view's element `first` on, in row-major order. */
export async function gather(
  view: View,
  size: number,
  first: number,
  target: Uint8Array,
  read: ReadElements,
): Promise<void> {
  const unit = Math.min(size, 4)
  const aligned = target.byteOffset % unit === 0 && target.length % size === 0
  expect(aligned, "BAD_INPUT", () => `gather: whole elements of ${size} bytes are expected, got ${target.length} bytes`)
  const out = unitsOf(target, unit)
  const within: readonly Axis[] = size > 4 ? [{ size: size / 4, stride: 1, step: 1 }] : []
  let room = new Uint8Array(0) // one for all boxes: garbage counts as memory until it is collected
  const fill = async ({ from, to, axes }: Box): Promise<void> => {
    const span = axes.reduce((all, { size, stride }) => all + (size - 1) * stride, 1)
    const [outer, ...inner] = axes
    if (outer !== undefined && span * size > windowBytes) {
      for (const part of halves(outer))
        await fill({
          from: from + part.at * outer.stride,
          to: to + part.at * outer.step,
          axes: [{ ...outer, size: part.size }, ...inner].filter(({ size }) => size > 1),
        })
      return
    }
    if (room.length < span * size) room = new Uint8Array(span * size)
    const window = room.subarray(0, span * size)
    await read(window, from)
    const wide = size / unit
    const scaled = axes.map(({ size, stride, step }) => ({ size, stride: stride * wide, step: step * wide }))
    scatter(unitsOf(window, unit), 0, out, to * wide, [...scaled, ...within])
  }
  for (const box of boxes(view, first, target.length / size)) await fill(box)
}

function halves({ size }: Axis): { at: number; size: number }[] {
  const half = Math.ceil(size / 2)
  return [
    { at: 0, size: half },
    { at: half, size: size - half },
  ]
}

type Units = Uint8Array | Uint16Array | Uint32Array

function unitsOf({ buffer, byteOffset, byteLength }: Uint8Array, unit: number): Units {
  if (unit === 4) return new Uint32Array(buffer, byteOffset, byteLength / 4)
  if (unit === 2) return new Uint16Array(buffer, byteOffset, byteLength / 2)
  return new Uint8Array(buffer, byteOffset, byteLength)
}

function scatter(source: Units, at: number, target: Units, to: number, axes: readonly Axis[], depth = 0): void {
  const axis = axes[depth]
  if (axis === undefined) {
    target[to] = source[at]!
    return
  }
  const { size, stride, step } = axis
  if (depth === axes.length - 1) {
    for (let i = 0; i < size; i++) target[to + i * step] = source[at + i * stride]!
    return
  }
  for (let i = 0; i < size; i++) scatter(source, at + i * stride, target, to + i * step, axes, depth + 1)
}

/** The boxes that make up `count` elements from `first` on: at most two for each dimension, and one. */
function boxes({ shape, strides, offset }: View, first: number, count: number): Box[] {
  const found: Box[] = []
  const rowsOf = shape.map((_, i) => shape.slice(i + 1).reduce((product, size) => product * size, 1))
  // Whole rows of dimension `depth` are one box; what is left of a row before and after them lies one dimension further in.
  const cut = (depth: number, from: number, first: number, count: number, to: number): void => {
    if (count === 0) return
    if (depth === shape.length) {
      found.push({ from, to, axes: [] })
      return
    }
    const [row, stride] = [rowsOf[depth]!, strides[depth]!]
    const [index, before] = [Math.floor(first / row), first % row]
    const head = before > 0 ? Math.min(count, row - before) : 0
    if (head > 0) cut(depth + 1, from + index * stride, before, head, to)
    const begin = head > 0 ? index + 1 : index
    const whole = Math.floor((count - head) / row)
    if (whole > 0) {
      const axes = shape.map((size, i) => ({ size: i === depth ? whole : size, stride: strides[i]!, step: rowsOf[i]! }))
      found.push({ from: from + begin * stride, to: to + head, axes: inOrder(axes.slice(depth)) })
    }
    const tail = count - head - whole * row
    if (tail > 0) cut(depth + 1, from + (begin + whole) * stride, 0, tail, to + head + whole * row)
  }
  cut(0, offset, first, count, 0)
  return found
}

/** Axes with more than one index, by falling strides. */
const inOrder = (axes: readonly Axis[]): Axis[] =>
  axes.filter(({ size }) => size > 1).sort((a, b) => b.stride - a.stride)
