/**
 * Reads safetensors files by position: opening reads the header only, a tensor's bytes are read when asked for. No memory
 * map, because a mapped file that is cut while open ends the process.
 */
import { type FileHandle, open, stat } from "node:fs/promises"
import { expect, SelscanError, suggestion } from "../errors.ts"
import { toF32 } from "./dtypes.ts"
import { type Header, headerLength, parseHeader, shown, type TensorInfo } from "./header.ts"

export type { TensorDtype } from "./dtypes.ts"
export type { TensorInfo } from "./header.ts"
export { type TensorEntry, type WriteOptions, writeSafetensors } from "./safetensors-writer.ts"

/** The kernel reads less than 2 GiB per call. */
const readBytesMax = 1 << 30

/**
 * Opens a safetensors file and checks its header completely.
 * @throws SelscanError NOT_FOUND when there is no file, BAD_FILE when it breaks a rule of the format
 * @example
 * await using file = await openSafetensors("model.safetensors")
 * const { shape } = file.tensors.get("backbone.embedding.weight")
 * const weight = await file.readF32("backbone.embedding.weight")
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const handle = await openRegularFile(path)
  try {
    const { size } = await handle.stat()
    const start = new Uint8Array(8)
    await readFully(handle, start.subarray(0, Math.min(size, 8)), 0, path)
    const length = headerLength(start, size, path)
    const text = new Uint8Array(length)
    await readFully(handle, text, 8, path)
    return new SafetensorsFile(path, handle, 8 + length, parseHeader(text, size - 8 - length, path))
  } catch (error) {
    await handle.close()
    throw error
  }
}

/** An open file; close it, or declare it with `await using`. */
export class SafetensorsFile {
  readonly path: string
  readonly tensors: ReadonlyMap<string, TensorInfo>
  readonly metadata: Readonly<Record<string, string>>
  readonly #handle: FileHandle
  readonly #dataStart: number
  #closing: Promise<void> | undefined

  /** @internal use `openSafetensors` */
  constructor(path: string, handle: FileHandle, dataStart: number, header: Header) {
    this.path = path
    this.tensors = header.tensors
    this.metadata = header.metadata
    this.#handle = handle
    this.#dataStart = dataStart
  }

  /**
   * A tensor's bytes in a buffer of their own, so that any typed array can view them.
   * @throws SelscanError NOT_FOUND for an unknown name, BAD_FILE when the file was cut since, DISPOSED after close
   */
  async read(name: string): Promise<Uint8Array> {
    const bytes = allocate(find(this.tensors, name, this.path), this.path)
    await this.readInto(name, bytes)
    return bytes
  }

  /**
   * Fills `target` with a tensor's bytes from byte `from` on: a large tensor passes through a small buffer.
   * @throws SelscanError BAD_INPUT when the tensor has fewer bytes, else as `read`
   */
  async readInto(name: string, target: Uint8Array, from = 0): Promise<void> {
    const { sizeBytes, offset } = find(this.tensors, name, this.path)
    const inside = Number.isInteger(from) && from >= 0 && from + target.length <= sizeBytes
    expect(inside, "BAD_INPUT", () => {
      const got = `${target.length} from byte ${from}`
      return `${this.path}: tensor ${shown(name)}: expected a part of its ${sizeBytes} bytes, got ${got}; read within it`
    })
    this.#checkOpen()
    for (let at = 0; at < target.length; at += readBytesMax) {
      this.#checkOpen()
      const part = target.subarray(at, at + readBytesMax)
      await readFully(this.#handle, part, this.#dataStart + offset + from + at, this.path)
    }
  }

  /** A tensor's elements as f32, whatever their dtype. */
  async readF32(name: string): Promise<Float32Array> {
    const { dtype } = find(this.tensors, name, this.path)
    return toF32(dtype, await this.read(name))
  }

  /** Waits for reads under way; a second call does nothing more. */
  close(): Promise<void> {
    this.#closing ??= this.#handle.close()
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #checkOpen(): void {
    expect(!this.#closing, "DISPOSED", () => `${this.path}: expected an open file, got a closed one; open it again`)
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
    const info = find(this.tensors, name, this.where)
    const bytes = allocate(info, this.where)
    bytes.set(this.#data.subarray(info.offset, info.offset + info.sizeBytes))
    return bytes
  }

  readF32(name: string): Float32Array {
    return toF32(find(this.tensors, name, this.where).dtype, this.read(name))
  }
}

function find(tensors: ReadonlyMap<string, TensorInfo>, name: string, where: string): TensorInfo {
  const info = tensors.get(name)
  if (info) return info
  const hint = suggestion(name, [...tensors.keys()].slice(0, 1000))
  throw new SelscanError("NOT_FOUND", `${where}: expected a tensor named ${shown(name)}, got none; ${hint}`, { name })
}

function allocate({ name, sizeBytes }: TensorInfo, where: string): Uint8Array {
  try {
    return new Uint8Array(sizeBytes)
  } catch (cause) {
    const message = `${where}: expected room for ${sizeBytes} bytes of ${shown(name)}, got none; use a machine with more memory`
    throw new SelscanError("OUT_OF_MEMORY", message, { name, sizeBytes }, { cause })
  }
}

async function openRegularFile(path: string): Promise<FileHandle> {
  try {
    // Asked before opening: opening a pipe would wait for its writer forever.
    if (!(await stat(path)).isFile()) {
      throw new SelscanError(
        "BAD_FILE",
        `${path}: expected a safetensors file, got no regular file; give the file's own path`,
      )
    }
    return await open(path, "r")
  } catch (error) {
    if (error instanceof SelscanError) throw error
    const { code, message } = error as NodeJS.ErrnoException
    const missing = code === "ENOENT" || code === "ENOTDIR"
    const what = missing ? "none there; check the path" : `${message}; check the path and its permissions`
    throw new SelscanError(
      missing ? "NOT_FOUND" : "BAD_FILE",
      `${path}: expected a safetensors file, got ${what}`,
      { path },
      { cause: error },
    )
  }
}

/** Fills `target` from `position` on. */
async function readFully(handle: FileHandle, target: Uint8Array, position: number, path: string): Promise<void> {
  for (let at = 0; at < target.length; ) {
    const { bytesRead } = await readSome(handle, target.subarray(at), position + at, path)
    if (bytesRead === 0) {
      const message = `${path}: expected ${target.length} bytes at ${position}, got ${at}; the file was cut while open`
      throw new SelscanError("BAD_FILE", message, { path })
    }
    at += bytesRead
  }
}

async function readSome(handle: FileHandle, target: Uint8Array, position: number, path: string) {
  try {
    return await handle.read(target, 0, target.length, position)
  } catch (cause) {
    const message = `${path}: expected to read, got ${(cause as Error).message}; check the disk it lies on`
    throw new SelscanError("BAD_FILE", message, { path }, { cause })
  }
}
