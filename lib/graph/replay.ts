/**
 * Replay files: a program with everything one run of it needs and should give, for `selscan-replay` (native/replay.cpp),
 * which runs them with no Node in the process.
 */
import { expect, suggestion } from "../errors.ts"
import type { Program, Slot } from "./program.ts"
import { dtypes, type Storage, storages } from "./value.ts"
import { ByteWriter } from "./writer.ts"

type Bytes = ArrayBufferView
type StoredKind = Exclude<Storage, "temporary" | "input">

/** What a stored value holds before the run. One that is left out begins with zeros. */
export interface ReplayStored {
  readonly kind: StoredKind
  readonly name: string
  readonly bytes: Bytes
}

/** What the run should leave in an output, or, with `kind`, in a stored value that the program updates. */
export interface ReplayExpected {
  readonly name: string
  readonly kind?: StoredKind
  readonly bytes: Bytes
  /** Allowed difference relative to the largest magnitude expected. Default 0: the same values. */
  readonly rtol?: number
}

/**
 * The bytes of a replay file: "SSR1", the program, stored values, inputs in the order of `program.inputs`, expectations, and
 * an FNV-1a checksum; all little-endian.
 *
 * @throws BAD_INPUT when an input or output is missing, unknown or of the wrong size
 * @example
 * writeFileSync("step.ssr", replayFile(program, { inputs: { x }, expected: [{ name: "y", bytes: y, rtol: 1e-5 }] }))
 */
export function replayFile(
  program: Program,
  {
    stored = [],
    inputs,
    expected,
  }: {
    readonly stored?: readonly ReplayStored[]
    readonly inputs: Readonly<Record<string, Bytes>>
    readonly expected: readonly ReplayExpected[]
  },
): Uint8Array<ArrayBuffer> {
  const where = `replay ${program.name}`
  const writer = new ByteWriter()
  writer.u32(0x31525353) // "SSR1"
  block(writer, program.serialise())
  writer.u32(stored.length)
  for (const { kind, name, bytes } of stored) {
    const slot = slotNamed(where, kind, program.stored(kind), name, bytes)
    writer.u8(storages.indexOf(kind))
    writer.string(name)
    writer.u8(dtypes.indexOf(slot.dtype))
    writer.u8(slot.shape.length)
    for (const size of slot.shape) writer.i64(size)
    block(writer, bytes)
  }
  const known = program.inputs.map((slot) => slot.name)
  for (const name of Object.keys(inputs)) {
    expect(known.includes(name), "BAD_INPUT", () => `${where}: unknown input ${name}, ${suggestion(name, known)}`)
  }
  writer.u32(known.length)
  for (const name of known) {
    const bytes = inputs[name]
    expect(bytes !== undefined, "BAD_INPUT", () => `${where}: input ${name} is missing`)
    slotNamed(where, "input", program.inputs, name, bytes)
    block(writer, bytes)
  }
  writeExpected(writer, where, program, expected)
  return writer.finish()
}

/** Program outputs come first, in the order of the program; then updated stored values. */
function writeExpected(writer: ByteWriter, where: string, program: Program, expected: readonly ReplayExpected[]): void {
  const outputs = program.outputSlots.map(({ name }) => {
    const found = expected.find((entry) => entry.kind === undefined && entry.name === name)
    expect(found !== undefined, "BAD_INPUT", () => `${where}: output ${name} has no expectation`)
    return found
  })
  const updated = expected.filter((entry) => entry.kind !== undefined)
  expect(
    outputs.length + updated.length === expected.length,
    "BAD_INPUT",
    () => `${where}: every output is expected once, got ${expected.length - updated.length} for ${outputs.length}`,
  )
  writer.u32(expected.length)
  for (const { kind, name, bytes, rtol = 0 } of [...outputs, ...updated]) {
    const slots = kind === undefined ? program.outputSlots : program.stored(kind)
    const slot = slotNamed(where, kind ?? "output", slots, name, bytes)
    writer.u8(storages.indexOf(kind ?? "temporary"))
    writer.string(name)
    writer.u8(dtypes.indexOf(slot.dtype))
    writer.f64(rtol)
    block(writer, bytes)
  }
}

function slotNamed(where: string, kind: string, slots: readonly Slot[], name: string, bytes: Bytes): Slot {
  const slot = slots.find((candidate) => candidate.name === name)
  expect(
    slot !== undefined,
    "BAD_INPUT",
    () =>
      `${where}: unknown ${kind} ${name}, ${suggestion(
        name,
        slots.map((candidate) => candidate.name),
      )}`,
  )
  expect(
    bytes.byteLength === slot.sizeBytes,
    "BAD_INPUT",
    () => `${where}: ${kind} ${name} is ${slot.sizeBytes} bytes, got ${bytes.byteLength}`,
  )
  return slot
}

function block(writer: ByteWriter, { buffer, byteOffset, byteLength }: Bytes): void {
  writer.i64(byteLength)
  writer.raw(new Uint8Array(buffer, byteOffset, byteLength))
}
