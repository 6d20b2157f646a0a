/**
 * A session's rings as they were at some length of its sequence: copied to the host only when runs are about to overwrite what was visible then.
 */
import type { Program, Slot } from "../graph/program.ts"
import type { Store } from "../native.ts"

/** Whether a run that ends before row `end` overwrites what was visible in a ring. */
export type Overwrites = (ring: Slot, end: number) => boolean

/**
 * Rings hold position p at p mod capacity, and have room for `rowsMost` rows beside the window: so many can follow `length` without
 * harm.
 */
export const wrapsAfter =
  (length: number, rowsMost: number): Overwrites =>
  ({ shape }, end) =>
    end > length + rowsMost && end > shape[2]!

export class RingCopy {
  readonly #store: Store
  readonly #ring: number
  readonly #overwrites: Overwrites
  readonly #kept = new Map<Slot, Uint8Array<ArrayBuffer>>()

  constructor(store: Store, ring: number, overwrites: Overwrites) {
    this.#store = store
    this.#ring = ring
    this.#overwrites = overwrites
  }

  /** To be called before a run that ends before row `end`: copies the rings of the program in which it overwrites what was visible. */
  async keepFrom(program: Program, end: number): Promise<void> {
    for (const slot of program.stored("ring")) {
      if (!this.#overwrites(slot, end) || this.#isKept(slot.name)) continue
      const [offset, size] = this.#place(slot)
      this.#kept.set(slot, await this.#store.download("ring", slot.name, offset, size))
    }
  }

  /** Puts back what was copied; what was not is there still. */
  async restore(): Promise<void> {
    for (const [slot, bytes] of this.#kept) await this.#store.upload("ring", slot, bytes, this.#place(slot)[0])
  }

  #isKept(name: string): boolean {
    return [...this.#kept.keys()].some((slot) => slot.name === name)
  }

  /** Where the ring lies in a stored value. */
  #place({ sizeBytes, shape }: Slot): [offset: number, sizeBytes: number] {
    const size = sizeBytes / shape[0]!
    return [this.#ring * size, size]
  }
}
