/** Files as torch.save writes them, and as it never would: pickles from pieces, and stored zip archives whose every field can lie. */
import { crc32 } from "node:zlib"
import type { Bytes } from "../../lib/checkpoint/source.ts"

/** A part of a pickle. */
export type Piece = Uint8Array

export const bytesOf = (...parts: readonly (string | number | Uint8Array)[]): Uint8Array =>
  new Uint8Array(
    Buffer.concat(
      parts.map((part) => {
        if (typeof part === "number") return Uint8Array.of(part)
        return typeof part === "string" ? Buffer.from(part, "latin1") : part
      }),
    ),
  )

const u32 = (value: number) => new Uint8Array(Uint32Array.of(value).buffer)

export const text = (value: string): Piece => {
  const utf8 = Buffer.from(value)
  return bytesOf("X", u32(utf8.length), utf8)
}
export const int = (value: number): Piece => {
  if (Number.isInteger(value) && Math.abs(value) < 2 ** 31) return bytesOf("J", u32(value >>> 0))
  return bytesOf(0x8a, 8, new Uint8Array(BigInt64Array.of(BigInt(value)).buffer))
}
export const none: Piece = bytesOf("N")
export const no: Piece = bytesOf(0x89)
export const global = (module: string, name: string): Piece => bytesOf("c", module, "\n", name, "\n")
export const tuple = (...items: readonly Piece[]): Piece => bytesOf("(", ...items, "t")
export const list = (...items: readonly Piece[]): Piece => bytesOf("](", ...items, "e")
export const call = (callable: Piece, ...args: readonly Piece[]): Piece => bytesOf(callable, tuple(...args), "R")
export const dict = (entries: Readonly<Record<string, Piece>>): Piece =>
  bytesOf("}(", ...Object.entries(entries).flatMap(([key, value]) => [text(key), value]), "u")
export const orderedDict = call(global("collections", "OrderedDict"))
/** A whole pickle. */
export const pickle = (value: Piece, protocol = 2): Uint8Array => bytesOf(0x80, protocol, value, ".")

export const storage = (key: string, elements: number, type = "FloatStorage", module = "torch"): Piece =>
  bytesOf(tuple(text("storage"), global(module, type), text(key), text("cpu"), int(elements)), "Q")

export interface ViewOf {
  readonly shape: readonly number[]
  readonly strides?: readonly number[]
  readonly offset?: number
}

export const rowMajor = (shape: readonly number[]): number[] =>
  shape.map((_, i) => shape.slice(i + 1).reduce((product, size) => product * size, 1))

export function tensor(from: Piece, { shape, strides = rowMajor(shape), offset = 0 }: ViewOf): Piece {
  const rebuild = global("torch._utils", "_rebuild_tensor_v2")
  return call(rebuild, from, int(offset), tuple(...shape.map(int)), tuple(...strides.map(int)), no, orderedDict)
}

/** What an entry of an archive states of itself, where that is not the truth. */
export interface Lies {
  readonly name?: string
  readonly method?: number
  readonly flags?: number
  readonly sizeBytes?: number
  readonly packedBytes?: number
  readonly checksum?: number
}

export interface Entry {
  readonly name: string
  readonly data: Uint8Array
  /** Of the local header, and of the directory's entry. */
  readonly local?: Lies
  readonly central?: Lies & { readonly header?: number }
  /** Sizes of 8 bytes in extra fields, and all bits set in the fields of 4. */
  readonly wide?: boolean
}

export interface ArchiveOptions {
  /** Sizes and checksum after the data, 0 in the local header, as torch writes. Default true. */
  readonly described?: boolean
  /** Data begin at a multiple of it. Default 64. */
  readonly alignment?: number
  /** The wide last record and its locator. Default true. */
  readonly wideEnd?: boolean
  /** What the last record says. */
  readonly end?: {
    readonly count?: number
    readonly size?: number
    readonly offset?: number
    readonly comment?: string
  }
}

function record(length: number, fill: (view: DataView) => void): Uint8Array {
  const view = new DataView(new ArrayBuffer(length))
  fill(view)
  return new Uint8Array(view.buffer)
}

const full = 0xffffffff

/** An archive of stored entries. */
export function zip(entries: readonly Entry[], options: ArchiveOptions = {}): Uint8Array {
  const { described = true, alignment = 64, wideEnd = true, end = {} } = options
  const parts: Uint8Array[] = []
  const directory: Uint8Array[] = []
  let at = 0
  for (const entry of entries) {
    const header = at
    const local = localHeader(entry, described, at, alignment)
    const after = described ? descriptor(entry) : new Uint8Array(0)
    for (const part of [local, entry.data, after]) {
      parts.push(part)
      at += part.length
    }
    directory.push(centralHeader(entry, described, header))
  }
  const central = bytesOf(...directory)
  const stated = { count: entries.length, size: central.length, offset: at, comment: "", ...end }
  return bytesOf(...parts, central, ...(wideEnd ? wideRecords(stated, at + central.length) : []), lastRecord(stated))
}

function localHeader({ name, data, local = {}, wide }: Entry, described: boolean, at: number, alignment: number) {
  const stated = {
    name,
    method: 0,
    flags: described ? 8 : 0,
    sizeBytes: data.length,
    packedBytes: data.length,
    ...local,
  }
  const nameBytes = Buffer.from(stated.name)
  const extra = wide
    ? bytesOf(
        Uint8Array.of(1, 0, 16, 0),
        new Uint8Array(BigUint64Array.of(BigInt(stated.sizeBytes), BigInt(stated.packedBytes)).buffer),
      )
    : new Uint8Array(0)
  const unpadded = at + 30 + nameBytes.length + extra.length + 4
  const padding = (alignment - (unpadded % alignment)) % alignment
  const header = record(30, (view) => {
    view.setUint32(0, 0x04034b50, true)
    view.setUint16(6, stated.flags, true)
    view.setUint16(8, stated.method, true)
    const later = described && !wide && local.sizeBytes === undefined && local.packedBytes === undefined
    view.setUint32(14, local.checksum ?? (described ? 0 : crc32(data)), true)
    view.setUint32(18, wide ? full : later ? 0 : stated.packedBytes, true)
    view.setUint32(22, wide ? full : later ? 0 : stated.sizeBytes, true)
    view.setUint16(26, nameBytes.length, true)
    view.setUint16(28, extra.length + 4 + padding, true)
  })
  return bytesOf(header, nameBytes, extra, "FB", Uint8Array.of(padding & 255, padding >> 8), "Z".repeat(padding))
}

const descriptor = ({ data }: Entry) => bytesOf("PK\x07\x08", u32(crc32(data)), u32(data.length), u32(data.length))

function centralHeader({ name, data, central = {}, wide }: Entry, described: boolean, at: number): Uint8Array {
  const stated = {
    name,
    method: 0,
    flags: described ? 8 : 0,
    sizeBytes: data.length,
    packedBytes: data.length,
    header: at,
    ...central,
  }
  const nameBytes = Buffer.from(stated.name)
  const sizes = BigUint64Array.of(BigInt(stated.sizeBytes), BigInt(stated.packedBytes), BigInt(stated.header))
  const extra = wide ? bytesOf(Uint8Array.of(9, 0, 0, 0, 1, 0, 24, 0), new Uint8Array(sizes.buffer)) : new Uint8Array(0)
  const header = record(46, (view) => {
    view.setUint32(0, 0x02014b50, true)
    view.setUint16(8, stated.flags, true)
    view.setUint16(10, stated.method, true)
    view.setUint32(16, central.checksum ?? crc32(data), true)
    view.setUint32(20, wide ? full : stated.packedBytes, true)
    view.setUint32(24, wide ? full : stated.sizeBytes, true)
    view.setUint16(28, nameBytes.length, true)
    view.setUint16(30, extra.length, true)
    view.setUint32(42, wide ? full : stated.header, true)
  })
  return bytesOf(header, nameBytes, extra)
}

interface Stated {
  readonly count: number
  readonly size: number
  readonly offset: number
  readonly comment: string
}

function wideRecords({ count, size, offset }: Stated, at: number): Uint8Array[] {
  const last = record(56, (view) => {
    view.setUint32(0, 0x06064b50, true)
    view.setBigUint64(4, 44n, true)
    for (const place of [24, 32]) view.setBigUint64(place, BigInt(count), true)
    view.setBigUint64(40, BigInt(size), true)
    view.setBigUint64(48, BigInt(offset), true)
  })
  const locator = record(20, (view) => {
    view.setUint32(0, 0x07064b50, true)
    view.setBigUint64(8, BigInt(at), true)
    view.setUint32(16, 1, true)
  })
  return [last, locator]
}

function lastRecord({ count, size, offset, comment }: Stated): Uint8Array {
  const last = record(22, (view) => {
    view.setUint32(0, 0x06054b50, true)
    for (const place of [8, 10]) view.setUint16(place, Math.min(count, 0xffff), true)
    view.setUint32(12, Math.min(size, full), true)
    view.setUint32(16, Math.min(offset, full), true)
    view.setUint16(20, comment.length, true)
  })
  return bytesOf(last, comment)
}

/** A file of torch.save: a pickle and the bytes of its storages. */
export function torchFile(
  contents: Piece,
  storages: Readonly<Record<string, Uint8Array>> = {},
  { extra = [], ...options }: ArchiveOptions & { readonly extra?: readonly Entry[] } = {},
): Uint8Array {
  const data = Object.entries(storages).map(([key, data]) => ({ name: `archive/data/${key}`, data }))
  const version = { name: "archive/version", data: bytesOf("3\n") }
  return zip([{ name: "archive/data.pkl", data: pickle(contents) }, ...data, version, ...extra], options)
}

/** Bytes that are in memory, read by position. */
export function inMemory(bytes: Uint8Array, path = "memory.bin"): Bytes {
  return {
    path,
    size: bytes.length,
    readInto: async (target, position) => {
      const part = bytes.subarray(position, position + target.length)
      if (part.length < target.length) throw new Error(`read of ${target.length} at ${position} beyond ${bytes.length}`)
      target.set(part)
    },
    close: async () => {},
  }
}

/** f32 values 0, 1, 2, … as bytes. */
export const counted = (elements: number): Uint8Array =>
  new Uint8Array(Float32Array.from({ length: elements }, (_, i) => i).buffer)
