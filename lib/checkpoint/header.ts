/**
 * The safetensors header: 8 bytes of little-endian length N, then N bytes of JSON, then the tensors' bytes, which must lie
 * without gap or overlap from the first byte after the header to the end of the file.
 *
 *   {"__metadata__": {"key": "text"}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}
 *
 * Every rule of the format is checked here, once, for files and for bytes in memory.
 * @see https://github.com/huggingface/safetensors#format
 */
import { expect, SelscanError } from "../errors.ts"
import { dtypeSize, isDtype, type TensorDtype } from "./dtypes.ts"
import { JsonCursor, JsonMismatch } from "./json-cursor.ts"
import { type StoredTensor, shown } from "./source.ts"

/** One tensor as the header states it. */
export interface TensorInfo extends StoredTensor {
  /** Bytes from the end of the header to the tensor's first. */
  readonly offset: number
}

export interface Header {
  /** In the order of the header. */
  readonly tensors: Map<string, TensorInfo>
  readonly metadata: Record<string, string>
}

/** The format's own limit on N; a longer header is refused before anything is allocated for it. */
export const maxHeaderBytes = 100_000_000
/** Tensors or metadata entries: keeps what a hostile header can make us hold well below the heap's limit. */
const maxEntries = 1_000_000
const maxDimensions = 64
const metadataKey = "__metadata__"

/** Length of the header by the first 8 bytes of a file of `fileBytes` bytes. */
export function headerLength(start: Uint8Array, fileBytes: number, where: string): number {
  if (fileBytes < 8) refuse(where, "at least 8 bytes", `${fileBytes}`)
  const length = new DataView(start.buffer, start.byteOffset, 8).getBigUint64(0, true)
  if (length > BigInt(maxHeaderBytes)) refuse(where, `a header of at most ${maxHeaderBytes} bytes`, `${length}`)
  if (Number(length) > fileBytes - 8) refuse(where, `a header of ${length} bytes`, `a file of ${fileBytes}`)
  return Number(length)
}

/** Tensors and metadata of a header that is followed by `dataBytes` bytes. */
export function parseHeader(bytes: Uint8Array, dataBytes: number, where: string): Header {
  const cursor = new JsonCursor(decode(bytes, where))
  if (bytes[0] !== 0x7b) refuse(where, "a header that starts with `{`", "another character")
  try {
    const header = parseEntries(cursor, where)
    cursor.end()
    checkLayout(header.tensors, dataBytes, where)
    return header
  } catch (error) {
    if (error instanceof JsonMismatch)
      throw new SelscanError("BAD_FILE", `${where}: header: ${error.message}; ${remedy}`)
    throw error
  }
}

/** The bytes before the tensors' own: length and JSON, padded with spaces so that the data start at a multiple of 8. */
export function encodeHeader(
  tensors: Iterable<TensorInfo>,
  metadata: Record<string, string>,
  where: string,
): Uint8Array {
  const entries: [string, unknown][] = Object.keys(metadata).length > 0 ? [[metadataKey, metadata]] : []
  for (const { name, dtype, shape, offset, sizeBytes } of tensors) {
    entries.push([name, { dtype, shape, data_offsets: [offset, offset + sizeBytes] }])
  }
  // Not one JSON.stringify of an object: integer-like names would jump to the front.
  const json = `{${entries.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(",")}}`
  const text = new TextEncoder().encode(json)
  const length = Math.ceil(text.length / 8) * 8
  expect(length <= maxHeaderBytes, "BAD_INPUT", () => {
    return `${where}: expected a header of at most ${maxHeaderBytes} bytes, got ${length}; write fewer tensors or shorter names`
  })
  const bytes = new Uint8Array(8 + length).fill(0x20)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true)
  bytes.set(text, 8)
  return bytes
}

/** Bytes of a tensor, or undefined when a dimension is not a whole number or the product is beyond 2⁵³ − 1. */
export function tensorBytes(dtype: TensorDtype, shape: readonly number[]): number | undefined {
  let size: number = dtypeSize[dtype]
  for (const dim of shape) {
    size *= dim
    if (!(Number.isSafeInteger(dim) && dim >= 0 && Number.isSafeInteger(size))) return undefined
  }
  return size
}

const remedy = "the file is damaged or no safetensors file, so get it again"

function refuse(where: string, expected: string, got: string): never {
  throw new SelscanError("BAD_FILE", `${where}: expected ${expected}, got ${got}; ${remedy}`, { expected, got })
}

function decode(bytes: Uint8Array, where: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return refuse(where, "a header in UTF-8", "other bytes")
  }
}

function parseEntries(cursor: JsonCursor, where: string): Header {
  const tensors = new Map<string, TensorInfo>()
  let metadata: Map<string, string> | undefined
  cursor.object((name) => {
    if (tensors.size === maxEntries) refuse(where, `at most ${maxEntries} tensors`, "more")
    if (name === metadataKey) {
      if (metadata) refuse(where, `one ${metadataKey}`, "two")
      metadata = parseMetadata(cursor, where)
    } else {
      if (tensors.has(name)) refuse(where, `one tensor named ${shown(name)}`, "two")
      tensors.set(name, parseTensor(cursor, name, `${where}: tensor ${shown(name)}`))
    }
  })
  return { tensors, metadata: Object.fromEntries(metadata ?? []) }
}

function parseMetadata(cursor: JsonCursor, where: string): Map<string, string> {
  const metadata = new Map<string, string>()
  cursor.object((key) => {
    if (metadata.size === maxEntries) refuse(where, `at most ${maxEntries} metadata entries`, "more")
    if (metadata.has(key)) refuse(where, `one metadata entry ${shown(key)}`, "two")
    metadata.set(key, cursor.string())
  })
  return metadata
}

function parseTensor(cursor: JsonCursor, name: string, where: string): TensorInfo {
  let dtype: string | undefined
  let shape: number[] | undefined
  let offsets: number[] | undefined
  cursor.object((field) => {
    const seen = { dtype, shape, data_offsets: offsets }
    if (!Object.hasOwn(seen, field)) refuse(where, "dtype, shape and data_offsets only", `a field ${shown(field)}`)
    if (seen[field as keyof typeof seen] !== undefined) refuse(where, `one field ${field}`, "two")
    if (field === "dtype") dtype = cursor.string()
    else if (field === "shape") shape = naturals(cursor, maxDimensions, where)
    else offsets = naturals(cursor, 2, where)
  })
  if (dtype === undefined || !shape || !offsets)
    return refuse(where, "dtype, shape and data_offsets", "not all of them")
  if (!isDtype(dtype)) return refuse(where, `a dtype of ${Object.keys(dtypeSize).join(", ")}`, shown(dtype))
  const [begin, end] = offsets
  if (begin === undefined || end === undefined) return refuse(where, "two data_offsets", `${offsets.length}`)
  if (begin > end) refuse(where, "data_offsets in ascending order", `[${begin}, ${end}]`)
  const sizeBytes = tensorBytes(dtype, shape)
  if (sizeBytes === undefined) return refuse(where, "at most 2^53 − 1 bytes", `${dtype} [${shape}]`)
  if (end - begin !== sizeBytes) refuse(where, `${sizeBytes} bytes for ${dtype} [${shape}]`, `${end - begin}`)
  return { name, dtype, shape, sizeBytes, offset: begin }
}

function naturals(cursor: JsonCursor, most: number, where: string): number[] {
  const values: number[] = []
  cursor.array(() => {
    if (values.length === most) refuse(where, `at most ${most} numbers in a list`, "more")
    values.push(cursor.natural())
  })
  return values
}

/** The tensors must tile the data exactly, in whatever order the header lists them. */
function checkLayout(tensors: Map<string, TensorInfo>, dataBytes: number, where: string): void {
  // Empty tensors first where offsets are equal: they end where the next one starts.
  const inOrder = [...tensors.values()].sort((a, b) => a.offset - b.offset || a.sizeBytes - b.sizeBytes)
  let end = 0
  for (const { name, offset, sizeBytes } of inOrder) {
    if (offset !== end) {
      const fault = offset < end ? "an overlap with another tensor" : "a gap before it"
      refuse(`${where}: tensor ${shown(name)}`, `data from byte ${end} on`, `${fault}, ${offset}`)
    }
    end += sizeBytes
    if (end > dataBytes) refuse(`${where}: tensor ${shown(name)}`, `data up to byte ${end}`, `only ${dataBytes}`)
  }
  if (end < dataBytes) refuse(where, `${end} bytes of tensors`, `${dataBytes - end} more after the last`)
}
