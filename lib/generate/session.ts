/**
 * One conversation with a model: a state of constant size that grows no older text.
 */
import { checkOptions, expect } from "../errors.ts"
import type { Model } from "./model.ts"
import { rowCounts, rowsFor } from "./programs.ts"
import { type Sampling, type SamplingOptions, sampling, samplingInputs, samplingNames } from "./sampling.ts"
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
 * complete. The last token is kept `pending`: it is run together with what follows, since only then are its logits needed.
 */
export class Session {
  readonly #model: Model
  readonly #slots: number[]
  /** Index into #slots of the state that counts; 0 tokens mean slot 0. */
  #current = 0
  #length = 0
  #pending: number[] = []
  #busy = false
  #disposed = false

  constructor(model: Model) {
    this.#model = model
    this.#slots = model.slots.take(3)
  }

  /** Tokens that the session holds. */
  get length(): number {
    return this.#length + this.#pending.length
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
      this.#busy = false
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
      while (this.#pending.length > rowCounts.at(-1)!) await this.#feed(this.#pending.length - 1, unused, signal, false)
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

  /** Runs the first `count` pending tokens (at most one program's rows); returns the token sampled after the last of them. */
  async #feed(count: number, chosen: Sampling, signal: AbortSignal | undefined, sampled: boolean): Promise<Token> {
    const rows = rowsFor(count)
    const used = Math.min(count, rows)
    const ids = Int32Array.from({ length: rows }, (_, i) => (i < used ? this.#pending[i]! : -1))
    const from = this.#length === 0 ? 0 : this.#slots[this.#current]!
    const to = this.#slots[1 - this.#current]!
    const wanted = used === this.#pending.length
    const executable = await this.#model.step(sampled && used === 1 ? "next" : "prompt", rows)
    const outputs = await executable.run(
      {
        ids,
        segments: Int32Array.of(0, used, this.#length, from, to),
        picks: Int32Array.of(wanted ? used - 1 : -1),
        ...samplingInputs(chosen, this.#length + used, sampled && used === 1 ? from : to, wanted ? to : 0),
      },
      { signal },
    )
    const token = { id: outputs.ids![0]!, logprob: outputs.logprobs![0]! }
    expect(
      !wanted || token.id >= 0,
      "NOT_FINITE",
      () => "generate: logits are expected to be finite, got NaN or infinity; check the model's weights",
    )
    this.#current = 1 - this.#current
    this.#length += used
    this.#pending = this.#pending.slice(used)
    return token
  }

  /** Copies the current state to the third slot, so that it can be returned to after any number of runs. */
  async #keep(): Promise<Mark> {
    if (this.#length > 0) await this.#model.store.copySlot(this.#slots[this.#current]!, this.#slots[2]!)
    return { length: this.#length }
  }

  /** Goes back to a mark, then forward again over the tokens since then that the session is to hold. */
  async #rewind(mark: Mark, tokens: readonly number[]): Promise<void> {
    this.#current = 0
    if (mark.length > 0) await this.#model.store.copySlot(this.#slots[2]!, this.#slots[0]!)
    this.#length = mark.length
    this.#pending = [...tokens]
    while (this.#pending.length > 1) await this.#feed(this.#pending.length - 1, unused, undefined, false)
  }

  /** Releases the session's slots. Waits for nothing: what runs keeps its memory until it ends. */
  dispose(): void {
    if (this.#disposed) return
    expect(!this.#busy, "SESSION_BUSY", () => "session: it is generating; end that first")
    this.#disposed = true
    this.#model.slots.give(this.#slots)
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

  async #alone<T>(what: string, work: () => Promise<T>): Promise<T> {
    this.#begin(what)
    try {
      return await work()
    } finally {
      this.#busy = false
    }
  }
}

/** A state that the third slot holds: how many tokens it has seen (none: the slot holds nothing). */
interface Mark {
  readonly length: number
}
