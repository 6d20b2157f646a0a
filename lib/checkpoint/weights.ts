/** The data of weights in pieces, from a file's tensors to the rows of ours and back: no tensor is ever whole in memory. */
import { expect } from "../errors.ts"
import { dtypeSize, type TensorDtype, toF32 } from "./dtypes.ts"
import type { FileTensor, Part } from "./family.ts"
import type { TensorSource } from "./source.ts"

/** Small against any model, large enough that a read or an upload is not its overhead. A multiple of every element's size. */
const pieceBytes = 4 << 20

/** Some elements of one of our parameters as the file has them. */
export interface Piece {
  /** Our parameter. */
  readonly name: string
  /** Its first element here. */
  readonly at: number
  /** As the file has them, in `dtype`; the next piece but one overwrites them. */
  readonly dtype: TensorDtype
  readonly bytes: Uint8Array
  /** The same as f32, made when it is asked for. */
  readonly floats: Float32Array
}

/** Where a piece lies: elements of a tensor of the file from `first` on, which are those of our parameter from `at` on. */
interface Cut {
  readonly fileName: string
  readonly dtype: TensorDtype
  readonly first: number
  readonly count: number
  readonly name: string
  readonly at: number
}

function* cuts(source: TensorSource, tensors: readonly FileTensor[]): Generator<Cut> {
  for (const { fileName, shape, parts } of tensors) {
    const { dtype } = source.tensors.get(fileName)!
    const size = dtypeSize[dtype]
    const columns = rowElements(shape)
    for (const { name, row, fileRow, rows } of parts) {
      const elements = rows * columns
      for (let done = 0; done < elements; ) {
        const count = pieceElements(columns, done, elements, size)
        yield { fileName, dtype, first: fileRow * columns + done, count, name, at: row * columns + done }
        done += count
      }
    }
  }
}

/** A piece that is on its way into a buffer. */
interface Reading {
  readonly cut: Cut
  readonly bytes: Uint8Array
  readonly done: Promise<void>
}

/**
 * Reads tensors of a file, whose names and shapes have been checked, piece by piece; the next one while the consumer has one.
 * @throws SelscanError NOT_FINITE for a NaN or an infinity, else as the file's `readInto`
 */
export async function* readPieces(source: TensorSource, tensors: readonly FileTensor[]): AsyncGenerator<Piece> {
  const buffers = [new Uint8Array(pieceBytes), new Uint8Array(pieceBytes)]
  const begin = (cut: Cut, buffer: Uint8Array): Reading => {
    const size = dtypeSize[cut.dtype]
    const bytes = buffer.subarray(0, cut.count * size)
    const done = source.readInto(cut.fileName, bytes, cut.first * size)
    done.catch(() => {}) // it is thrown where the piece is waited for, if anybody still does
    return { cut, bytes, done }
  }
  const finish = async ({ cut: { fileName, dtype, first, name, at }, bytes, done }: Reading): Promise<Piece> => {
    await done
    const where = `${source.path}: ${fileName}`
    if (dtype !== "BF16") {
      const floats = toF32(dtype, bytes)
      checkFinite(floats, where, first)
      return { name, at, dtype, bytes, floats }
    }
    if (!areFinite(bytes)) checkFinite(toF32(dtype, bytes), where, first)
    let floats: Float32Array | undefined
    return {
      name,
      at,
      dtype,
      bytes,
      get floats() {
        floats ??= toF32(dtype, bytes)
        return floats
      },
    }
  }
  let [reading, count]: [Reading | undefined, number] = [undefined, 0]
  for (const cut of cuts(source, tensors)) {
    const next = begin(cut, buffers[count++ % 2]!)
    if (reading) yield await finish(reading)
    reading = next
  }
  if (reading) yield await finish(reading)
}

/** Reads so many elements of one of our parameters, from one of them on. */
export type ReadElements = (part: Part, at: number, count: number) => Promise<Uint8Array>

/** The bytes of a file's tensor, piece by piece; `read` gives them in the file's dtype, whose elements have `size` bytes. */
export async function* filePieces(
  { shape, parts }: FileTensor,
  size: number,
  read: ReadElements,
): AsyncGenerator<Uint8Array> {
  const columns = rowElements(shape)
  for (const part of parts) {
    const elements = part.rows * columns
    for (let done = 0; done < elements; ) {
      const count = pieceElements(columns, done, elements, size)
      yield await read(part, part.row * columns + done, count)
      done += count
    }
  }
}

/** Elements of the piece after so many: whole rows, or a part of one row, of a multiple of 32 elements where it is not the last. */
function pieceElements(columns: number, done: number, elements: number, size: number): number {
  const most = pieceBytes / size
  if (columns > most) return Math.min(most, columns - (done % columns))
  return Math.min(elements - done, most - (most % columns))
}

/** Elements of one row: of one index of the first dimension. */
export const rowElements = (shape: readonly number[]) => shape.slice(1).reduce((product, dim) => product * dim, 1)

/**
 * Whether bf16 values are finite, two at a time: only where all bits of an exponent are set does adding 1 to it carry into the bit of the
 * sign, which was cleared, and no carry leaves a half: 0x7fff + 0x0080 < 0x10000.
 */
function areFinite({ buffer, byteOffset, byteLength }: Uint8Array): boolean {
  const halves = new Uint16Array(buffer, byteOffset, byteLength / 2)
  const pairs = new Uint32Array(buffer, byteOffset, halves.length >> 1)
  let carries = 0
  for (let i = 0; i < pairs.length; i++) carries |= (pairs[i]! & 0x7fff7fff) + 0x00800080
  if (halves.length % 2 === 1) carries |= (halves.at(-1)! & 0x7fff) + 0x0080
  return (carries & 0x80008000) === 0
}

/** Holds weights to be numbers; `first` is the index of the first of them in its tensor. */
export function checkFinite(values: Float32Array, where: string, first: number): void {
  let bad = -1
  for (let i = 0; i < values.length && bad < 0; i++) if (!Number.isFinite(values[i])) bad = i
  expect(
    bad < 0,
    "NOT_FINITE",
    () => `${where}: finite weights are expected, got ${values[bad]} at index ${first + bad}; get the file again`,
    { index: first + bad },
  )
}
