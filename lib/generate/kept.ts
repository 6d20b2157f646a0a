/**
 * What a model keeps of a sequence between runs, and its way from the device to host memory and back: the states of one slot, and of a
 * ring the positions that the next token sees. Sessions that make way for others, forks and snapshots are all of this form.
 */
import { bf16ToF32, f32ToBf16 } from "../checkpoint/halves.ts"
import type { Program, Slot } from "../graph/program.ts"
import { type Dtype, dtypeSizeBytes } from "../graph/value.ts"
import type { Patches } from "../models/patches.ts"
import type { Store } from "../native.ts"

/** Of a stored value what belongs to one sequence; of a ring head by head, positions in order. */
export interface HostValue {
  readonly name: string
  readonly dtype: Dtype
  readonly bytes: Uint8Array<ArrayBuffer>
}

/** What is kept of the first `rows` rows of a sequence. Never written to, so that sessions can share it. */
export interface HostState {
  readonly rows: number
  readonly values: readonly HostValue[]
}

/** Where it lies on a device: slots of what goes on with every row and with every patch, and a ring. */
export interface Seat {
  readonly slot: number
  readonly patchSlot: number
  readonly ring: number
}

/** What can be in host memory. */
interface Hosted {
  readonly host: HostState | undefined
}

/** The open sequences of a model, to tell what they have in host memory. It keeps none alive that was forgotten. */
export class OpenSequences {
  readonly #open = new Set<WeakRef<Hosted>>()
  readonly #forgotten = new FinalizationRegistry<WeakRef<Hosted>>((one) => this.#open.delete(one))

  add(sequence: Hosted): void {
    const one = new WeakRef(sequence)
    this.#open.add(one)
    this.#forgotten.register(sequence, one)
  }

  /** Bytes of their states; a state that several share counts once. */
  get hostBytes(): number {
    const states = new Set([...this.#open].flatMap((one) => one.deref()?.host ?? []))
    const values = [...states].flatMap((state) => state.values)
    return values.reduce((sum, { bytes }) => sum + bytes.byteLength, 0)
  }
}

/** A state or a ring of a model. */
interface KeptValue {
  readonly kind: "state" | "ring"
  readonly slot: Slot
  /** The input that says how the rows of a run continue it. */
  readonly segments: string
  /** Of a ring: positions that a query sees, its own among them; 0 is all. */
  readonly window: number
}

type Range = readonly [offset: number, sizeBytes: number]

export class Kept {
  readonly #patches: Patches | undefined
  readonly #values: readonly KeptValue[]

  /** `program` is one that begins a sequence: it has all that the model keeps. */
  constructor(program: Program, patches: Patches | undefined) {
    this.#patches = patches
    this.#values = (["state", "ring"] as const).flatMap((kind) =>
      program.stored(kind).map((slot) => {
        const node = program.nodes.find(
          ({ inputs }) => inputs.segments && Object.values(inputs).some(({ name }) => name === slot.name),
        )!
        return { kind, slot, segments: node.inputs.segments!.name, window: Number(node.attrs.window ?? 0) }
      }),
    )
  }

  /** Names and sizes of what is kept after so many rows. Sizes are in elements: a ring's dtype may be another elsewhere. */
  expected(rows: number): { name: string; kind: "state" | "ring"; dtype: Dtype; elements: number }[] {
    return this.#seen(rows).map(({ slot: { name, dtype }, kind, ranges }) => {
      const bytes = ranges.reduce((sum, [, size]) => sum + size, 0)
      return { name, kind, dtype, elements: bytes / dtypeSizeBytes[dtype] }
    })
  }

  async download(store: Store, seat: Seat, rows: number): Promise<HostState> {
    const values = this.#seen(rows, seat).map(async ({ kind, slot: { name, dtype }, ranges }) => {
      const parts = await Promise.all(ranges.map(([offset, size]) => store.download(kind, name, offset, size)))
      return { name, dtype, bytes: parts.length === 1 ? parts[0]! : joined(parts) }
    })
    return { rows, values: await Promise.all(values) }
  }

  /** Puts it back. A ring of another dtype is converted: to f32 exactly, to bf16 by rounding to nearest. */
  async upload(store: Store, seat: Seat, { rows, values }: HostState): Promise<void> {
    const given = new Map(values.map((value) => [value.name, value]))
    const uploads = this.#seen(rows, seat).flatMap(({ kind, slot, ranges }) => {
      const bytes = converted(given.get(slot.name)!, slot.dtype)
      let at = 0
      return ranges.map(([offset, size]) => {
        const part = bytes.subarray(at, at + size)
        at += size
        return store.upload(kind, slot, part, offset)
      })
    })
    await Promise.all(uploads)
  }

  /** What has something to keep after so many rows, and where it lies. */
  #seen(rows: number, { slot, patchSlot, ring }: Seat = { slot: 0, patchSlot: 0, ring: 0 }) {
    return this.#values.flatMap((value) => {
      const seen = this.#positions(value.segments, rows)
      if (seen === 0) return []
      if (value.kind === "ring") {
        const first = value.window > 0 ? Math.max(0, seen - value.window + 1) : 0
        return first < seen ? [{ ...value, ranges: ringRanges(value.slot, ring, first, seen) }] : []
      }
      const size = value.slot.sizeBytes / value.slot.shape[0]!
      const at = value.segments === "patch.segments" ? patchSlot : slot
      return [{ ...value, ranges: [[at * size, size] as Range] }]
    })
  }

  /** Positions that a sequence of so many rows has for a value: of a model in patches one for each patch, or those of the last. */
  #positions(segments: string, rows: number): number {
    const patches = this.#patches
    if (patches === undefined || rows === 0) return rows
    if (segments === "patch.segments") return patches.patchOf(rows - 1) + 1
    if (segments === "local.segments") return patches.begins(rows) ? 0 : patches.placeOf(rows - 1) + 1
    return rows - 1 // the start carries nothing that could be recorded
  }
}

/** Positions first ≤ p < end of a ring (rings, heads, capacity, width), in which p lies at p mod capacity. */
function ringRanges({ shape, dtype }: Slot, ring: number, first: number, end: number): Range[] {
  const [, heads = 0, capacity = 0, width = 0] = shape
  const size = width * dtypeSizeBytes[dtype]
  const begin = first % capacity
  const before = Math.min(end - first, capacity - begin)
  return Array.from({ length: heads }, (_, head) => {
    const base = (ring * heads + head) * capacity
    const ranges: Range[] = [[(base + begin) * size, before * size]]
    if (end - first > before) ranges.push([base * size, (end - first - before) * size])
    return ranges
  }).flat()
}

function joined(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0))
  let at = 0
  for (const part of parts) {
    whole.set(part, at)
    at += part.length
  }
  return whole
}

function converted({ dtype, bytes }: HostValue, wanted: Dtype): Uint8Array {
  if (dtype === wanted) return bytes
  const { buffer, byteOffset, byteLength } = bytes
  const values =
    wanted === "f32"
      ? bf16ToF32(new Uint16Array(buffer, byteOffset, byteLength / 2))
      : f32ToBf16(new Float32Array(buffer, byteOffset, byteLength / 4))
  return new Uint8Array(values.buffer)
}
