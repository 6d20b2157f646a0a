/**
 * Slots of a model's states, or its rings, lent to sessions. Number 0 is nobody's.
 */
import { SelscanError } from "../errors.ts"

export class Slots {
  readonly capacity: number
  readonly #what: string
  readonly #free: number[]

  constructor(what: string, capacity: number) {
    this.#what = what
    this.capacity = capacity
    this.#free = Array.from({ length: capacity - 1 }, (_, i) => capacity - 1 - i)
  }

  take(count: number): number[] {
    if (this.#free.length < count) {
      throw new SelscanError(
        "SLOTS_EXHAUSTED",
        `model: ${count} free ${this.#what} are expected, got ${this.#free.length} of ${this.capacity - 1}; dispose of a session, or load the model with more sessions`,
        { capacity: this.capacity },
      )
    }
    return this.#free.splice(-count)
  }

  give(slots: readonly number[]): void {
    this.#free.push(...slots)
  }
}
