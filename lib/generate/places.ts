/**
 * The places that a model has for sessions on its device, lent to as many sessions as like: those that nobody uses make way.
 *
 * A place is some slots of every state, and a ring. A session takes one when it is first used and keeps it while nobody else needs it;
 * then the session that was not used for the longest time goes to host memory, to come back when it is used again. A session that is in
 * use, a generator that waits for its consumer included, never makes way. Nobody waits for another session's use, only for copies,
 * which end by themselves: so nothing here can wait for ever.
 */
import { SelscanError } from "../errors.ts"

/** Slots of every state, and the ring that attention keeps a sequence in. Number 0 is nobody's. */
export interface Place {
  readonly slots: readonly number[]
  readonly ring: number
}

/** Who can have a place. */
export interface Holder {
  /** Copies what it has there to the host, and lets go of the place. It may not be in use. */
  spill(): Promise<void>
}

/** One that is in use from when it has a place until it gives it back, so that it never makes way. Keep it: a place is lent weakly. */
export const guest = (): Holder => ({ spill: () => Promise.resolve() })

/** Where a place is, and with whom. */
interface Entry {
  readonly place: Place
  /** Weak, so that a session which was forgotten, in a generator that nobody ended too, gives its place back. */
  holder: WeakRef<Holder> | undefined
  inUse: boolean
  /** Copies under way that read the place. */
  copies: number
  /** When it was last let go, in uses of all places. */
  used: number
}

export class Places {
  readonly sessions: number
  /** Slots of every state, and rings, 0 among them. */
  readonly slotCount: number
  readonly ringCount: number
  readonly #entries: readonly Entry[]
  readonly #forgotten = new FinalizationRegistry<Entry>((entry) => {
    if (entry.holder?.deref() === undefined) this.#free(entry)
  })
  #waiting: (() => void)[] = []
  #uses = 0

  constructor(sessions: number, slotsEach: number) {
    this.sessions = sessions
    this.slotCount = 1 + sessions * slotsEach
    this.ringCount = 1 + sessions
    this.#entries = Array.from({ length: sessions }, (_, i) => {
      const slots = Array.from({ length: slotsEach }, (_, slot) => 1 + i * slotsEach + slot)
      return { place: { slots, ring: 1 + i }, holder: undefined, inUse: false, copies: 0, used: 0 }
    })
  }

  /**
   * The holder's place, in use from now until leave(). Another one than before where it has been to the host.
   * @throws SLOTS_EXHAUSTED when all are in use; what copying the one that makes way throws, which then stays where it is
   */
  async enter(holder: Holder): Promise<Place> {
    for (;;) {
      const own = this.#of(holder)
      const free = own ?? this.#entries.find((entry) => entry.holder === undefined && entry.copies === 0)
      if (free?.copies === 0) return this.#lend(free, holder)
      const idle = own ? undefined : this.#idle()
      if (idle) return await this.#replace(idle, holder)
      if (!this.#entries.some(({ copies }) => copies > 0)) throw exhausted(this.sessions)
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
  }

  /** The holder does not use its place any more, but keeps it until somebody else needs it. */
  leave(holder: Holder): void {
    const own = this.#of(holder)
    if (own === undefined) return
    own.inUse = false
    own.used = ++this.#uses
    this.#wake()
  }

  /** The place is nobody's from now on, once copies of it have ended. */
  release(holder: Holder): void {
    this.leave(holder)
    const own = this.#of(holder)
    if (own) this.#free(own)
  }

  /** Holds the holder's place as it is until a copy of it has ended. */
  copying<T>(holder: Holder, copy: Promise<T>): Promise<T> {
    const own = this.#of(holder)
    if (own === undefined) return copy
    own.copies++
    const end = () => {
      own.copies--
      this.#wake()
    }
    copy.then(end, end)
    return copy
  }

  #of(holder: Holder): Entry | undefined {
    return this.#entries.find((entry) => entry.holder?.deref() === holder)
  }

  /** The one that was not used for the longest time. */
  #idle(): Entry | undefined {
    const idle = this.#entries.filter(({ holder, inUse, copies }) => holder !== undefined && !inUse && copies === 0)
    return idle.sort((a, b) => a.used - b.used)[0]
  }

  #lend(entry: Entry, holder: Holder): Place {
    if (entry.holder?.deref() !== holder) {
      entry.holder = new WeakRef(holder)
      this.#forgotten.register(holder, entry)
    }
    entry.inUse = true
    return entry.place
  }

  #free(entry: Entry): void {
    entry.holder = undefined
    entry.inUse = false
    this.#wake()
  }

  async #replace(entry: Entry, holder: Holder): Promise<Place> {
    entry.copies++
    try {
      await entry.holder?.deref()?.spill()
      return this.#lend(entry, holder)
    } finally {
      entry.copies--
      this.#wake()
    }
  }

  #wake(): void {
    const waiting = this.#waiting
    this.#waiting = []
    for (const resolve of waiting) resolve()
  }
}

function exhausted(sessions: number): SelscanError {
  const message = `session: a place on the device is expected, got all ${sessions} in use by sessions that run; end one of them, or load the model with more sessions`
  return new SelscanError("SLOTS_EXHAUSTED", message, { sessions })
}
