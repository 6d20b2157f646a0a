/**
 * Writes GGUF files, the format of llama.cpp: values by key, then tensors by name, a piece of one in memory at a time.
 *
 *   "GGUF", version 3, number of tensors, number of keys
 *   keys:    text, type, value                         (an array: 9, type of its items, their number, the items)
 *   tensors: text, number of dimensions, dimensions with the innermost first, type, offset from the start of the data
 *   data:    each tensor's at a multiple of 32 bytes from the start of the file
 *
 * Lengths and offsets are u64, types and versions u32; a text is its length in bytes and its UTF-8. Everything is little-endian.
 * llama.cpp ends the process over some files, so what it takes for granted is checked here: names of at most 63 bytes, up to 4 dimensions.
 * @see https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
 */
import { expect } from "../errors.ts"
import { type AtomicFile, type AtomicOptions, writeAtomically } from "./atomic.ts"
import { tensorBytes } from "./header.ts"
import { type TensorEntry, writeData } from "./safetensors-writer.ts"
import { shown } from "./source.ts"

/** A value of a key, with its type. */
export type GgufValue =
  | readonly [type: "u32" | "f32", value: number]
  | readonly [type: "bool", value: boolean]
  | readonly [type: "text", value: string]
  | readonly [type: "texts", value: readonly string[]]
  | readonly [type: "i32s", value: readonly number[]]

export type GgufMetadata = Readonly<Record<string, GgufValue>>

/** A tensor, its shape with the innermost dimension last as everywhere here. */
export type GgufTensor = Omit<TensorEntry, "dtype"> & { readonly dtype: keyof typeof tensorTypes }

const tensorTypes = { F32: 0, F16: 1, Q8_0: 8, BF16: 30 } as const
/** Of Q8_0: an f16 scale, then as many whole numbers. */
const blockElements = 32
const version = 3
const alignment = 32
const nameBytesMax = 63
const dimensionsMax = 4

/**
 * Writes keys and tensors in the order given and replaces the file at `path` when all are on disk.
 * @throws SelscanError BAD_INPUT for names, texts or data that do not fit, BAD_SHAPE, DISK as `writeAtomically`; the old file stays
 * @example
 * const weight = { name: "output_norm.weight", dtype: "F32", shape: [2], data: new Uint8Array(8) } as const
 * await writeGguf("a.gguf", { "general.architecture": ["text", "mamba"] }, [weight])
 */
export async function writeGguf(
  path: string,
  metadata: GgufMetadata,
  tensors: readonly GgufTensor[],
  options: AtomicOptions = {},
): Promise<void> {
  const infos = place(tensors, path)
  const header = encodeHeader(metadata, tensors, infos, path)
  await writeAtomically(
    path,
    async (file) => {
      await file.write(header)
      for (const [i, { data }] of tensors.entries()) {
        await pad(file)
        await writeData(file, data, infos[i]!, path)
      }
      await pad(file) // a reader may ask for the last tensor in whole blocks
    },
    options,
  )
}

const aligned = (bytes: number) => Math.ceil(bytes / alignment) * alignment

async function pad(file: AtomicFile): Promise<void> {
  await file.write(new Uint8Array(aligned(file.sizeBytes) - file.sizeBytes))
}

/** Where each tensor will lie, from the start of the data. */
function place(tensors: readonly GgufTensor[], path: string) {
  const names = new Set<string>()
  let offset = 0
  return tensors.map(({ name, dtype, shape }) => {
    const where = `${path}: tensor ${shown(name)}`
    const fits = name !== "" && Buffer.byteLength(name) <= nameBytesMax
    expect(fits, "BAD_INPUT", () => `${where}: expected a name of 1 to ${nameBytesMax} bytes, got it; rename it`)
    expect(!names.has(name), "BAD_INPUT", () => `${where}: expected one tensor of this name, got two; rename one`)
    names.add(name)
    const sizeBytes = shape.length >= 1 && shape.length <= dimensionsMax ? sizeOf(dtype, shape) : undefined
    expect(sizeBytes, "BAD_SHAPE", () => {
      const rows = dtype === "Q8_0" ? `, rows of a multiple of ${blockElements}` : ""
      return `${where}: expected 1 to ${dimensionsMax} dimensions of at least 1${rows}, got [${shape}]; correct the shape`
    })
    const info = { name, dtype, shape, sizeBytes, offset }
    offset += aligned(sizeBytes)
    return info
  })
}

function sizeOf(dtype: GgufTensor["dtype"], shape: readonly number[]): number | undefined {
  if (dtype !== "Q8_0") return tensorBytes(dtype, shape)
  if (shape.at(-1)! % blockElements !== 0) return undefined
  const bytes = tensorBytes("I8", shape)
  return bytes && (bytes / blockElements) * (2 + blockElements)
}

function encodeHeader(
  metadata: GgufMetadata,
  tensors: readonly GgufTensor[],
  infos: readonly { readonly offset: number }[],
  path: string,
): Uint8Array {
  const bytes = new Bytes(path)
  bytes.raw(Buffer.from("GGUF"))
  bytes.u32(version)
  bytes.u64(tensors.length)
  bytes.u64(Object.keys(metadata).length)
  for (const [key, value] of Object.entries(metadata)) {
    bytes.text(key)
    bytes.value(value)
  }
  for (const [i, { name, dtype, shape }] of tensors.entries()) {
    bytes.text(name)
    bytes.u32(shape.length)
    for (const dim of shape.toReversed()) bytes.u64(dim)
    bytes.u32(tensorTypes[dtype])
    bytes.u64(infos[i]!.offset)
  }
  return bytes.whole()
}

const valueTypes = { u32: 4, i32: 5, f32: 6, bool: 7, text: 8, array: 9 } as const

class Bytes {
  readonly #path: string
  readonly #parts: Buffer[] = []

  constructor(path: string) {
    this.#path = path
  }

  raw(bytes: Buffer): void {
    this.#parts.push(bytes)
  }

  u32(value: number): void {
    expect(Number.isInteger(value) && value >= 0 && value < 2 ** 32, "BAD_INPUT", () => {
      return `${this.#path}: expected a whole number below 2^32, got ${value}; correct the metadata`
    })
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32LE(value)
    this.raw(bytes)
  }

  u64(value: number): void {
    const bytes = Buffer.alloc(8)
    bytes.writeBigUInt64LE(BigInt(value))
    this.raw(bytes)
  }

  text(text: string): void {
    // A lone surrogate has no UTF-8.
    expect(!/\p{Surrogate}/u.test(text), "BAD_INPUT", () => {
      return `${this.#path}: expected well-formed Unicode, got ${shown(text)}; correct the metadata`
    })
    const bytes = Buffer.from(text)
    this.u64(bytes.length)
    this.raw(bytes)
  }

  value([type, value]: GgufValue): void {
    if (type === "texts" || type === "i32s") {
      this.u32(valueTypes.array)
      this.u32(type === "texts" ? valueTypes.text : valueTypes.i32)
      this.u64(value.length)
      if (type === "texts") for (const text of value) this.text(text)
      else this.raw(Buffer.from(Int32Array.from(value).buffer))
      return
    }
    this.u32(valueTypes[type])
    if (type === "text") this.text(value)
    else if (type === "u32") this.u32(value)
    else if (type === "f32") this.raw(Buffer.from(Float32Array.of(value).buffer))
    else this.raw(Buffer.of(value ? 1 : 0))
  }

  whole(): Uint8Array {
    return Buffer.concat(this.#parts)
  }
}
