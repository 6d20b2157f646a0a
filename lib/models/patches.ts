/**
 * How the rows of a run fall into patches: arithmetic on positions, the inputs that say so, and their values for given pieces.
 *
 * Row q of a sequence carries byte q − 1 and predicts byte q; row 0 carries nothing. With patches of P, byte t is in patch ⌊t/P⌋. A
 * patch takes part twice. As a whole it is one row of the global stage, computed when the patch begins from the bytes of the patch
 * before it. Its bytes are rows of the local stage at positions 1 … P of a sequence of their own, behind a start row at position 0.
 * The start row of patch 0 is row 0 itself; those of later patches are no rows of the sequence: nobody asks what they predict.
 *
 *   row        0        1 … P        P + 1 … 2P
 *   local      start    bytes of 0   start, bytes of 1      …
 *   begins     patch 0               patch 1, of bytes 0 … P − 1
 */
import { expect } from "../errors.ts"
import type { Trace } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import type { Rows } from "../layers/layer.ts"

/** The id of the row before a sequence's first byte. */
export const startId = -1

/** The rows of one sequence in a run. */
export interface Piece {
  /** Rows [begin, end) of the run, from position `position` of the sequence on. */
  readonly begin: number
  readonly end: number
  readonly position: number
  /** Slots that its states are read from and written to. */
  readonly from: number
  readonly to: number
  /** The same for the states of what runs once for each patch, which fall behind between two. Default from and to. */
  readonly patchFrom?: number
  readonly patchTo?: number
  readonly ring: number
  /** Ids of its rows. */
  readonly ids: ArrayLike<number>
  /** Ids before them, the newest last; as many as a patch has where there are so many. */
  readonly before?: ArrayLike<number>
}

/** Inputs of a run by name. */
export type RunInputs = Record<string, Int32Array>

/** What the stages of a model in patches read beside the ids, in a run that begins patches. */
export interface Begun {
  /** One line for each sequence: its rows of the global stage. */
  readonly segments: Value
  /** i32 (patches·size): bytes of the patch before each begun one. */
  readonly bytes: Value
  /** i32 (patches): the row itself where bytes are there, else −1; the start's only id where it is the first; place among the patches. */
  readonly index: Value
  readonly starts: Value
  readonly places: Value
}

/** What the local stage reads. */
export interface Local {
  /** One line for each patch. */
  readonly segments: Value
  readonly rings: Value | undefined
  /** i32 (rows of the stage): bytes, the start's only id in rows at position 0, places in the patch from 0. */
  readonly ids: Value
  readonly starts: Value | undefined
  readonly places: Value
  /** i32 (rows of the run): their rows in the stage; undefined where those are the run's own. */
  readonly index: Value | undefined
}

export class Patches {
  /** Bytes of a patch. */
  readonly size: number

  constructor(size: number) {
    this.size = size
  }

  /** The patch that row `position` is in. */
  patchOf(position: number): number {
    return position === 0 ? 0 : Math.floor((position - 1) / this.size)
  }

  /** Where row `position` stands in the local sequence of its patch. */
  placeOf(position: number): number {
    return position === 0 ? 0 : ((position - 1) % this.size) + 1
  }

  /** Whether row `position` is the first of its patch. */
  begins(position: number): boolean {
    return position === 0 || (position > this.size && (position - 1) % this.size === 0)
  }

  /**
   * How many of `count` rows from `position` on one run of at most `most` takes. Inside a patch it goes to its end, no further: what
   * attention keeps of one patch makes way for the next. Else to the end of the last whole patch, or of all rows.
   */
  cut(position: number, count: number, most: number): number {
    if (!this.begins(position)) return Math.min(count, most, 1 + this.size - this.placeOf(position))
    if (count <= most) return count
    const whole = Math.floor((most - (position === 0 ? 1 : 0)) / this.size) * this.size
    return whole === 0 ? most : whole + (position === 0 ? 1 : 0)
  }

  /** Patches that a run of so many rows of one sequence begins at most; 0 where it begins none. */
  mostBegun(position: number, rows: number): number {
    return this.begins(position) ? Math.ceil(rows / this.size) : 0
  }

  /** Whether a run that ends before row `end` overwrites what the local stage keeps of the patch that `length` rows end in. */
  leaves(length: number, end: number): boolean {
    return !this.begins(length) && this.patchOf(end - 1) > this.patchOf(length)
  }

  /** The inputs of a program whose rows carry `ids`. Those of a run that begins no patch are fewer. */
  declare(t: Trace, ids: Value, rows: Rows): { begun: Begun | undefined; local: Local } {
    const [count, lines, patches = 0] = [ids.shape[0]!, rows.segments.shape[0]!, rows.patches]
    const input = (name: string, ...shape: number[]) => t.input(name, "i32", shape)
    if (patches === 0) {
      const segments = input("local.segments", lines, 5)
      const places = input("local.places", count)
      return {
        begun: undefined,
        local: { segments, rings: rows.rings?.index, ids, starts: undefined, places, index: undefined },
      }
    }
    const all = count + patches
    return {
      begun: {
        segments: input("patch.segments", lines, 5),
        bytes: input("patch.bytes", patches * this.size),
        index: input("patch.index", patches),
        starts: input("patch.starts", patches),
        places: input("patch.places", patches),
      },
      local: {
        segments: input("local.segments", patches, 5),
        rings: rows.rings && input("local.rings", patches),
        ids: input("local.ids", all),
        starts: input("local.starts", all),
        places: input("local.places", all),
        index: input("local.index", count),
      },
    }
  }

  /**
   * Their values for a run of `rows` rows that begins at most `patches` patches, and `segments`: the rows that carry bytes, where
   * nothing was recorded before the first of a sequence.
   * @throws BAD_INPUT for pieces that begin where no patch does, or, with patches 0, leave the one that they are in
   */
  inputs(pieces: readonly Piece[], rows: number, patches: number): RunInputs {
    this.#check(pieces, patches)
    const segments = pieces.flatMap(({ begin, end, position, from, to }) => {
      const first = begin + (position === 0 ? 1 : 0)
      return [first, end, Math.max(0, position - 1), position <= 1 ? 0 : from, to]
    })
    const rings = Int32Array.from(pieces, ({ ring }) => ring)
    const own = { segments: Int32Array.from(segments), rings }
    if (patches > 0) return { ...own, ...this.#begin(pieces, rows, patches) }
    const lines = pieces.flatMap(({ begin, end, position, from, to }) => [begin, end, this.placeOf(position), from, to])
    const places = new Int32Array(rows).fill(-1)
    for (const { begin, end, position } of pieces) {
      for (let row = begin; row < end; row++) places[row] = this.placeOf(position + row - begin) - 1
    }
    return { ...own, "local.segments": Int32Array.from(lines), "local.places": places }
  }

  #check(pieces: readonly Piece[], patches: number): void {
    for (const { begin, end, position } of pieces) {
      if (begin === end) continue
      const inside = this.patchOf(position + end - begin - 1) === this.patchOf(position)
      expect(
        patches > 0 ? this.begins(position) : !this.begins(position) && inside,
        "BAD_INPUT",
        () =>
          `patches: rows from the first of a patch of ${this.size} on, or inside one, are expected, got ${end - begin} rows from ${position}; cut them by Patches.cut`,
      )
    }
  }

  #begin(pieces: readonly Piece[], rows: number, patches: number): RunInputs {
    const run = new BegunRun(rows, patches, this.size)
    const lines = pieces.flatMap((piece) => {
      const first = run.patch
      this.#walk(run, piece)
      const { position, patchFrom = piece.from, patchTo = piece.to } = piece
      return [first, run.patch, this.patchOf(position), position === 0 ? 0 : patchFrom, patchTo]
    })
    return { "patch.segments": Int32Array.from(lines), ...run.inputs }
  }

  #walk(run: BegunRun, { begin, end, position, to, ring, ids, before = [] }: Piece): void {
    // Byte t is carried by row t + 1 of the sequence.
    const byteAt = (t: number) => {
      const row = t + 1 - position
      return row >= 0 ? ids[row]! : before[before.length + row]!
    }
    for (let i = 0; i < end - begin; i++) {
      const q = position + i
      if (this.begins(q)) run.begin(this.patchOf(q), byteAt)
      if (q === 0) run.index[begin] = run.row - 1
      else run.add(begin + i, ids[i]!, this.placeOf(q) - 1)
    }
    if (end > begin) run.leave(to, ring)
  }
}

/** The inputs of a run that begins patches, filled row by row. */
class BegunRun {
  readonly #size: number
  readonly index: Int32Array
  readonly #patches: Record<"bytes" | "index" | "starts" | "places", Int32Array>
  readonly #local: Record<"ids" | "starts" | "places", Int32Array>
  readonly #lines: Int32Array
  readonly #rings: Int32Array
  /** The next patch, and the next row of the local stage. */
  patch = 0
  row = 0

  constructor(rows: number, patches: number, size: number) {
    const none = (count: number) => new Int32Array(count).fill(-1)
    const all = rows + patches
    this.#size = size
    this.index = none(rows)
    this.#patches = { bytes: none(patches * size), index: none(patches), starts: none(patches), places: none(patches) }
    this.#local = { ids: none(all), starts: none(all), places: none(all) }
    this.#lines = new Int32Array(patches * 5)
    this.#rings = new Int32Array(patches)
  }

  /** Patch `number` of its sequence: its row in the global stage, and its start row. */
  begin(number: number, byteAt: (t: number) => number): void {
    const at = this.patch++
    if (number === 0) this.#patches.starts[at] = 0
    else {
      this.#patches.index[at] = at
      this.#patches.places[at] = number - 1
      for (let i = 0; i < this.#size; i++) {
        this.#patches.bytes[at * this.#size + i] = byteAt((number - 1) * this.#size + i)
      }
    }
    this.#lines.set([this.row, this.row + 1], at * 5)
    this.#local.starts[this.row++] = 0
  }

  /** A byte of the patch that was begun last. */
  add(row: number, id: number, place: number): void {
    this.#local.ids[this.row] = id
    this.#local.places[this.row] = place
    this.index[row] = this.row++
    this.#lines[(this.patch - 1) * 5 + 1] = this.row
  }

  /** What the sequence's last patch leaves goes to that slot and ring. */
  leave(to: number, ring: number): void {
    this.#lines[(this.patch - 1) * 5 + 4] = to
    this.#rings[this.patch - 1] = ring
  }

  get inputs(): RunInputs {
    const under = (path: string, fields: RunInputs) =>
      Object.entries(fields).map(([name, data]) => [`${path}.${name}`, data] as const)
    return Object.fromEntries([
      ...under("patch", this.#patches),
      ...under("local", { ...this.#local, segments: this.#lines, rings: this.#rings, index: this.index }),
    ])
  }
}
