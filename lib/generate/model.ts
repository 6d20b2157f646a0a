/**
 * A model that is ready to run: weights on a device, programs compiled as they are needed, slots for sessions.
 */
import { checkOptions, expect } from "../errors.ts"
import type { Precision } from "../graph/trace.ts"
import type { Dtype } from "../graph/value.ts"
import type { MambaModel } from "../models/mamba.ts"
import { activationsOn, type Device, type Executable, type Memory, resolveDevice, Store } from "../native.ts"
import { stepProgram } from "./programs.ts"
import { type SaveOptions, saveModel } from "./save.ts"
import { bitsPerByte, scoreProgram, scoreRows, tokenLosses } from "./score.ts"
import { type GenerateOptions, type Prompt, Session } from "./session.ts"
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

/** Slots of a session: the current state, the one being written, and one to return to. */
const slotsPerSession = 3

export class Model {
  readonly network: MambaModel
  /** Between text and tokens; undefined for a vocabulary other than the 256 bytes, which takes and gives ids. */
  readonly codec: Codec | undefined
  readonly store: Store
  readonly slots: Slots
  readonly precision: Precision
  readonly matrixDtype: Dtype
  readonly #steps = new Map<string, Promise<Executable>>()

  /** Use load(), or give weights with `store.upload` under the network's parameter names. */
  constructor(network: MambaModel, matrixDtype: "f32" | "bf16", options: ModelOptions = {}) {
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
    this.slots = new Slots(1 + slotsPerSession * sessions)
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
   * Bits per byte of a text, the state carried over all of it, the first byte charged 8 bits.
   * @throws BAD_INPUT for a text without a byte, and for models whose tokens are not bytes; NOT_FINITE for broken weights;
   * SLOTS_EXHAUSTED when sessions hold all slots
   */
  async bitsPerByte(
    text: Prompt,
    options: { signal?: AbortSignal | undefined; onProgress?: (bytesDone: number) => void } = {},
  ): Promise<number> {
    checkOptions("bitsPerByte", options, ["signal", "onProgress"])
    this.textCodec("bitsPerByte")
    const ids = this.tokens(text)
    expect(ids.length > 0, "BAD_INPUT", () => "bitsPerByte: a text of at least one byte is needed, got an empty one")
    const slots = this.slots.take(2)
    try {
      const executable = await this.#compiled("score", () =>
        scoreProgram(this.network, { ...this.#shape, rows: scoreRows }),
      )
      const bits = bitsPerByte(await tokenLosses(executable, ids, [slots[0]!, slots[1]!], options))
      expect(
        Number.isFinite(bits),
        "NOT_FINITE",
        () => `bitsPerByte: losses are expected to be finite, got ${bits}; check the model's weights`,
      )
      return bits
    } finally {
      this.slots.give(slots)
    }
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
   * Writes the model as a folder that load(), state-spaces/mamba and transformers read.
   * @throws BAD_OPTION, DISK (what was there before stays)
   */
  save(folder: string, options: SaveOptions = {}): Promise<void> {
    return saveModel(this, this.network.config, folder, options)
  }

  /** The compiled step program of that many rows. */
  step(kind: "prompt" | "next", rows: number): Promise<Executable> {
    return this.#compiled(`${kind} ${rows}`, () => stepProgram(this.network, kind, { ...this.#shape, rows }))
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

  get #shape() {
    const { precision, matrixDtype, device } = this
    return { slots: this.slots.capacity, matrixDtype, precision, activations: activationsOn(device, precision) }
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
