/** Writes safetensors files tensor by tensor, atomically: only a piece of one tensor need be in memory at a time. */
import { checkOptions, expect } from "../errors.ts"
import { type AtomicFile, type AtomicOptions, writeAtomically } from "./atomic.ts"
import { isDtype, type TensorDtype } from "./dtypes.ts"
import { encodeHeader, type TensorInfo, tensorBytes } from "./header.ts"
import { shown } from "./source.ts"

/** One tensor to write; a function is called when its turn comes, and may give the data piece by piece. */
export interface TensorEntry {
  readonly name: string
  readonly dtype: TensorDtype
  readonly shape: readonly number[]
  readonly data: Uint8Array | (() => Promise<Uint8Array> | AsyncIterable<Uint8Array>)
}

export interface WriteOptions extends AtomicOptions {
  /** Goes to `__metadata__`; none by default. */
  readonly metadata?: Readonly<Record<string, string>>
}

/**
 * Writes tensors in the order given and replaces the file at `path` when all are on disk.
 * @throws SelscanError BAD_INPUT for names, shapes or data that do not fit, DISK as `writeAtomically`; the old file stays
 * @example
 * await writeSafetensors("a.safetensors", [{ name: "w", dtype: "F32", shape: [2], data: new Uint8Array(8) }])
 */
export async function writeSafetensors(
  path: string,
  entries: readonly TensorEntry[],
  options: WriteOptions = {},
): Promise<void> {
  checkOptions("writeSafetensors", options, ["metadata", "open"])
  const metadata = checkMetadata(options.metadata ?? {}, path)
  const infos = place(entries, path)
  const header = encodeHeader(infos, metadata, path)
  await writeAtomically(
    path,
    async (file) => {
      await file.write(header)
      for (const [i, { data }] of entries.entries()) await writeData(file, data, infos[i]!, path)
    },
    options.open ? { open: options.open } : {},
  )
}

/** Where each tensor will lie; whatever is wrong with the entries is said before the disk is touched. */
function place(entries: readonly TensorEntry[], path: string): TensorInfo[] {
  const names = new Set<string>()
  let offset = 0
  return entries.map(({ name, dtype, shape, data }) => {
    const where = `${path}: tensor ${shown(String(name))}`
    expect(
      isName(name),
      "BAD_INPUT",
      () => `${where}: expected a name in well-formed Unicode other than __metadata__, got it; rename it`,
    )
    expect(!names.has(name), "BAD_INPUT", () => `${where}: expected one tensor of this name, got two; rename one`)
    names.add(name)
    expect(
      isDtype(dtype),
      "BAD_INPUT",
      () => `${where}: expected a safetensors dtype, got ${dtype}; write F32, F16 or BF16`,
    )
    const sizeBytes = shape.length <= 64 ? tensorBytes(dtype, shape) : undefined
    expect(sizeBytes !== undefined && Number.isSafeInteger(offset + sizeBytes), "BAD_SHAPE", () => {
      return `${where}: expected up to 64 whole dimensions of at most 2^53 − 1 bytes, got [${shape}]; correct the shape`
    })
    const info = { name, dtype, shape: [...shape], sizeBytes, offset }
    if (typeof data !== "function") checkData(data, info, path)
    offset += sizeBytes
    return info
  })
}

/** What is known of a tensor when its data are written; other formats have dtypes of their own. */
type Written = Omit<TensorInfo, "dtype"> & { readonly dtype: string }

/** Writes a tensor's data, whole or piece by piece, and holds it to its size. */
export async function writeData(
  file: AtomicFile,
  data: TensorEntry["data"],
  info: Written,
  path: string,
): Promise<void> {
  const given = typeof data === "function" ? await data() : data
  if (isPieces(given)) return await writePieces(file, given, info, path)
  checkData(given, info, path)
  await file.write(given)
}

function isPieces(data: Uint8Array | AsyncIterable<Uint8Array>): data is AsyncIterable<Uint8Array> {
  return typeof data === "object" && data !== null && Symbol.asyncIterator in data
}

async function writePieces(file: AtomicFile, pieces: AsyncIterable<Uint8Array>, info: Written, path: string) {
  let written = 0
  for await (const piece of pieces) {
    written += piece.length
    if (written > info.sizeBytes) break
    await file.write(piece)
  }
  const { name, dtype, shape, sizeBytes } = info
  expect(written === sizeBytes, "BAD_INPUT", () => {
    const got = written > sizeBytes ? "more" : `${written}`
    return `${path}: tensor ${shown(name)}: expected ${sizeBytes} bytes for ${dtype} [${shape}], got ${got}; pass its whole data`
  })
}

function checkData(bytes: Uint8Array, { name, dtype, shape, sizeBytes }: Written, path: string): void {
  expect(bytes instanceof Uint8Array && bytes.length === sizeBytes, "BAD_INPUT", () => {
    const got = bytes instanceof Uint8Array ? `${bytes.length}` : typeof bytes
    return `${path}: tensor ${shown(name)}: expected ${sizeBytes} bytes for ${dtype} [${shape}], got ${got}; pass its whole data`
  })
}

function checkMetadata(metadata: Readonly<Record<string, string>>, path: string): Record<string, string> {
  for (const [key, value] of Object.entries(metadata)) {
    expect(typeof value === "string" && isUnicode(key) && isUnicode(value), "BAD_INPUT", () => {
      return `${path}: metadata ${shown(key)}: expected well-formed text, got ${typeof value}; write it as a string`
    })
  }
  return metadata
}

function isName(name: unknown): name is string {
  return typeof name === "string" && name !== "__metadata__" && isUnicode(name)
}

/** A lone surrogate has no UTF-8: two such names would become the same one. */
function isUnicode(text: string): boolean {
  return !/\p{Surrogate}/u.test(text)
}
