/**
 * A model that is ready to run: weights on a device, programs compiled as they are needed, slots for sessions.
 */
import { checkOptions, expect } from "../errors.ts"
import type { Precision } from "../graph/trace.ts"
import type { Dtype } from "../graph/value.ts"
import type { LanguageModel } from "../models/language-model.ts"
import { activationsOn, type Device, type Executable, type Memory, resolveDevice, Store } from "../native.ts"
import type { ModelShape } from "./layout.ts"
import { stepProgram } from "./programs.ts"
import { type SaveOptions, saveModel } from "./save.ts"
import { bitsPerByte, type ScoreOptions, scoreProgram, scoreRows, tokenLosses } from "./score.ts"
import { type GenerateOptions, type Prompt, Session } from "./session.ts"
import { slotsPerSession } from "./session-slots.ts"
import { Slots } from "./slots.ts"
import { byteCodec, type Codec } from "./text.ts"

export interface ModelOptions {
  /** Products in f32, or with activations rounded to bf16. Default: the dtype of the stored matrices. */
  readonly precision?: Precision | undefined
  /** Sessions that can be open at once. Default 16. */
  readonly sessions?: number
  /** Default `auto`: cuda where it can be used, else the cpu. */
  readonly device?: Device | undefined
}

export const modelOptionNames: readonly (keyof ModelOptions)[] = ["precision", "sessions", "device"]

export class Model {
  readonly network: LanguageModel
  /** Between text and tokens; undefined for a vocabulary other than the 256 bytes, which takes and gives ids. */
  readonly codec: Codec | undefined
  readonly store: Store
  readonly slots: Slots
  /** One for each session: what attention keeps of it. */
  readonly rings: Slots
  readonly precision: Precision
  readonly matrixDtype: Dtype
  readonly #steps = new Map<string, Promise<Executable>>()

  /** Use load(), or give weights with `store.upload` under the network's parameter names. */
  constructor(network: LanguageModel, matrixDtype: "f32" | "bf16", options: ModelOptions = {}) {
    checkOptions("model", options, modelOptionNames)
    const { sessions = 16, device, precision = matrixDtype } = options
    expect(
      Number.isSafeInteger(sessions) && sessions >= 1 && sessions <= 4096,
      "BAD_OPTION",
      () => `model: sessions is a whole number from 1 to 4096, got ${sessions}`,
    )
    expect(["f32", "bf16"].includes(precision), "BAD_OPTION", () => `model: precision is f32 or bf16, got ${precision}`)
    this.network = network
    this.codec = network.vocab === 256 ? byteCodec : undefined
    this.matrixDtype = matrixDtype
    this.precision = precision
    this.store = new Store(resolveDevice(device))
    this.slots = new Slots("state slots", 1 + slotsPerSession(network) * sessions)
    this.rings = new Slots("rings", 1 + sessions)
  }

  /** The device that the model is on. */
  get device(): string {
    return this.store.device
  }

  /** Opens a session with an empty state. Throws SLOTS_EXHAUSTED when all are in use, DISPOSED after dispose(). */
  session(): Session {
    expect(!this.store.disposed, "DISPOSED", () => "session: the model has been disposed")
    return new Session(this)
  }

  /**
   * Generates text after a prompt, yielding it as it comes; characters are never split.
   *
   * @throws BAD_INPUT for an empty prompt, BAD_OPTION for options, ABORTED when the signal fires
   * @example
   * for await (const text of model.generate("In the beginning", { maxTokens: 200, temperature: 0.8 })) process.stdout.write(text)
   */
  async *generate(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<string> {
    using session = this.session()
    yield* session.generate(prompt, options)
  }

  /** As generate(), but yields bytes (or token ids) one by one, unfinished characters included. */
  async *generateBytes(prompt: Prompt, options: Omit<GenerateOptions, "stop"> = {}): AsyncGenerator<number> {
    using session = this.session()
    for await (const { id } of session.tokens(prompt, options)) yield id
  }

  /**
   * Bits per byte of a text; the first byte is charged 8 bits, unless the model predicts it too. The state is carried over all of it, or,
   * with `context`, emptied after every so many bytes; models whose attention sees everything need a context of at most their contextMax
   * for a text that is longer.
   * @throws BAD_OPTION for a context that is none, BAD_INPUT for a text without a byte, one beyond contextMax, and for models whose tokens
   * are not bytes; NOT_FINITE for broken weights; SLOTS_EXHAUSTED when sessions hold all slots
   */
  async bitsPerByte(text: Prompt, options: ScoreOptions = {}): Promise<number> {
    checkOptions("bitsPerByte", options, ["signal", "onProgress", "context"])
    this.#checkContext(options.context)
    this.textCodec("bitsPerByte")
    const ids = this.tokens(text)
    expect(ids.length > 0, "BAD_INPUT", () => "bitsPerByte: a text of at least one byte is needed, got an empty one")
    const { contextMax = Number.POSITIVE_INFINITY } = this.network
    expect(
      (options.context ?? ids.length - 1) <= contextMax, // the last byte is judged, and never read
      "BAD_INPUT",
      () =>
        `bitsPerByte: a text of at most contextMax + 1 = ${contextMax + 1} bytes is expected without a context, got ${ids.length}; give a context of at most ${contextMax}, or load the model with a larger contextMax`,
    )
    const slots = this.slots.take(2)
    let ring: number[] = []
    try {
      ring = this.rings.take(1)
      const executable = await this.#compiled("score", () =>
        scoreProgram(this.network, { ...this.shape, rows: scoreRows }),
      )
      const place = { slots: [slots[0]!, slots[1]!], ring: ring[0]! } as const
      const losses = await tokenLosses({ model: this.network, executable }, ids, place, options)
      const bits = bitsPerByte(losses, this.network.patches ? "all" : "rest")
      expect(
        Number.isFinite(bits),
        "NOT_FINITE",
        () => `bitsPerByte: losses are expected to be finite, got ${bits}; check the model's weights`,
      )
      return bits
    } finally {
      this.slots.give(slots)
      this.rings.give(ring)
    }
  }

  #checkContext(context: number | undefined): void {
    expect(
      context === undefined || (Number.isSafeInteger(context) && context >= 1),
      "BAD_OPTION",
      () => `bitsPerByte: context is a whole number of at least 1, got ${context}`,
    )
    const { contextMax = Number.POSITIVE_INFINITY } = this.network
    expect(
      (context ?? 0) <= contextMax,
      "BAD_OPTION",
      () => `bitsPerByte: context is at most the model's contextMax, ${contextMax}, got ${context}`,
    )
  }

  /** Ids of a prompt. Throws BAD_INPUT for ids outside the vocabulary. */
  tokens(prompt: Prompt): number[] {
    if (typeof prompt === "string") return this.textCodec("prompt").encode(prompt)
    expect(
      Array.isArray(prompt) || prompt instanceof Uint8Array,
      "BAD_INPUT",
      () =>
        `prompt: a string, a Uint8Array or an array of ids is expected, got ${prompt === null ? "null" : typeof prompt}`,
    )
    const { vocab } = this.network
    const ids = Array.from(prompt)
    const bad = ids.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= vocab)
    expect(
      bad < 0,
      "BAD_INPUT",
      () => `prompt: ids are whole numbers from 0 to ${vocab - 1}, got ${ids[bad]} at index ${bad}`,
    )
    return ids
  }

  /** The codec, where there is one. Throws BAD_INPUT for a model whose tokens are not bytes. */
  textCodec(where: string): Codec {
    expect(
      this.codec !== undefined,
      "BAD_INPUT",
      () =>
        `${where}: text is for models over the 256 bytes, this one has a vocabulary of ${this.network.vocab}; give and take ids with session.tokens()`,
    )
    return this.codec
  }

  /**
   * Writes the model as a folder that load() reads, and where the naming is another's, as state-spaces/mamba, transformers or
   * microsoft/Samba have it.
   * @throws BAD_OPTION; BAD_CHECKPOINT for a model that the naming has no words for; NOT_FINITE for a weight that is none in f16; DISK (what was there before stays)
   */
  save(folder: string, options: SaveOptions = {}): Promise<void> {
    return saveModel(this, this.network.config, folder, options)
  }

  /** The compiled step program of that many rows, for a model that reads patches from position `position` on. */
  step(kind: "prompt" | "next", rows: number, position = 0): Promise<Executable> {
    const patches = this.network.patches?.mostBegun(position, rows)
    const name = `${kind} ${rows}${patches === 0 ? " inside" : ""}`
    return this.#compiled(name, () => stepProgram(this.network, kind, { ...this.shape, rows, patches }))
  }

  memory(): Promise<Memory> {
    return this.store.memory()
  }

  /** Releases the weights once what runs has finished; later calls throw DISPOSED. */
  async dispose(): Promise<void> {
    await this.store.dispose()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }

  /** What every program of this model has in common. */
  get shape(): ModelShape {
    const { precision, matrixDtype, device } = this
    const rings = { count: this.rings.capacity, rowsMost: scoreRows }
    const activations = activationsOn(device, precision)
    return { slots: this.slots.capacity, rings, matrixDtype, precision, activations }
  }

  #compiled(name: string, program: () => import("../graph/program.ts").Program): Promise<Executable> {
    let compiled = this.#steps.get(name)
    if (compiled === undefined) {
      compiled = this.store.compile(program())
      this.#steps.set(name, compiled)
      compiled.catch(() => this.#steps.delete(name)) // so that a failure, such as memory, can be tried again
    }
    return compiled
  }
}
