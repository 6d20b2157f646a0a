/** Reads safetensors files by position: opening reads the header only, a tensor's bytes are read when asked for. */
import { toF32 } from "./dtypes.ts"
import { type Header, headerLength, parseHeader, type TensorInfo } from "./header.ts"
import { allocate, checkInside, findTensor, PositionedFile, type TensorSource } from "./source.ts"

export type { TensorDtype } from "./dtypes.ts"
export type { TensorInfo } from "./header.ts"
export { type TensorEntry, type WriteOptions, writeSafetensors } from "./safetensors-writer.ts"

/**
 * Opens a safetensors file and checks its header completely.
 * @throws SelscanError NOT_FOUND when there is no file, BAD_FILE when it breaks a rule of the format
 * @example
 * await using file = await openSafetensors("model.safetensors")
 * const { shape } = file.tensors.get("backbone.embedding.weight")!
 * const weight = await file.readF32("backbone.embedding.weight")
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const file = await PositionedFile.open(path, "a safetensors file")
  try {
    const { size } = file
    const start = new Uint8Array(8)
    await file.readInto(start.subarray(0, Math.min(size, 8)), 0)
    const length = headerLength(start, size, path)
    const text = new Uint8Array(length)
    await file.readInto(text, 8)
    return new SafetensorsFile(file, 8 + length, parseHeader(text, size - 8 - length, path))
  } catch (error) {
    await file.close()
    throw error
  }
}

/** An open file; close it, or declare it with `await using`. */
export class SafetensorsFile implements TensorSource {
  readonly path: string
  readonly tensors: ReadonlyMap<string, TensorInfo>
  readonly metadata: Readonly<Record<string, string>>
  readonly #file: PositionedFile
  readonly #dataStart: number

  /** @internal use `openSafetensors` */
  constructor(file: PositionedFile, dataStart: number, header: Header) {
    this.path = file.path
    this.tensors = header.tensors
    this.metadata = header.metadata
    this.#file = file
    this.#dataStart = dataStart
  }

  /**
   * A tensor's bytes in a buffer of their own, so that any typed array can view them.
   * @throws SelscanError NOT_FOUND for an unknown name, BAD_FILE when the file was cut since, DISPOSED after close
   */
  async read(name: string): Promise<Uint8Array> {
    const bytes = allocate(findTensor(this.tensors, name, this.path), this.path)
    await this.readInto(name, bytes)
    return bytes
  }

  /**
   * Fills `target` with a tensor's bytes from byte `from` on: a large tensor passes through a small buffer.
   * @throws SelscanError BAD_INPUT when the tensor has fewer bytes, else as `read`
   */
  async readInto(name: string, target: Uint8Array, from = 0): Promise<void> {
    const tensor = findTensor(this.tensors, name, this.path)
    checkInside(tensor, from, target.length, this.path)
    await this.#file.readInto(target, this.#dataStart + tensor.offset + from)
  }

  /** A tensor's elements as f32, whatever their dtype. */
  async readF32(name: string): Promise<Float32Array> {
    const { dtype } = findTensor(this.tensors, name, this.path)
    return toF32(dtype, await this.read(name))
  }

  /** Waits for reads under way; a second call does nothing more. */
  close(): Promise<void> {
    return this.#file.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** A safetensors file that is in memory already; the same rules hold. `where` names it in errors. */
export function parseSafetensors(bytes: Uint8Array, where: string): SafetensorsBytes {
  const length = headerLength(bytes, bytes.length, where)
  const dataStart = 8 + length
  const header = parseHeader(bytes.subarray(8, dataStart), bytes.length - dataStart, where)
  return new SafetensorsBytes(where, bytes.subarray(dataStart), header)
}

/** Tensors in memory. */
export class SafetensorsBytes {
  readonly where: string
  readonly tensors: ReadonlyMap<string, TensorInfo>
  readonly metadata: Readonly<Record<string, string>>
  readonly #data: Uint8Array

  /** @internal use `parseSafetensors` */
  constructor(where: string, data: Uint8Array, header: Header) {
    this.where = where
    this.tensors = header.tensors
    this.metadata = header.metadata
    this.#data = data
  }

  /** A copy of a tensor's bytes, in a buffer of their own. */
  read(name: string): Uint8Array {
    const info = findTensor(this.tensors, name, this.where)
    const bytes = allocate(info, this.where)
    bytes.set(this.#data.subarray(info.offset, info.offset + info.sizeBytes))
    return bytes
  }

  readF32(name: string): Float32Array {
    return toF32(findTensor(this.tensors, name, this.where).dtype, this.read(name))
  }
}
