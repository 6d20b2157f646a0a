/**
 * The slots of a session: which hold the state that counts, and which the next run writes.
 *
 * A run reads one slot and writes another, which counts once the run is complete. What a model computes once for each patch goes on
 * less often than the rest, so its states alternate between the same two slots by a turn of their own. A third slot holds a state to
 * return to, a fourth that of the patches.
 */
import type { LanguageModel } from "../models/language-model.ts"
import type { Store } from "../native.ts"

/** Slots that every session takes. */
export const slotsPerSession = ({ patches }: Pick<LanguageModel, "patches">): number => (patches ? 4 : 3)

/** From where to where a run takes its states; slot 0 is a fresh one. */
export interface SlotTurn {
  readonly from: number
  readonly to: number
  readonly patchFrom: number
  readonly patchTo: number
}

export class SessionSlots {
  readonly #all: readonly number[]
  #rows = 0
  #patches = 1

  /** Where a state is brought there from the host, it goes to where `current` says. */
  constructor(slots: readonly number[]) {
    this.#all = slots
  }

  /** The slots of the state that counts. */
  get current(): { slot: number; patchSlot: number } {
    return { slot: this.#all[this.#rows]!, patchSlot: this.#all[this.#patches]! }
  }

  /** What the next run reads and writes; `fresh` where the sequence has not begun. */
  turn(fresh: boolean): SlotTurn {
    const of = (current: number) => [fresh ? 0 : this.#all[current]!, this.#all[1 - current]!] as const
    const [[from, to], [patchFrom, patchTo]] = [of(this.#rows), of(this.#patches)]
    return { from, to, patchFrom, patchTo }
  }

  /** A run is complete; `begun` where it began patches. */
  adopt(begun: boolean): void {
    this.#rows = 1 - this.#rows
    if (begun) this.#patches = 1 - this.#patches
  }

  /** Copies the state that counts, so that it can be returned to after any number of runs. */
  async keep(store: Store): Promise<void> {
    const [, , rows, patches] = this.#all
    const { slot, patchSlot } = this.current
    await store.copySlot(slot, rows!)
    if (patches !== undefined) await store.copySlot(patchSlot, patches)
  }

  /** Goes back to it, or where none was kept to nothing. */
  async restore(store: Store, kept: boolean): Promise<void> {
    const [first, second, rows, patches] = this.#all
    this.#rows = 0
    this.#patches = 1
    if (!kept) return
    await store.copySlot(rows!, first!)
    if (patches !== undefined) await store.copySlot(patches, second!)
  }
}
