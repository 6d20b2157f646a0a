/** Where tensors are read from by position: one file of some format, or several as one. */
import { type FileHandle, open, stat } from "node:fs/promises"
import { expect, SelscanError, suggestion } from "../errors.ts"
import type { TensorDtype } from "./dtypes.ts"

/** One tensor of a file, whose data are its elements in row-major order. */
export interface StoredTensor {
  readonly name: string
  readonly dtype: TensorDtype
  readonly shape: readonly number[]
  readonly sizeBytes: number
}

/** Tensors by name, wherever they lie. */
export interface TensorSource {
  /** In messages. */
  readonly path: string
  readonly tensors: ReadonlyMap<string, StoredTensor>
  /** Fills `target` with a tensor's bytes from byte `from` (0) on. */
  readInto(name: string, target: Uint8Array, from?: number): Promise<void>
  /** Whether two tensors are the very same bytes of a file: then there is nothing to compare. */
  same?(name: string, other: string): boolean
  close(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/** Bytes that are read by position. */
export interface Bytes {
  /** In messages. */
  readonly path: string
  readonly size: number
  /** Fills `target` from `position` on. */
  readInto(target: Uint8Array, position: number): Promise<void>
  close(): Promise<void>
}

/** A name as it may stand in a message: quoted, and cut where a hostile one would fill the screen. */
export function shown(name: string): string {
  return JSON.stringify(name.length > 100 ? `${name.slice(0, 100)}…` : name)
}

export function findTensor<Tensor extends StoredTensor>(
  tensors: ReadonlyMap<string, Tensor>,
  name: string,
  where: string,
): Tensor {
  const tensor = tensors.get(name)
  if (tensor) return tensor
  const hint = suggestion(name, [...tensors.keys()].slice(0, 1000))
  throw new SelscanError("NOT_FOUND", `${where}: expected a tensor named ${shown(name)}, got none; ${hint}`, { name })
}

export function allocate({ name, sizeBytes }: StoredTensor, where: string): Uint8Array {
  try {
    return new Uint8Array(sizeBytes)
  } catch (cause) {
    const message = `${where}: expected room for ${sizeBytes} bytes of ${shown(name)}, got none; use a machine with more memory`
    throw new SelscanError("OUT_OF_MEMORY", message, { name, sizeBytes }, { cause })
  }
}

/** Holds a part of a tensor to lie inside it. */
export function checkInside({ name, sizeBytes }: StoredTensor, from: number, length: number, where: string): void {
  const inside = Number.isInteger(from) && from >= 0 && from + length <= sizeBytes
  expect(inside, "BAD_INPUT", () => {
    const got = `${length} from byte ${from}`
    return `${where}: tensor ${shown(name)}: expected a part of its ${sizeBytes} bytes, got ${got}; read within it`
  })
}

/** The kernel reads less than 2 GiB per call. */
const readBytesMax = 1 << 30

/** A regular file. No memory map, because a mapped file that is cut while open ends the process. */
export class PositionedFile implements Bytes {
  readonly path: string
  readonly size: number
  readonly #handle: FileHandle
  #closing: Promise<void> | undefined

  private constructor(path: string, handle: FileHandle, size: number) {
    this.path = path
    this.#handle = handle
    this.size = size
  }

  /**
   * Opens a file; `kind` says what is expected there, as `a safetensors file`.
   * @throws SelscanError NOT_FOUND when there is none, BAD_FILE for a folder, a pipe or a file that cannot be read
   */
  static async open(path: string, kind: string): Promise<PositionedFile> {
    const handle = await openRegularFile(path, kind)
    try {
      return new PositionedFile(path, handle, (await handle.stat()).size)
    } catch (error) {
      await handle.close()
      throw error
    }
  }

  /** @throws SelscanError BAD_FILE when the file was cut since it was opened, DISPOSED after close */
  async readInto(target: Uint8Array, position: number): Promise<void> {
    this.#checkOpen()
    for (let at = 0; at < target.length; ) {
      this.#checkOpen()
      const bytesRead = await this.#readSome(target.subarray(at, at + readBytesMax), position + at)
      if (bytesRead === 0) {
        const message = `${this.path}: expected ${target.length} bytes at ${position}, got ${at}; the file was cut while open`
        throw new SelscanError("BAD_FILE", message, { path: this.path })
      }
      at += bytesRead
    }
  }

  /** Waits for reads under way; a second call does nothing more. */
  close(): Promise<void> {
    this.#closing ??= this.#handle.close()
    return this.#closing
  }

  #checkOpen(): void {
    expect(!this.#closing, "DISPOSED", () => `${this.path}: expected an open file, got a closed one; open it again`)
  }

  async #readSome(target: Uint8Array, position: number): Promise<number> {
    try {
      return (await this.#handle.read(target, 0, target.length, position)).bytesRead
    } catch (cause) {
      const message = `${this.path}: expected to read, got ${(cause as Error).message}; check the disk it lies on`
      throw new SelscanError("BAD_FILE", message, { path: this.path }, { cause })
    }
  }
}

async function openRegularFile(path: string, kind: string): Promise<FileHandle> {
  try {
    // Asked before opening: opening a pipe would wait for its writer forever.
    if (!(await stat(path)).isFile()) {
      throw new SelscanError("BAD_FILE", `${path}: expected ${kind}, got no regular file; give the file's own path`)
    }
    return await open(path, "r")
  } catch (error) {
    if (error instanceof SelscanError) throw error
    const { code, message } = error as NodeJS.ErrnoException
    const missing = code === "ENOENT" || code === "ENOTDIR"
    const what = missing ? "none there; check the path" : `${message}; check the path and its permissions`
    throw new SelscanError(
      missing ? "NOT_FOUND" : "BAD_FILE",
      `${path}: expected ${kind}, got ${what}`,
      { path },
      { cause: error },
    )
  }
}
