/**
 * Several sequences of a model side by side: their prompts one after another, then a row of each in every run. What `selscan bench`
 * measures of them, and with its own programs what it profiles.
 */
import { type Program, trace } from "../graph/program.ts"
import { headOf, startRows } from "../models/language-model.ts"
import { type Piece, startId } from "../models/patches.ts"
import type { Executable, HostArray } from "../native.ts"
import { linear } from "../ops/linear.ts"
import { sample } from "../ops/sample.ts"
import { layoutInputs, layoutOf, numericsOf } from "./layout.ts"
import type { Model } from "./model.ts"
import { guest, type Holder, type Place } from "./places.ts"
import { rowsFor, rowsNext } from "./programs.ts"
import { sampling, samplingInputs } from "./sampling.ts"
import { SessionSlots } from "./session-slots.ts"

/** How many of what. */
export interface Sizes {
  /** Tokens of the prompt of each sequence. */
  readonly prefill: number
  /** Tokens that each writes. */
  readonly decode: number
  /** Sequences. */
  readonly batch: number
}

/** The prompt of a sequence, and the token to begin writing with: any ids do, and each sequence has its own. */
export const promptIds = (sequence: number, { prefill }: Pick<Sizes, "prefill">, vocab: number): number[] =>
  Array.from({ length: prefill + 1 }, (_, i) => (i * 7919 + sequence * 31 + 101) % vocab)

/** The compiled programs that sequences run, by the position of their first row. */
export interface Programs {
  prompt(rows: number, position: number): Promise<Executable>
  next(batch: number, position: number): Promise<Executable>
}

/** The model's own prompts, as sessions run them, and a program of ours for each number of sequences. */
export class OwnPrograms implements Programs {
  readonly #model: Model
  readonly #next = new Map<number, Promise<Executable>>()

  constructor(model: Model) {
    this.#model = model
  }

  prompt(rows: number, position: number): Promise<Executable> {
    return this.#model.step("prompt", rows, position)
  }

  next(batch: number): Promise<Executable> {
    let next = this.#next.get(batch)
    if (next === undefined) {
      next = this.#model.store.compile(nextProgram(this.#model, batch))
      this.#next.set(batch, next)
      next.catch(() => this.#next.delete(batch)) // so that a failure, such as memory, can be tried again
    }
    return next
  }

  /** Prompts stay with the model. */
  async [Symbol.asyncDispose](): Promise<void> {
    const all = [...this.#next.values()]
    this.#next.clear()
    for (const next of all) await (await next).dispose()
  }
}

/** A sequence: where it lies. It is in use from first to last, so it never makes way. */
interface Seated {
  readonly holder: Holder
  readonly place: Place
  slots: SessionSlots
  /** The last ids that were run, as many as a patch has. */
  before: readonly number[]
}

/** Several sequences, all at the same position. A model in patches has one alone. */
export class Sequences {
  readonly #model: Model
  readonly #sizes: Sizes
  readonly #seated: readonly Seated[]
  readonly #programs: Programs
  #position = 0

  private constructor(model: Model, sizes: Sizes, seated: readonly Seated[], programs: Programs) {
    this.#model = model
    this.#sizes = sizes
    this.#seated = seated
    this.#programs = programs
  }

  /** Programs are the caller's, who disposes of them. Throws SLOTS_EXHAUSTED where the model has no places for them. */
  static async open(model: Model, sizes: Sizes, programs: Programs): Promise<Sequences> {
    const seated: Seated[] = []
    try {
      for (let i = 0; i < sizes.batch; i++) {
        const holder = guest()
        const place = await model.places.enter(holder)
        seated.push({ holder, place, slots: new SessionSlots(place.slots), before: [] })
      }
      return new Sequences(model, sizes, seated, programs)
    } catch (error) {
      for (const { holder } of seated) model.places.release(holder)
      throw error
    }
  }

  /** Begins every sequence anew with its prompt. */
  async read(signal: AbortSignal | undefined): Promise<void> {
    const { network, device } = this.#model
    for (const [i, seat] of this.#seated.entries()) {
      seat.slots = new SessionSlots(seat.place.slots)
      seat.before = []
      const ids = promptIds(i, this.#sizes, network.vocab).slice(0, -1)
      const rows = startRows(network) > 0 ? [startId, ...ids] : ids
      for (this.#position = 0; this.#position < rows.length; ) {
        const left = rows.length - this.#position
        const most = rowsNext(left, device)
        const count = network.patches?.cut(this.#position, left, most) ?? most
        const executable = await this.#programs.prompt(rowsFor(count), this.#position)
        const own = rows.slice(this.#position, this.#position + count)
        await this.#run(executable, [seat], [own], { wanted: false, signal })
      }
    }
  }

  /** Goes on from there, and gives the ids that each sequence wrote. */
  async write(signal: AbortSignal | undefined): Promise<number[][]> {
    const { batch, decode } = this.#sizes
    const { vocab } = this.#model.network
    const written: number[][] = Array.from({ length: batch }, () => [])
    let ids = Array.from({ length: batch }, (_, i) => promptIds(i, this.#sizes, vocab).at(-1)!)
    for (let count = 0; count < decode; count++) {
      const executable = await this.#programs.next(batch, this.#position)
      const own = ids.map((id) => [id])
      const outputs = await this.#run(executable, this.#seated, own, { wanted: true, signal })
      ids = [...(outputs.ids as Int32Array)]
      for (const [sequence, id] of ids.entries()) written[sequence]!.push(id)
    }
    return written
  }

  /** Runs as many rows of each of these sequences; their states after them count from then on. `wanted`: with a token after the last. */
  async #run(
    executable: Executable,
    seated: readonly Seated[],
    ids: readonly (readonly number[])[],
    { wanted, signal }: { wanted: boolean; signal: AbortSignal | undefined },
  ): Promise<Record<string, HostArray>> {
    const { network } = this.#model
    const { program } = executable
    const [position, count] = [this.#position, ids[0]!.length]
    const pieces = seated.map(({ slots, place, before }, i): Piece => {
      const turn = slots.turn(position === 0)
      return { begin: i * count, end: (i + 1) * count, position, ...turn, ring: place.ring, ids: ids[i]!, before }
    })
    const inputs = {
      ...layoutInputs(program, network, pieces),
      ...chosen(program, pieces, wanted, startRows(network)),
      picks: Int32Array.of(wanted ? 0 : -1),
    }
    const known = new Set(program.inputs.map(({ name }) => name))
    const given = Object.fromEntries(Object.entries(inputs).filter(([name]) => known.has(name)))
    const outputs = await executable.run(given, { signal })
    for (const [i, one] of seated.entries()) {
      one.slots.adopt(network.patches?.begins(position) ?? true)
      if (network.patches) one.before = [...one.before, ...ids[i]!].slice(-network.patches.size)
    }
    this.#position += count
    return outputs
  }

  [Symbol.dispose](): void {
    for (const { holder } of this.#seated) this.#model.places.release(holder)
  }
}

const greedy = sampling({ temperature: 0, seed: 0 })

/** Greedy choices; of programs with a penalty history it goes on as in a session, for prompts record their tokens themselves. */
function chosen(program: Program, pieces: readonly Piece[], wanted: boolean, start: number) {
  const recorded = program.stored("state").some(({ name }) => name === "history")
  const all = pieces.map(({ position, ids, from, to }) => {
    const end = position + ids.length
    const [read, written] = !recorded ? [0, 0] : wanted ? [from, to] : [end > start ? to : 0, 0]
    return samplingInputs(greedy, end, read, written)
  })
  return {
    settings: Float32Array.from(all.flatMap(({ settings }) => [...settings])),
    limits: Int32Array.from(all.flatMap(({ limits }) => [...limits])),
    position: Int32Array.from(all.flatMap(({ position }) => [...position])),
  }
}

/** One row of each of `batch` sequences, and what follows each. Inputs and outputs as of stepProgram. */
export function nextProgram(model: Model, batch: number): Program {
  return trace(
    `next of ${batch}`,
    (t) => {
      const layout = layoutOf(t, model.network, model.shape, batch)
      const x = model.network.forward(t.input("ids", "i32", [batch]), layout)
      const logits = linear({ x, ...headOf(model.network, layout) }, { precision: t.precision, dtype: "f32" }).y
      return sample({
        logits,
        settings: t.input("settings", "f32", [batch, 6]),
        limits: t.input("limits", "i32", [batch, 5]),
        position: t.input("position", "i32", [batch]),
      })
    },
    numericsOf(model.shape),
  )
}
