/**
 * The directory of a zip archive as torch.save writes it: where the bytes of each entry lie. Entries are stored, not compressed, so that
 * tensors can be read by position; whatever is compressed is refused, and with it every archive that would grow when unpacked.
 *
 * Of our own, not a library's: those on npm inflate, stream or hold whole entries, and none gives the positions of stored ones after
 * holding the directory to the local headers. Read is the last record, the central directory, and one local header per entry; sizes come
 * from the directory, so data descriptors after the data have nothing to add. Checksums are not looked at: torch can leave them out.
 * @see APPNOTE.TXT of PKWARE, version 6.3.10, §4.3 to 4.5
 */
import { SelscanError } from "../errors.ts"
import { type Bytes, shown } from "./source.ts"

export interface ZipEntry {
  readonly name: string
  /** Bytes of the archive before the entry's first. */
  readonly offset: number
  readonly sizeBytes: number
}

/** A tensor has an entry; the largest published checkpoints, optimizers included, have some thousand. */
const entriesMost = 1 << 17
const directoryBytesMost = 1 << 26
const endBytes = 22
const locatorBytes = 20
const wideEndBytes = 56
const centralBytes = 46
const localBytes = 30
const signatures = { end: 0x06054b50, locator: 0x07064b50, wideEnd: 0x06064b50, central: 0x02014b50, local: 0x04034b50 }
/** A field of 2 or 4 bytes with all bits set: a wide field elsewhere has the value. */
const [full16, full32] = [0xffff, 0xffffffff]
const encrypted = 1
const described = 8

/** Whether bytes begin as an archive with entries does. */
export const isZip = (start: Uint8Array): boolean =>
  start.length >= 4 && new DataView(start.buffer, start.byteOffset, 4).getUint32(0, true) === signatures.local

/**
 * Entries by name, in the order of the directory.
 * @throws SelscanError BAD_FILE for a damaged archive, and for one that torch.save does not write: compressed or encrypted entries, names
 * that lead out of a folder or stand twice, entries that share bytes, more of them than any checkpoint has
 */
export async function readZip(file: Bytes): Promise<Map<string, ZipEntry>> {
  const { offset, size, count } = await readEnd(file)
  const directory = await readPart(file, offset, size)
  const listed = centralEntries(directory, count, file.path)
  const inOrder = [...listed].sort((a, b) => a.header - b.header)
  const entries = new Map(listed.map(({ name }) => [name, undefined as ZipEntry | undefined]))
  for (const [i, entry] of inOrder.entries()) {
    const end = Math.min(inOrder[i + 1]?.header ?? offset, offset)
    entries.set(entry.name, await locate(file, entry, end))
  }
  return entries as Map<string, ZipEntry>
}

function refuse(where: string, expected: string, got: string): never {
  const remedy = "the file is cut, damaged or not from torch.save, so get it again"
  throw new SelscanError("BAD_FILE", `${where}: expected ${expected}, got ${got}; ${remedy}`, { expected, got })
}

async function readPart(file: Bytes, offset: number, size: number): Promise<DataView> {
  const bytes = new Uint8Array(size)
  await file.readInto(bytes, offset)
  return new DataView(bytes.buffer)
}

const wide = (view: DataView, at: number) => Number(view.getBigUint64(at, true))

interface Directory {
  readonly offset: number
  readonly size: number
  readonly count: number
}

/** The directory by the archive's last record, which torch.save ends without a comment: the directory lies right before it. */
async function readEnd(file: Bytes): Promise<Directory> {
  if (file.size < endBytes) refuse(file.path, `at least ${endBytes} bytes`, `${file.size}`)
  const before = Math.min(file.size - endBytes, locatorBytes)
  const last = await readPart(file, file.size - endBytes - before, before + endBytes)
  const at = before
  if (last.getUint32(at, true) !== signatures.end || last.getUint16(at + 20, true) !== 0) {
    refuse(file.path, "the last record of an archive at its end", "other bytes")
  }
  if (last.getUint16(at + 4, true) !== 0 || last.getUint16(at + 6, true) !== 0) refuse(file.path, "one disk", "several")
  const short: Directory = {
    count: last.getUint16(at + 10, true),
    size: last.getUint32(at + 12, true),
    offset: last.getUint32(at + 16, true),
  }
  const hasWide = before === locatorBytes && last.getUint32(0, true) === signatures.locator
  const recordAt = hasWide ? wide(last, 8) : file.size - endBytes
  const directory = hasWide ? await readWideEnd(file, recordAt, short) : short
  const { offset, size, count } = directory
  if (count > entriesMost) refuse(file.path, `at most ${entriesMost} entries`, `${count}`)
  if (size > directoryBytesMost) refuse(file.path, `a directory of at most ${directoryBytesMost} bytes`, `${size}`)
  if (offset + size !== recordAt) refuse(file.path, `a directory that ends at byte ${recordAt}`, `${offset + size}`)
  return directory
}

/** The record with wide fields, for archives beyond 4 GB; torch.save always writes it. */
async function readWideEnd(file: Bytes, at: number, short: Directory): Promise<Directory> {
  const expectedAt = file.size - endBytes - locatorBytes - wideEndBytes
  if (at !== expectedAt) refuse(file.path, `the wide last record at byte ${expectedAt}`, `${at}`)
  const record = await readPart(file, at, wideEndBytes)
  if (record.getUint32(0, true) !== signatures.wideEnd) refuse(file.path, "the wide last record", "other bytes")
  const directory = { count: wide(record, 32), size: wide(record, 40), offset: wide(record, 48) }
  const agrees = (name: keyof Directory, full: number) => short[name] === full || short[name] === directory[name]
  if (!(agrees("count", full16) && agrees("size", full32) && agrees("offset", full32))) {
    refuse(file.path, "two last records that agree", "others")
  }
  return directory
}

/** An entry as the directory states it; `header` is where its local header begins. */
interface Listed {
  readonly name: string
  readonly rawName: Uint8Array
  readonly checksum: number
  readonly sizeBytes: number
  readonly header: number
}

function centralEntries(view: DataView, count: number, path: string): Listed[] {
  const entries: Listed[] = []
  const names = new Set<string>()
  let at = 0
  for (let i = 0; i < count; i++) {
    const left = view.byteLength - at
    const intact = left >= centralBytes && view.getUint32(at, true) === signatures.central
    if (!intact) refuse(path, `${count} entries in the directory`, `${i}`)
    const [nameBytes, extraBytes] = [view.getUint16(at + 28, true), view.getUint16(at + 30, true)]
    const length = centralBytes + nameBytes + extraBytes + view.getUint16(at + 32, true)
    if (length > left) refuse(path, `${length} bytes of a directory's entry`, `${left}`)
    const entry = centralEntry(new DataView(view.buffer, view.byteOffset + at, length), path)
    if (names.has(entry.name)) refuse(path, `one entry ${shown(entry.name)}`, "two")
    names.add(entry.name)
    entries.push(entry)
    at += length
  }
  if (at !== view.byteLength) refuse(path, `a directory of ${at} bytes`, `${view.byteLength}`)
  return entries
}

function centralEntry(view: DataView, path: string): Listed {
  const nameBytes = view.getUint16(28, true)
  const rawName = new Uint8Array(view.buffer, view.byteOffset + centralBytes, nameBytes)
  const name = decodeName(rawName, path)
  const where = `${path}: entry ${shown(name)}`
  const [method, flags] = [view.getUint16(10, true), view.getUint16(8, true)]
  if (flags & encrypted) refuse(where, "data as they are", "encrypted ones")
  if (method !== 0) refuse(where, "data that are stored as they are, method 0", `compressed ones, method ${method}`)
  const extra = new DataView(view.buffer, rawName.byteOffset + nameBytes, view.getUint16(30, true))
  const short = [view.getUint32(24, true), view.getUint32(20, true), view.getUint32(42, true)]
  const [sizeBytes, packed, header] = widened(short, extra, where) as [number, number, number]
  if (sizeBytes !== packed) refuse(where, `${sizeBytes} stored bytes`, `${packed}`)
  if (!Number.isSafeInteger(header + sizeBytes)) refuse(where, "a place within 2^53 bytes", `${header}`)
  return { name, rawName, checksum: view.getUint32(16, true), sizeBytes, header }
}

/** Fields of 4 bytes, each with all bits set replaced by the next one of the wide extra field. */
function widened(short: readonly number[], extra: DataView, where: string): number[] {
  if (!short.includes(full32)) return [...short]
  for (let at = 0; at + 4 <= extra.byteLength; ) {
    const [id, length] = [extra.getUint16(at, true), extra.getUint16(at + 2, true)]
    const end = at + 4 + length
    if (end > extra.byteLength) break
    if (id === 1) {
      let next = at + 4
      return short.map((value) => {
        if (value !== full32) return value
        if (next + 8 > end) refuse(where, "wide sizes", "fewer than needed")
        next += 8
        return wide(extra, next - 8)
      })
    }
    at = end
  }
  return refuse(where, "wide sizes", "none")
}

/** Nothing is unpacked by its name; a name that would lead elsewhere says that the archive means harm. */
function decodeName(bytes: Uint8Array, path: string): string {
  let name = ""
  try {
    name = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    refuse(path, "names in UTF-8", "other bytes")
  }
  const parts = name.split("/")
  const plain = parts.every((part) => part !== "" && part !== "." && part !== "..")
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  if (!plain || /[\0-\x1f\x7f\\]|^[a-z]:/i.test(name)) refuse(path, "plain names of entries", shown(name))
  return name
}

/** Holds an entry's local header to the directory; its data lie behind that and before `end`. */
async function locate(file: Bytes, entry: Listed, end: number): Promise<ZipEntry> {
  const { name, rawName, header, sizeBytes } = entry
  const where = `${file.path}: entry ${shown(name)}`
  const named = localBytes + rawName.length
  if (header + named + sizeBytes > end)
    refuse(where, `its ${sizeBytes} bytes before byte ${end}`, "fewer or shared ones")
  const view = await readPart(file, header, named)
  if (view.getUint32(0, true) !== signatures.local) refuse(where, `a header at byte ${header}`, "other bytes")
  const extraBytes = view.getUint16(28, true)
  const offset = header + named + extraBytes
  if (offset + sizeBytes > end) refuse(where, `its ${sizeBytes} bytes before byte ${end}`, "fewer or shared ones")
  const sameName =
    view.getUint16(26, true) === rawName.length &&
    Buffer.compare(new Uint8Array(view.buffer, localBytes), rawName) === 0
  if (!sameName) refuse(where, "that name in its header", "another")
  const flags = view.getUint16(6, true)
  const method = view.getUint16(8, true)
  if (method !== 0 || flags & encrypted)
    refuse(where, "a header that says stored, as the directory does", `method ${method}`)
  const stated = [view.getUint32(22, true), view.getUint32(18, true)]
  const extra = stated.includes(full32)
    ? await readPart(file, header + named, extraBytes)
    : new DataView(new ArrayBuffer(0))
  const sizes = widened(stated, extra, where)
  // Where the sizes follow the data, the header may say 0.
  const later = (flags & described) !== 0
  const agrees = sizes.every((size) => size === sizeBytes || (later && size === 0))
  if (!agrees) refuse(where, `a header that says ${sizeBytes} bytes, as the directory does`, `${sizes[0]}`)
  const checksum = view.getUint32(14, true)
  if (checksum !== entry.checksum && !(later && checksum === 0)) {
    refuse(where, "a header with the directory's checksum", "another")
  }
  return { name, offset, sizeBytes }
}
