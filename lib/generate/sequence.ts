/**
 * A sequence of tokens as a model goes on with it: run by run, back to where it was, to the host and back to the device.
 *
 * States live in slots: each run reads the current one and writes the spare one, which is adopted only when the run is complete. The last
 * token is kept `pending`: it is run together with what follows, since only then are its logits needed. Where sequences begin with a row
 * of no token, that row is pending from the start, and such a model can begin a text by itself.
 */
import { checkSignal, expect } from "../errors.ts"
import { startRows } from "../models/language-model.ts"
import { startId } from "../models/patches.ts"
import type { Executable, HostArray } from "../native.ts"
import { burstInputs } from "./burst.ts"
import type { HostState, Seat } from "./kept.ts"
import { layoutInputs } from "./layout.ts"
import type { Model } from "./model.ts"
import type { Holder } from "./places.ts"
import { rowsFor, rowsNext } from "./programs.ts"
import { RingCopy, wrapsAfter } from "./ring-copy.ts"
import { type Sampling, sampling, samplingInputs } from "./sampling.ts"
import { scoreRows, scoreRowsFor } from "./score.ts"
import { SessionSlots, type SlotTurn } from "./session-slots.ts"
import type { Content } from "./snapshot.ts"
import { type RankedToken, topTokens } from "./top-tokens.ts"

/** A token with its log-probability under the model, before penalties and temperature. */
export interface Token extends RankedToken {
  /** With topLogprobs, the most probable ones in its place, the first the most probable. */
  readonly top?: readonly RankedToken[]
}

/** How a token is chosen, and what is told beside it. */
export interface Choice extends Sampling {
  readonly topLogprobs?: number
}

/** What is known of the tokens that will be asked for. */
export interface Plan {
  /** Whether what is pending was chosen before, in this generation. */
  readonly sampled: boolean
  /** Tokens that will be asked for at most, this one among them. */
  readonly most: number
  /** Tokens after which none will. */
  readonly ends: Int32Array
}

/** What a burst has said: tokens, of which the first `handed` were asked for. */
interface Ahead {
  readonly tokens: readonly Token[]
  /** Whether all that it ran ended in a token. */
  readonly whole: boolean
  handed: number
}

/** Greedy and without history: what prompts are run with, their sample being thrown away. */
const unused: Choice = sampling({ temperature: 0, seed: 0 })

/** A state that was kept: how many rows it has seen (none: nothing was kept), and the last of their ids. */
export interface Mark {
  readonly length: number
  readonly before: readonly number[]
  /** What attention keeps of those tokens, where the model has rings. */
  readonly ring?: RingCopy
}

const notFinite = () => "generate: logits are expected to be finite, got NaN or infinity; check the model's weights"

const unmarked: Mark = { length: 0, before: [] }

/** What a sequence is before anything is known of it. */
const nothing: Content = { rows: 0, before: [], pending: [] }

export class Sequence implements Holder {
  readonly #model: Model
  /** Rows that have been run. */
  #rows: number
  /** The last ids that have been run: as many as a patch has, where the model reads patches. */
  #before: readonly number[]
  /** Ids that have not, after the first `#passed`, which have: cutting those off at every run of a long prompt would copy it as often. */
  #given: readonly number[]
  #passed = 0
  #mark: Mark = unmarked
  #ahead: Ahead | undefined
  /** Tokens of the last burst: as long as they are asked for, the next one has twice as many. */
  #burst = 1
  #seat: { readonly slots: SessionSlots; readonly ring: number } | undefined
  /** The state while it is not on the device; a promise while it is copied from another sequence. */
  #host: HostState | Promise<HostState> | undefined
  #copy: Promise<HostState> | undefined
  #released = false
  /** Why the state could not be taken back to what is held. */
  #torn: Error | undefined

  constructor(model: Model, content?: Omit<Content, "state">, state?: HostState | Promise<HostState>) {
    const { rows, before, pending } = content ?? nothing
    this.#model = model
    this.#rows = rows
    this.#before = before
    this.#given = content === undefined && startRows(model.network) > 0 ? [startId] : pending
    this.#host = state
    if (state instanceof Promise) this.#arrive(state)
    model.open.add(this)
  }

  /** What copying throws comes out of every use: the promise stays. */
  #arrive(state: Promise<HostState>): void {
    const arrived = (copied: HostState) => {
      if (this.#host === state) this.#host = copied
    }
    state.then(arrived, () => {})
  }

  /** Tokens that it holds. */
  get length(): number {
    return this.#rows + this.#waiting - startRows(this.#model.network)
  }

  get pending(): readonly number[] {
    if (this.#passed > 0) this.#wait(this.#given.slice(this.#passed))
    return this.#given
  }

  get #waiting(): number {
    return this.#given.length - this.#passed
  }

  /** These ids are to be run, and no others. */
  #wait(ids: readonly number[]): void {
    this.#given = ids
    this.#passed = 0
  }

  /** Its state while that is in host memory. */
  get host(): HostState | undefined {
    return this.#host instanceof Promise ? undefined : this.#host
  }

  /**
   * Takes a place on the device for the use that follows, and brings the state there where it is not.
   * @throws SLOTS_EXHAUSTED when all places are in use; what tore the state, if anything did
   */
  async enter(): Promise<void> {
    if (this.#torn) throw this.#torn
    const { places, store, kept } = this.#model
    const { slots: all, ring } = await places.enter(this)
    if (this.#seat) return
    try {
      const slots = new SessionSlots(all)
      const host = await this.#host
      if (host) await kept.upload(store, { ...slots.current, ring }, host)
      this.#seat = { slots, ring }
      this.#host = undefined
    } catch (error) {
      places.release(this)
      throw error
    }
  }

  /** The use has ended. What was kept to go back to may be as large as the window: an idle sequence holds none of it. */
  leave(): void {
    this.#mark = unmarked
    this.#ahead = undefined
    this.#model.places.leave(this)
  }

  release(): void {
    this.#released = true
    this.#model.places.release(this)
    this.#host = undefined
  }

  async spill(): Promise<void> {
    const state = this.#rows > 0 && !this.#torn ? await this.#copied() : undefined
    if (state && !this.#released) this.#host = state // else nobody goes on with it
    this.#seat = undefined
  }

  /** What it is at this moment; its place stays as it is until the state is copied. */
  frozen(): { content: Omit<Content, "state">; state: HostState | Promise<HostState> | undefined } {
    if (this.#torn) throw this.#torn
    const content = { rows: this.#rows, before: this.#before, pending: this.pending }
    if (this.#rows === 0) return { content, state: undefined }
    return { content, state: this.#host ?? this.#model.places.copying(this, this.#copied()) }
  }

  #copied(): Promise<HostState> {
    const { kept, store } = this.#model
    const { slots, ring } = this.#seat!
    const seat: Seat = { ...slots.current, ring }
    this.#copy ??= kept.download(store, seat, this.#rows).finally(() => {
      this.#copy = undefined
    })
    return this.#copy
  }

  /** Tokens that are to be run with what follows. */
  add(ids: readonly number[]): void {
    this.#wait([...this.pending, ...ids])
  }

  /** Refuses more tokens than the model has positions for. */
  checkRoom(count: number): void {
    const { contextMax = Number.POSITIVE_INFINITY } = this.#model.network
    expect(
      this.length + count <= contextMax,
      "BAD_INPUT",
      () =>
        `session: it holds at most contextMax = ${contextMax} tokens, got ${this.length} and ${count} more; open another, or load the model with a larger contextMax`,
    )
  }

  /** Runs what is pending up to its last token, which is left to be run with what follows. */
  async settle(signal?: AbortSignal): Promise<void> {
    while (this.#waiting > 1) await this.#feed(this.#waiting - 1, unused, signal, false)
  }

  /** Runs all that is pending and returns the token that was chosen to follow, with some after it where more are to come. */
  async next(choice: Choice, signal: AbortSignal | undefined, plan: Plan): Promise<Token> {
    if (this.#ahead) {
      checkSignal("generate", signal)
      this.#model.checkLive("generate")
      return this.#hand(this.#ahead)
    }
    while (this.#reach(this.#waiting) < this.#waiting) {
      await this.#feed(this.#waiting - 1, unused, signal, false)
    }
    if (!plan.sampled) this.#burst = 1
    const count = this.#burstLength(choice, plan)
    if (count > 1) return this.#hand(await this.#runAhead(count, choice, signal, plan.ends))
    const token = await this.#feed(this.#waiting, choice, signal, plan.sampled)
    this.#wait([token.id])
    return token
  }

  /** Tokens of the next burst: none where runs depend on their place in a patch, or bring all logits back. */
  #burstLength({ topLogprobs = 0 }: Choice, { sampled, most }: Plan): number {
    const { network, burst } = this.#model
    const { contextMax = Number.POSITIVE_INFINITY, patches } = network
    if (!sampled || patches || topLogprobs > 0) return 1
    return Math.min(2 * this.#burst, burst.tokens, most, contextMax - this.length)
  }

  /** Runs the pending token and up to so many in all that are sampled one after another. What counts is still the state before. */
  async #runAhead(count: number, choice: Choice, signal: AbortSignal | undefined, ends: Int32Array): Promise<Ahead> {
    const { network, burst } = this.#model
    const executable = await this.#model.step("next", 1, this.#rows)
    const [{ program }, position, turn, { ring }] = [executable, this.#rows, this.#turn(), this.#seat!]
    await this.#mark.ring?.keepFrom(program, position + count)
    const piece = { begin: 0, end: 1, position, ...turn, ring, ids: this.pending }
    const first = {
      ...layoutInputs(program, network, [piece]),
      picks: Int32Array.of(0),
      ...samplingInputs(choice, position + 1, turn.from, turn.to),
    }
    const { done, outputs } = await executable.steps(burstInputs(first, turn, count), {
      count,
      feed: ["ids", "ids"],
      ends,
      milliseconds: burst.milliseconds,
      signal,
    })
    this.#burst = done
    const whole = outputs.ids![done - 1]! >= 0
    const length = whole ? done : done - 1
    const tokens = Array.from({ length }, (_, i) => ({ id: outputs.ids![i]!, logprob: outputs.logprobs![i]! }))
    this.#ahead = { tokens, whole, handed: 0 }
    return this.#ahead
  }

  /** The next token of a burst. With the last of them the state after it counts. */
  #hand(ahead: Ahead): Token {
    const token = ahead.tokens[ahead.handed]
    expect(token !== undefined, "NOT_FINITE", notFinite)
    ahead.handed++
    this.#wait([...this.pending, token.id])
    if (!ahead.whole || ahead.handed < ahead.tokens.length) return token
    this.#ahead = undefined
    this.#seat!.slots.adopt(true)
    this.#rows += ahead.tokens.length
    this.#wait([token.id])
    return token
  }

  /**
   * Nats of each of `ids` given what is held and those before, NaN for a first one that nobody predicts. What is held stays as it is,
   * whatever happens.
   */
  async losses(
    ids: readonly number[],
    { signal, onProgress }: { signal?: AbortSignal | undefined; onProgress?: ((done: number) => void) | undefined },
  ): Promise<Float32Array> {
    const held = this.pending
    const mark = await this.keep()
    const losses = new Float32Array(ids.length).fill(Number.NaN)
    this.#wait([...held, ...ids])
    try {
      while (this.#waiting > 1) {
        const count = this.#reach(this.#waiting - 1, scoreRows)
        const done = ids.length + 1 - this.#waiting // of the first row, whose successor is ids[done]
        const executable = await this.#model.scorer(scoreRowsFor(count), this.#rows)
        const targets = new Int32Array(executable.program.inputs.find(({ name }) => name === "targets")!.shape[0]!)
        for (let i = 0; i < targets.length; i++) targets[i] = i < count && done + i >= 0 ? ids[done + i]! : -100
        const outputs = await this.#run(executable, count, this.#turn(), { targets }, signal)
        const found = (outputs.losses as Float32Array).subarray(Math.max(0, -done), count)
        losses.set(found, Math.max(0, done))
        onProgress?.(done + count)
      }
    } finally {
      await this.rewind(mark, held)
    }
    return losses
  }

  /** How many of the first `count` pending rows one run takes, by default one of a prompt. */
  #reach(count: number, most = rowsNext(count, this.#model.device)): number {
    return this.#model.network.patches?.cut(this.#rows, count, most) ?? Math.min(count, most)
  }

  /** Runs the first `count` pending rows, or as many as one run takes; returns the token sampled after the last of them. */
  async #feed(count: number, choice: Choice, signal: AbortSignal | undefined, sampled: boolean): Promise<Token> {
    const { network } = this.#model
    const [position, used] = [this.#rows, this.#reach(count)]
    const wanted = used === this.#waiting
    const next = sampled && used === 1
    const top = wanted ? (choice.topLogprobs ?? 0) : 0
    const executable = await this.#model.step(next ? "next" : "prompt", rowsFor(used), position, top > 0)
    const turn = this.#turn()
    // A run of the start alone records nothing.
    const history = next ? turn.from : position + used > startRows(network) ? turn.to : 0
    const inputs = {
      picks: Int32Array.of(wanted ? used - 1 : -1),
      ...samplingInputs(choice, position + used, history, wanted ? turn.to : 0),
    }
    const check = ({ ids }: Record<string, HostArray>) => expect(!wanted || ids![0]! >= 0, "NOT_FINITE", notFinite)
    const outputs = await this.#run(executable, used, turn, inputs, signal, check)
    const token = { id: outputs.ids![0]!, logprob: outputs.logprobs![0]! }
    return top > 0 ? { ...token, top: topTokens(outputs.logits as Float32Array, token, top) } : token
  }

  #turn(): SlotTurn {
    return this.#seat!.slots.turn(this.#rows === 0)
  }

  /** Runs the first `used` pending rows, and adopts the state after them once `check` has passed. */
  async #run(
    executable: Executable,
    used: number,
    turn: SlotTurn,
    inputs: Record<string, HostArray>,
    signal: AbortSignal | undefined,
    check?: (outputs: Record<string, HostArray>) => void,
  ): Promise<Record<string, HostArray>> {
    const { network } = this.#model
    const { slots, ring } = this.#seat!
    const { program } = executable
    const [position, ids, before] = [this.#rows, this.#given.slice(this.#passed, this.#passed + used), this.#before]
    await this.#mark.ring?.keepFrom(program, position + used)
    const piece = { begin: 0, end: used, position, ...turn, ring, ids, before }
    const outputs = await executable.run({ ...layoutInputs(program, network, [piece]), ...inputs }, { signal })
    check?.(outputs)
    slots.adopt(network.patches?.begins(position) ?? true)
    this.#rows += used
    if (network.patches) this.#before = [...before, ...ids].slice(-network.patches.size)
    this.#passed += used
    return outputs
  }

  /** Copies the current state, so that it can be returned to after any number of runs. */
  async keep(): Promise<Mark> {
    const { store, network } = this.#model
    const { slots, ring } = this.#seat!
    const length = this.#rows
    if (length > 0) await slots.keep(store)
    const overwrites = network.overwrites?.bind(network)
    const rings = overwrites
      ? (slot: { name: string }, end: number) => overwrites(slot.name, length, end)
      : wrapsAfter(length, scoreRows)
    const copy = network.hasRings && length > 0 ? new RingCopy(store, ring, rings) : undefined
    this.#mark = { length, before: this.#before, ...(copy && { ring: copy }) }
    return this.#mark
  }

  /**
   * Goes back to a mark, then forward again over the tokens since then that are to be held. A state that cannot be brought back is torn:
   * every later use throws what this throws.
   */
  async rewind(mark: Mark, tokens: readonly number[]): Promise<void> {
    this.#ahead = undefined
    this.#rows = mark.length
    this.#before = mark.before
    this.#wait([...tokens])
    try {
      await this.#seat!.slots.restore(this.#model.store, mark.length > 0)
      await mark.ring?.restore()
    } catch (error) {
      this.#torn = error as Error
      throw error
    }
    await this.settle()
  }
}
