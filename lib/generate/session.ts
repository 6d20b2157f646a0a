/**
 * One conversation with a model: a state of constant size that grows no older text.
 */
import { checkOptions, expect } from "../errors.ts"
import { startRows } from "../models/language-model.ts"
import { startId } from "../models/patches.ts"
import { layoutInputs } from "./layout.ts"
import type { Model } from "./model.ts"
import { rowCounts, rowsFor } from "./programs.ts"
import { RingCopy, wrapsAfter } from "./ring-copy.ts"
import { type Sampling, type SamplingOptions, sampling, samplingInputs, samplingNames } from "./sampling.ts"
import { scoreRows } from "./score.ts"
import { SessionSlots, slotsPerSession } from "./session-slots.ts"
import { Delivery } from "./text.ts"

export type Prompt = string | Uint8Array | readonly number[]

export interface GenerateOptions extends SamplingOptions {
  /** Tokens to generate at most. Default 256. */
  readonly maxTokens?: number
  /** Generation ends before the first of these; they are not part of the text. */
  readonly stop?: string | readonly string[]
  readonly signal?: AbortSignal | undefined
}

/** A token with its log-probability under the model, before penalties and temperature. */
export interface Token {
  readonly id: number
  readonly logprob: number
}

/** Greedy and without history: what prompts are run with, their sample being thrown away. */
const unused: Sampling = sampling({ temperature: 0, seed: 0 })

/**
 * A session holds exactly the text that its caller gave and received. After a stop string, `break`, an abort or an error,
 * tokens that were computed but not delivered are taken back.
 *
 * States live in slots: each run reads the current one and writes the spare one, which is adopted only when the run is
 * complete. The last token is kept `pending`: it is run together with what follows, since only then are its logits needed. Where
 * sequences begin with a row of no token, that row is pending from the start, and such a model can begin a text by itself.
 */
export class Session {
  readonly #model: Model
  readonly #slots: SessionSlots
  readonly #ring: number
  /** Rows that have been run. */
  #length = 0
  #pending: number[] = []
  /** The last ids that have been run: as many as a patch has, where the model reads patches. */
  #before: readonly number[] = []
  #mark: Mark = unmarked
  #busy = false
  #disposed = false

  constructor(model: Model) {
    this.#model = model
    this.#slots = new SessionSlots(model.slots.take(slotsPerSession(model.network)))
    try {
      this.#ring = model.rings.take(1)[0]!
    } catch (error) {
      model.slots.give(this.#slots.all)
      throw error
    }
    if (startRows(model.network) > 0) this.#pending = [startId]
  }

  /** Tokens that the session holds. */
  get length(): number {
    return this.#length + this.#pending.length - startRows(this.#model.network)
  }

  /**
   * Adds text, bytes or ids to what the session holds.
   * @throws SESSION_BUSY, DISPOSED, BAD_INPUT for ids outside the vocabulary, ABORTED (then nothing has been added)
   */
  async append(prompt: Prompt, { signal }: { signal?: AbortSignal | undefined } = {}): Promise<void> {
    await this.#alone("append", async () => {
      const before = this.#pending
      const mark = await this.#keep()
      this.#pending = [...before, ...this.#model.tokens(prompt)]
      try {
        while (this.#pending.length > 1) await this.#feed(this.#pending.length - 1, unused, signal, false)
      } catch (error) {
        await this.#rewind(mark, before)
        throw error
      }
    })
  }

  /** Generates text, yielding it as it becomes certain. The prompt, if any, is appended first. */
  async *generate(prompt: Prompt | undefined, options: GenerateOptions = {}): AsyncGenerator<string> {
    checkOptions("generate", options, [...samplingNames, "maxTokens", "stop", "signal"])
    const { maxTokens = 256, stop, signal, ...rest } = options
    const stops = typeof stop === "string" ? [stop] : (stop ?? [])
    expect(
      Array.isArray(stops) && stops.every((one) => typeof one === "string" && one !== ""),
      "BAD_OPTION",
      () => `generate: stop is a string of at least one character, or an array of them, got ${JSON.stringify(stop)}`,
    )
    const text = new Delivery(this.#model.textCodec("generate"), stops)
    const tokens = this.tokens(prompt, { maxTokens, signal, ...rest }, () => text.undelivered)
    for await (const { id } of tokens) {
      const ready = text.push(id)
      if (ready !== "") yield ready
      if (text.stopped) return
    }
    const last = text.flush()
    if (last !== "") yield last
  }

  /**
   * Generates tokens. `undelivered` says how many of the newest the caller has not passed on; they are taken back when
   * generation ends early.
   */
  async *tokens(
    prompt: Prompt | undefined,
    options: Omit<GenerateOptions, "stop"> = {},
    undelivered: () => number = () => 0,
  ): AsyncGenerator<Token> {
    checkOptions("generate", options, [...samplingNames, "maxTokens", "signal"])
    const { maxTokens = 256, signal, ...rest } = options
    expect(
      Number.isSafeInteger(maxTokens) && maxTokens >= 0,
      "BAD_OPTION",
      () => `generate: maxTokens is a whole number of at least 0, got ${maxTokens}`,
    )
    const chosen = sampling(rest)
    this.#begin("generate")
    try {
      const added = prompt === undefined ? [] : this.#model.tokens(prompt)
      expect(
        this.#pending.length + added.length > 0,
        "BAD_INPUT",
        () => "generate: a prompt of at least one token is needed to begin, got an empty one",
      )
      yield* this.#sampleTokens(added, maxTokens, chosen, signal, undelivered)
    } finally {
      this.#end()
    }
  }

  async *#sampleTokens(
    added: readonly number[],
    maxTokens: number,
    chosen: Sampling,
    signal: AbortSignal | undefined,
    undelivered: () => number,
  ): AsyncGenerator<Token> {
    const before = this.#pending
    let mark = await this.#keep()
    let since = [...before, ...added] // all tokens after the mark
    this.#pending = since
    let [begun, moved, ended] = [false, false, false]
    try {
      while (this.#reach(this.#pending.length) < this.#pending.length) {
        await this.#feed(this.#pending.length - 1, unused, signal, false)
      }
      for (let count = 0; count < maxTokens; count++) {
        const token = await this.#feed(this.#pending.length, chosen, signal, count > 0)
        begun = true
        this.#pending = [token.id]
        since.push(token.id)
        yield token
        if ((!moved || since.length > rowCounts.at(-1)!) && undelivered() === 0) {
          // All of it was received: from here on, taking back need not replay what lies before.
          mark = await this.#keep()
          since = [token.id]
          moved = true
        }
      }
      if (!begun) while (this.#pending.length > 1) await this.#feed(this.#pending.length - 1, unused, signal, false)
      ended = true
    } finally {
      const back = begun ? undelivered() : 0
      if (!ended && !begun) await this.#rewind(mark, before)
      else if (!ended && back > 0) await this.#rewind(mark, since.slice(0, since.length - back))
    }
  }

  /** How many of the first `count` pending rows one run takes. */
  #reach(count: number): number {
    const most = rowCounts.at(-1)!
    return this.#model.network.patches?.cut(this.#length, count, most) ?? Math.min(count, most)
  }

  /** Runs the first `count` pending rows, or as many as one run takes; returns the token sampled after the last of them. */
  async #feed(count: number, chosen: Sampling, signal: AbortSignal | undefined, sampled: boolean): Promise<Token> {
    const { network } = this.#model
    const [position, used] = [this.#length, this.#reach(count)]
    const wanted = used === this.#pending.length
    this.#checkContext(count) // all that is wanted, before any of it runs
    const next = sampled && used === 1
    const executable = await this.#model.step(next ? "next" : "prompt", rowsFor(used), position)
    const { program } = executable
    await this.#mark.ring?.keepFrom(program, position + used)
    const turn = this.#slots.turn(position === 0)
    const [ids, before] = [this.#pending.slice(0, used), this.#before]
    // A run of the start alone records nothing.
    const history = next ? turn.from : position + used > startRows(network) ? turn.to : 0
    const outputs = await executable.run(
      {
        ...layoutInputs(program, network, [{ begin: 0, end: used, position, ...turn, ring: this.#ring, ids, before }]),
        picks: Int32Array.of(wanted ? used - 1 : -1),
        ...samplingInputs(chosen, position + used, history, wanted ? turn.to : 0),
      },
      { signal },
    )
    const token = { id: outputs.ids![0]!, logprob: outputs.logprobs![0]! }
    expect(
      !wanted || token.id >= 0,
      "NOT_FINITE",
      () => "generate: logits are expected to be finite, got NaN or infinity; check the model's weights",
    )
    this.#slots.adopt(network.patches?.begins(position) ?? true)
    this.#length += used
    if (network.patches) this.#before = [...before, ...ids].slice(-network.patches.size)
    this.#pending = this.#pending.slice(used)
    return token
  }

  #checkContext(count: number): void {
    const { network } = this.#model
    const { contextMax = Number.POSITIVE_INFINITY } = network
    const held = this.#length - startRows(network)
    expect(
      held + count <= contextMax,
      "BAD_INPUT",
      () =>
        `session: it holds at most contextMax = ${contextMax} tokens, got ${held} and ${count} more; open another, or load the model with a larger contextMax`,
    )
  }

  /** Copies the current state, so that it can be returned to after any number of runs. */
  async #keep(): Promise<Mark> {
    const { store, network } = this.#model
    const length = this.#length
    if (length > 0) await this.#slots.keep(store)
    const overwrites = network.overwrites?.bind(network)
    const rings = overwrites
      ? (slot: { name: string }, end: number) => overwrites(slot.name, length, end)
      : wrapsAfter(length, scoreRows)
    const ring = network.hasRings && length > 0 ? new RingCopy(store, this.#ring, rings) : undefined
    this.#mark = { length, before: this.#before, ...(ring && { ring }) }
    return this.#mark
  }

  /** Goes back to a mark, then forward again over the tokens since then that the session is to hold. */
  async #rewind(mark: Mark, tokens: readonly number[]): Promise<void> {
    await this.#slots.restore(this.#model.store, mark.length > 0)
    await mark.ring?.restore()
    this.#length = mark.length
    this.#before = mark.before
    this.#pending = [...tokens]
    while (this.#pending.length > 1) await this.#feed(this.#pending.length - 1, unused, undefined, false)
  }

  /** Releases the session's slots. Waits for nothing: what runs keeps its memory until it ends. */
  dispose(): void {
    if (this.#disposed) return
    expect(!this.#busy, "SESSION_BUSY", () => "session: it is generating; end that first")
    this.#disposed = true
    this.#model.slots.give(this.#slots.all)
    this.#model.rings.give([this.#ring])
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #begin(what: string): void {
    expect(!this.#disposed, "DISPOSED", () => `${what}: the session has been disposed`)
    expect(
      !this.#busy,
      "SESSION_BUSY",
      () => `${what}: the session is already generating; end that first, or open another session`,
    )
    this.#busy = true
  }

  /** What was kept to go back to may be as large as the window: an idle session holds none of it. */
  #end(): void {
    this.#busy = false
    this.#mark = unmarked
  }

  async #alone<T>(what: string, work: () => Promise<T>): Promise<T> {
    this.#begin(what)
    try {
      return await work()
    } finally {
      this.#end()
    }
  }
}

/** A state that was kept: how many rows it has seen (none: nothing was kept), and the last of their ids. */
interface Mark {
  readonly length: number
  readonly before: readonly number[]
  /** What attention keeps of those tokens, where the model has rings. */
  readonly ring?: RingCopy
}

const unmarked: Mark = { length: 0, before: [] }
