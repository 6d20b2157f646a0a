/**
 * One conversation with a model: a state of constant size that grows no older text.
 */
import { checkOptions, checkSignal, expect } from "../errors.ts"
import { Delivery } from "../text/delivery.ts"
import type { Model } from "./model.ts"
import { rowCounts } from "./programs.ts"
import { type SamplingOptions, sampling, samplingNames } from "./sampling.ts"
import { checkScoreOptions, type ScoreOptions } from "./score.ts"
import { type Choice, Sequence, type Token } from "./sequence.ts"
import { type Content, checkSnapshot, readSnapshot, writeSnapshot } from "./snapshot.ts"
import { type Score, textScore } from "./text-score.ts"
import { topLogprobsMost } from "./top-tokens.ts"

export type { Token } from "./sequence.ts"

export type Prompt = string | Uint8Array | readonly number[]

export interface GenerateOptions extends SamplingOptions {
  /** Tokens to generate at most. Default 256. */
  readonly maxTokens?: number
  /** Generation ends before the first of these; they are not part of the text. A special token's text, such as <|im_end|>, means that token. */
  readonly stop?: string | readonly string[]
  /** Text ends before the first of these tokens, which the session then does not hold. Default: those of the tokenizer; [] for none. */
  readonly stopTokens?: readonly number[] | undefined
  readonly signal?: AbortSignal | undefined
}

export interface TokenOptions extends Omit<GenerateOptions, "stop" | "stopTokens"> {
  /** Tells of so many of the most probable tokens beside each, at most 20. Default 0. */
  readonly topLogprobs?: number
}

/** How many of the newest tokens the caller has not passed on whole, and ids of what it has passed on of them. */
interface Delivered {
  readonly undelivered: () => number
  readonly shown: () => readonly number[]
  /** Tokens after which the caller asks for none. */
  readonly ends: Int32Array
}

/**
 * A session holds exactly the text that its caller gave and received. After a stop string, `break`, an abort or an error,
 * tokens that were computed but not delivered are taken back.
 *
 * Any number of sessions can be open. A session has a place on the device, of which the model has as many as its option `sessions` says,
 * while it is used; after that it makes way when another needs the place: its state goes to host memory and comes back when it is used
 * next, with the same bits. A session is in use until what it was asked is done, a generator until it has ended, also while it waits
 * for its consumer. When all places are in use, the next call throws SLOTS_EXHAUSTED at once.
 */
export class Session {
  readonly #model: Model
  readonly #sequence: Sequence
  #busy = false
  #disposed = false

  /** Use model.session(). */
  constructor(model: Model, sequence: Sequence = new Sequence(model)) {
    this.#model = model
    this.#sequence = sequence
  }

  /**
   * A session that goes on from a snapshot. All of it is checked before anything is put onto the device.
   * @throws what model.session() says
   */
  static async restore(model: Model, snapshot: Uint8Array): Promise<Session> {
    model.checkLive("session")
    const read = readSnapshot(snapshot)
    checkSnapshot(model, { model: model.name, fingerprint: await model.fingerprint() }, read)
    return new Session(model, new Sequence(model, read, read.state))
  }

  /** Tokens that the session holds: at most the model's contextMax, where it has one. */
  get length(): number {
    return this.#sequence.length
  }

  /**
   * Adds text, bytes or ids to what the session holds.
   * @throws SESSION_BUSY, SLOTS_EXHAUSTED, DISPOSED, BAD_INPUT for ids outside the vocabulary and tokens beyond contextMax,
   * BAD_OPTION, ABORTED (then nothing has been added)
   */
  async append(prompt: Prompt, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
    checkOptions("append", options, ["signal"])
    const { signal } = options
    checkSignal("append", signal)
    await this.#alone("append", async (sequence) => {
      const added = this.#model.tokens(prompt, this.length === 0)
      sequence.checkRoom(added.length)
      const before = sequence.pending
      const mark = await sequence.keep()
      sequence.add(added)
      try {
        await sequence.settle(signal)
      } catch (error) {
        await sequence.rewind(mark, before)
        throw error
      }
    })
  }

  /** Generates text, yielding it as it becomes certain. The prompt, if any, is appended first. */
  async *generate(prompt: Prompt | undefined, options: GenerateOptions = {}): AsyncGenerator<string> {
    checkOptions("generate", options, [...samplingNames, "maxTokens", "stop", "stopTokens", "signal"])
    const { maxTokens = 256, stop, stopTokens, signal, ...rest } = options
    const stops = typeof stop === "string" ? [stop] : (stop ?? [])
    expect(
      Array.isArray(stops) && stops.every((one) => typeof one === "string" && one !== ""),
      "BAD_OPTION",
      () => `generate: stop is a string of at least one character, or an array of them, got ${JSON.stringify(stop)}`,
    )
    expect(
      stopTokens === undefined || (Array.isArray(stopTokens) && stopTokens.every((id) => Number.isInteger(id))),
      "BAD_OPTION",
      () => `generate: stopTokens is an array of ids, got ${JSON.stringify(stopTokens)}`,
    )
    const within = this.length + (prompt?.length ?? 0) > 0
    const codec = this.#model.textCodec("generate")
    const text = new Delivery(codec, stops, { endTokens: stopTokens, within })
    const tokens = this.tokens(
      prompt,
      { maxTokens, signal, ...rest },
      () => text.undelivered,
      () => text.shownOfUndelivered,
      stopTokens ?? codec.endTokens,
    )
    for await (const { id } of tokens) {
      const ready = text.push(id)
      if (ready !== "") yield ready
      if (text.stopped) return
    }
    const last = text.flush()
    if (last !== "") yield last
  }

  /**
   * Generates tokens, each with its log-probability and, with `topLogprobs`, those of the most probable ones. `undelivered` says how
   * many of the newest the caller has not passed on; they are taken back when generation ends early. `shown` gives ids
   * of what was passed on of them, which then take their place. After one of `ends` nobody asks for more: then none is computed ahead.
   * @example
   * for await (const { id, logprob, top } of session.tokens("To be or ", { maxTokens: 8, topLogprobs: 3 })) console.log(id, logprob, top)
   */
  async *tokens(
    prompt: Prompt | undefined,
    options: TokenOptions = {},
    undelivered: () => number = () => 0,
    shown: () => readonly number[] = () => [],
    ends: readonly number[] = [],
  ): AsyncGenerator<Token> {
    checkOptions("generate", options, [...samplingNames, "maxTokens", "topLogprobs", "signal"])
    const { maxTokens = 256, topLogprobs = 0, signal, ...rest } = options
    for (const [name, value, most] of [
      ["maxTokens", maxTokens, Number.MAX_SAFE_INTEGER],
      ["topLogprobs", topLogprobs, topLogprobsMost],
    ] as const) {
      expect(
        Number.isSafeInteger(value) && value >= 0 && value <= most,
        "BAD_OPTION",
        () => `generate: ${name} is a whole number from 0 to ${most}, got ${value}`,
        { option: name },
      )
    }
    const choice = { ...sampling(rest), topLogprobs }
    checkSignal("generate", signal)
    this.#begin("generate")
    try {
      const added = prompt === undefined ? [] : this.#model.tokens(prompt, this.length === 0)
      const sequence = this.#sequence
      expect(
        sequence.pending.length + added.length > 0,
        "BAD_INPUT",
        () => "generate: a prompt of at least one token is needed to begin, got an empty one",
      )
      sequence.checkRoom(added.length + Math.min(1, maxTokens))
      await sequence.enter()
      yield* this.#sampleTokens(added, maxTokens, choice, signal, { undelivered, shown, ends: Int32Array.from(ends) })
    } finally {
      this.#end()
    }
  }

  async *#sampleTokens(
    added: readonly number[],
    maxTokens: number,
    choice: Choice,
    signal: AbortSignal | undefined,
    { undelivered, shown, ends }: Delivered,
  ): AsyncGenerator<Token> {
    const sequence = this.#sequence
    const before = sequence.pending
    let mark = await sequence.keep()
    let since = [...before, ...added] // all tokens after the mark
    sequence.add(added)
    let [begun, moved, ended] = [false, false, false]
    try {
      for (let count = 0; count < maxTokens; count++) {
        sequence.checkRoom(1)
        const token = await sequence.next(choice, signal, { sampled: count > 0, most: maxTokens - count, ends })
        begun = true
        since.push(token.id)
        yield token
        if ((!moved || since.length > rowCounts.at(-1)!) && undelivered() === 0) {
          // All of it was received: from here on, taking back need not replay what lies before.
          mark = await sequence.keep()
          since = [...sequence.pending]
          moved = true
        }
      }
      if (!begun) await sequence.settle(signal)
      ended = true
    } finally {
      const back = begun ? undelivered() : 0
      if (!ended && !begun) await sequence.rewind(mark, before)
      else if (!ended && back > 0) {
        const { contextMax = Number.POSITIVE_INFINITY } = this.#model.network
        const instead = shown().slice(0, contextMax - sequence.length + back)
        await sequence.rewind(mark, [...since.slice(0, since.length - back), ...instead])
      }
    }
  }

  /**
   * Log-probabilities of a text as the continuation of what the session holds, which stays as it is. Every token is predicted, but for
   * the first one of an empty session. They agree with those of tokens() to the accuracy of f32: the sums are not the same.
   *
   * @throws BAD_INPUT for a text without a token, or one that with what is held is longer than the model's contextMax and one;
   * SESSION_BUSY, SLOTS_EXHAUSTED, DISPOSED, NOT_FINITE, ABORTED
   * @example
   * await session.append("The capital of France is")
   * const better = (await session.score(" Paris")).total > (await session.score(" Rome")).total
   */
  async score(text: Prompt, options: Omit<ScoreOptions, "context"> = {}): Promise<Score> {
    checkScoreOptions("score", options, ["signal", "onProgress"])
    return await this.#alone("score", async (sequence) => {
      const ids = this.#model.tokens(text)
      expect(ids.length > 0, "BAD_INPUT", () => "score: a text of at least one token is needed, got an empty one")
      sequence.checkRoom(ids.length - 1) // the last is judged, and never read
      const judged = sequence.pending.length > 0 ? "all" : "rest"
      return textScore(this.#model, text, ids, await sequence.losses(ids, options), judged)
    })
  }

  /**
   * Another session that holds the same, and from here on is its own. The state is copied while this returns: both sessions wait for
   * that when they are used next, and what copying throws comes out of the other's first use.
   * @throws SESSION_BUSY, DISPOSED
   */
  fork(): Session {
    this.#check("fork")
    this.#model.checkLive("fork")
    const { content, state } = this.#sequence.frozen()
    return new Session(this.#model, new Sequence(this.#model, content, state))
  }

  /**
   * The session as bytes, as it is at this moment: `await model.session(bytes)` goes on with them in any process, on any device and in
   * either precision, if the model has the same weights. They are as many as its state has, and of attention what the next token sees.
   *
   * On the same kind of device and in the same precision the bits of what follows are the same. Else states and what attention keeps
   * in f32 are taken as they are; what it keeps is rounded to bf16 where the products there are bf16.
   * @throws SESSION_BUSY, DISPOSED
   * @example
   * await writeFile("session.bin", await session.save())
   * const again = await model.session(await readFile("session.bin"))
   */
  async save(): Promise<Uint8Array<ArrayBuffer>> {
    this.#check("save")
    this.#model.checkLive("save")
    const { content, state } = this.#sequence.frozen()
    const [fingerprint, held] = await Promise.all([this.#model.fingerprint(), state])
    return writeSnapshot({ model: this.#model.name, fingerprint }, { ...content, state: held } satisfies Content)
  }

  /** Releases the session's place and memory. Waits for nothing: what is copied from it keeps its place until it ends. */
  dispose(): void {
    if (this.#disposed) return
    expect(!this.#busy, "SESSION_BUSY", () => "session: it is generating; end that first")
    this.#disposed = true
    this.#sequence.release()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  #check(what: string): void {
    expect(!this.#disposed, "DISPOSED", () => `${what}: the session has been disposed`)
    expect(
      !this.#busy,
      "SESSION_BUSY",
      () => `${what}: the session is already generating; end that first, or open another session`,
    )
  }

  #begin(what: string): void {
    this.#check(what)
    this.#busy = true
  }

  #end(): void {
    this.#busy = false
    this.#sequence.leave()
  }

  async #alone<T>(what: string, work: (sequence: Sequence) => Promise<T>): Promise<T> {
    this.#begin(what)
    try {
      await this.#sequence.enter()
      return await work(this.#sequence)
    } finally {
      this.#end()
    }
  }
}
