/**
 * Sessions as bytes: little-endian, in this order.
 *
 *   "selscan\n"      8 bytes
 *   version          u32, 1
 *   header           u32, its bytes
 *   all              u64, bytes of the whole snapshot
 *   header           JSON: the model's name and fingerprint, how many rows were run, the tokens before and after, and a line
 *                    [name, dtype, bytes] for each value
 *   values           their bytes, one after the other
 *   checksum         SHA-256 of everything before it
 *
 * Every byte is covered by the checksum, and a header that passes it is still believed in nothing: what it says is held against the
 * model before anything is put onto a device.
 */
import { createHash } from "node:crypto"
import { type ErrorCode, expect, SelscanError } from "../errors.ts"
import { type Dtype, dtypeSizeBytes } from "../graph/value.ts"
import { startRows } from "../models/language-model.ts"
import { startId } from "../models/patches.ts"
import type { HostState } from "./kept.ts"
import type { Model } from "./model.ts"

const magic = "selscan\n"
const version = 1
const fixedBytes = magic.length + 4 + 4 + 8
const checksumBytes = 32

/** What a session is: rows that have been run, and tokens that have not. */
export interface Content {
  readonly rows: number
  /** The last ids that have been run: as many as a patch has, where the model reads patches. */
  readonly before: readonly number[]
  readonly pending: readonly number[]
  /** What the model keeps of the rows; undefined where there are none. */
  readonly state?: HostState | undefined
}

/** A model as snapshots name it. */
export interface Named {
  readonly model: string
  readonly fingerprint: string
}

type ValueLine = readonly [name: string, dtype: Dtype, sizeBytes: number]

interface Header extends Named, Omit<Content, "state"> {
  readonly values: readonly ValueLine[]
}

export function writeSnapshot({ model, fingerprint }: Named, content: Content): Uint8Array<ArrayBuffer> {
  const { rows, before, pending, state } = content
  const values = state?.values ?? []
  const lines = values.map(({ name, dtype, bytes }): ValueLine => [name, dtype, bytes.byteLength])
  const header: Header = { model, fingerprint, rows, before, pending, values: lines }
  const text = new TextEncoder().encode(JSON.stringify(header))
  const dataBytes = lines.reduce((sum, [, , size]) => sum + size, 0)
  const whole = new Uint8Array(fixedBytes + text.length + dataBytes + checksumBytes)
  const view = new DataView(whole.buffer)
  whole.set(new TextEncoder().encode(magic))
  view.setUint32(8, version, true)
  view.setUint32(12, text.length, true)
  view.setBigUint64(16, BigInt(whole.length), true)
  whole.set(text, fixedBytes)
  let at = fixedBytes + text.length
  for (const { bytes } of values) {
    whole.set(bytes, at)
    at += bytes.byteLength
  }
  whole.set(checksum(whole.subarray(0, at)), at)
  return whole
}

/**
 * Reads a snapshot and copies what is in it.
 * @throws BAD_INPUT for what are no bytes; BAD_SNAPSHOT for bytes that are none, damaged, or of another version
 */
export function readSnapshot(given: Uint8Array): Content & Named {
  expect(
    given instanceof Uint8Array,
    "BAD_INPUT",
    () =>
      `session: a snapshot is a Uint8Array, got ${given === null ? "null" : typeof given}; give what save() returned`,
  )
  const bytes = new Uint8Array(given) // the caller may go on writing to it
  const view = new DataView(bytes.buffer)
  const begun = new TextDecoder("latin1").decode(bytes.subarray(0, magic.length)) === magic
  check(
    begun && bytes.length >= fixedBytes + checksumBytes,
    "a snapshot of a session",
    `${bytes.length} bytes that are none`,
  )
  const found = view.getUint32(8, true)
  check(found === version, `a snapshot of version ${version}`, `version ${found}; use the selscan that wrote it`)
  const all = view.getBigUint64(16, true)
  check(all === BigInt(bytes.length), `a snapshot of ${all} bytes`, `${bytes.length}; it was cut or added to`)
  const end = bytes.length - checksumBytes
  const intact = Buffer.compare(checksum(bytes.subarray(0, end)), bytes.subarray(end)) === 0
  check(intact, "a snapshot whose checksum fits", "one that is damaged")
  const header = readHeader(bytes.subarray(fixedBytes, Math.min(end, fixedBytes + view.getUint32(12, true))))
  const values = readValues(bytes.subarray(0, end), fixedBytes + view.getUint32(12, true), header?.values)
  check(header && values, "a snapshot that selscan wrote", "a header that it does not write")
  return { ...header, ...(header.rows > 0 && { state: { rows: header.rows, values } }) }
}

/**
 * Holds a snapshot against the model that is to go on with it.
 * @throws BAD_SNAPSHOT for one of another model; BAD_INPUT for more tokens than this one's contextMax
 */
export function checkSnapshot(model: Model, own: Named, content: Content & Named): void {
  const of = ({ model, fingerprint }: Named) => `${JSON.stringify(model)} (weights ${fingerprint.slice(0, 12)})`
  check(
    own.fingerprint === content.fingerprint,
    `a snapshot of the model ${of(own)}`,
    `one of ${of(content)}; load that`,
    {
      expected: own.model,
      got: content.model,
    },
  )
  const { network } = model
  const { rows, before, pending, state } = content
  const start = startRows(network)
  const id = (row: number) => (value: number, i: number) =>
    row + i < start ? value === startId : Number.isInteger(value) && value >= 0 && value < network.vocab
  const expectedBefore = Math.min(rows, network.patches?.size ?? 0)
  const tokens =
    before.length === expectedBefore &&
    before.every(id(rows - before.length)) &&
    pending.every(id(rows)) &&
    pending.length >= (rows > 0 ? 1 : start)
  check(tokens, "tokens as the model has them", "others")
  const { contextMax = Number.POSITIVE_INFINITY } = network
  const held = rows + pending.length - start
  expect(
    held <= contextMax,
    "BAD_INPUT",
    () =>
      `session: a snapshot of at most contextMax = ${contextMax} tokens is expected, got one of ${held}; load the model with a larger contextMax`,
  )
  const values = state?.values ?? []
  const wanted = rows > 0 ? model.kept.expected(rows) : []
  const same =
    values.length === wanted.length &&
    wanted.every(({ name, kind, dtype, elements }, i) => {
      const value = values[i]!
      const dtypes: readonly Dtype[] = kind === "ring" ? ["f32", "bf16"] : [dtype]
      return (
        value.name === name &&
        dtypes.includes(value.dtype) &&
        value.bytes.byteLength === elements * dtypeSizeBytes[value.dtype]
      )
    })
  check(same, "the states that the model keeps", "others")
}

function check(condition: unknown, expected: string, got: string, details = {}): asserts condition {
  const code: ErrorCode = "BAD_SNAPSHOT"
  if (!condition) throw new SelscanError(code, `session: ${expected} is expected, got ${got}`, details)
}

/** Node hashes at most 2 GiB at once. */
const hashedBytes = 1 << 30

function checksum(bytes: Uint8Array): Buffer {
  const hash = createHash("sha256")
  for (let at = 0; at < bytes.length; at += hashedBytes) hash.update(bytes.subarray(at, at + hashedBytes))
  return hash.digest()
}

/** The header, or undefined where it is not one. */
function readHeader(bytes: Uint8Array): Header | undefined {
  try {
    const header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) as Header
    return isHeader(header) ? header : undefined
  } catch {
    return undefined
  }
}

function isHeader({ model, fingerprint, rows, before, pending, values }: Header): boolean {
  const numbers = (list: unknown) => Array.isArray(list) && list.every((one) => Number.isInteger(one))
  const isLine = (line: unknown) =>
    Array.isArray(line) &&
    typeof line[0] === "string" &&
    Object.hasOwn(dtypeSizeBytes, line[1]) &&
    Number.isSafeInteger(line[2]) &&
    line[2] > 0 &&
    line[2] % dtypeSizeBytes[line[1] as Dtype] === 0
  return (
    typeof model === "string" &&
    /^[0-9a-f]{64}$/.test(fingerprint) &&
    Number.isInteger(rows) &&
    rows >= 0 &&
    rows < 2 ** 31 &&
    numbers(before) &&
    numbers(pending) &&
    Array.isArray(values) &&
    values.every(isLine) &&
    (rows > 0 || values.length === 0)
  )
}

/** The values that the lines speak of, or undefined where they do not fill the bytes exactly. */
function readValues(bytes: Uint8Array<ArrayBuffer>, from: number, lines: readonly ValueLine[] | undefined) {
  let at = from
  const ends = (lines ?? []).map(([, , size]) => (at += size))
  if (at !== bytes.length) return undefined
  return (lines ?? []).map(([name, dtype, size], i) => ({ name, dtype, bytes: bytes.slice(ends[i]! - size, ends[i]!) }))
}
