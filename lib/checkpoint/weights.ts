/** The data of weights in pieces, from a file's tensors to the rows of ours and back: no tensor is ever whole in memory. */
import { expect } from "../errors.ts"
import { dtypeSize, toF32 } from "./dtypes.ts"
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
  /** As the file has them; the next piece overwrites them. */
  readonly bytes: Uint8Array
  /** The same as f32. */
  readonly floats: Float32Array
}

/**
 * Reads tensors of a file, whose names and shapes have been checked, piece by piece.
 * @throws SelscanError NOT_FINITE for a NaN or an infinity, else as the file's `readInto`
 */
export async function* readPieces(source: TensorSource, tensors: readonly FileTensor[]): AsyncGenerator<Piece> {
  const buffer = new Uint8Array(pieceBytes)
  for (const { fileName, shape, parts } of tensors) {
    const { dtype } = source.tensors.get(fileName)!
    const size = dtypeSize[dtype]
    const columns = rowElements(shape)
    for (const { name, row, fileRow, rows } of parts) {
      const elements = rows * columns
      for (let done = 0; done < elements; ) {
        const count = Math.min(elements - done, pieceBytes / size)
        const bytes = buffer.subarray(0, count * size)
        await source.readInto(fileName, bytes, (fileRow * columns + done) * size)
        const floats = toF32(dtype, bytes)
        checkFinite(floats, `${source.path}: ${fileName}`, fileRow * columns + done)
        yield { name, at: row * columns + done, bytes, floats }
        done += count
      }
    }
  }
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
      const count = Math.min(elements - done, pieceBytes / size)
      yield await read(part, part.row * columns + done, count)
      done += count
    }
  }
}

/** Elements of one row: of one index of the first dimension. */
export const rowElements = (shape: readonly number[]) => shape.slice(1).reduce((product, dim) => product * dim, 1)

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
