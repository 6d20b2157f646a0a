/**
 * A model that is ready to run: weights on a device, programs compiled as they are needed, slots for sessions.
 */
import { checkOptions, expect } from "../errors.ts"
import type { Program } from "../graph/program.ts"
import { checkPrecision, type Precision } from "../graph/trace.ts"
import type { Dtype } from "../graph/value.ts"
import type { LanguageModel } from "../models/language-model.ts"
import { activationsOn, type Device, type Executable, type Memory, resolveDevice, Store } from "../native.ts"
import { type ChatMessage, type ChatOptions, renderChat } from "../text/chat-template.ts"
import { byteCodec, type Codec, type DecodeOptions, decode, type EncodeOptions } from "../text/codec.ts"
import { burstLimits } from "./burst.ts"
import { Chat, type ReplyOptions } from "./chat.ts"
import { describe, fingerprint } from "./fingerprint.ts"
import { Kept, OpenSequences } from "./kept.ts"
import type { ModelShape } from "./layout.ts"
import { outOfMemory } from "./out-of-memory.ts"
import { Places } from "./places.ts"
import { stepProgram } from "./programs.ts"
import { checkedIds, codecFor, textOfBytes } from "./prompt.ts"
import { type SaveOptions, saveModel } from "./save.ts"
import { type ScoreOptions, scoreProgram, scoreRows } from "./score.ts"
import { type GenerateOptions, type Prompt, Session } from "./session.ts"
import { slotsPerSession } from "./session-slots.ts"
import { bitsPerByteOf, type Score, scoreText } from "./text-score.ts"

export interface ModelOptions {
  /** What products are made of, see `Precision`. Default: the dtype of the stored matrices. */
  readonly precision?: Precision | undefined
  /** Sessions that can run at once; the others' states are in host memory. Default 16. */
  readonly sessions?: number
  /** Default `auto`: cuda where it can be used, else the cpu. */
  readonly device?: Device | undefined
  /** Between text and tokens. Default: bytes for a vocabulary of 256, else none; load() gives that of the folder's tokenizer. */
  readonly codec?: Codec | undefined
}

export const modelOptionNames: readonly (keyof ModelOptions)[] = ["precision", "sessions", "device", "codec"]

export class Model {
  readonly network: LanguageModel
  /** Between text and tokens; undefined for a model that takes and gives ids. */
  readonly codec: Codec | undefined
  readonly store: Store
  /** What snapshots call it: the name it was loaded under, of a path the last part; else its blocks and sizes. */
  name: string
  /** Where sessions are on the device while they are used. */
  readonly places: Places
  readonly precision: Precision
  readonly matrixDtype: Dtype
  /** How far sessions run ahead of their consumers. */
  readonly burst = burstLimits
  /** Names of the matrices that are kept in 8 bits, with scales beside them. */
  readonly int8: ReadonlySet<string>
  /** What has states that may be in host memory. */
  readonly open = new OpenSequences()
  readonly #steps = new Map<string, Promise<Executable>>()
  #kept: Kept | undefined
  #fingerprint: Promise<string> | undefined

  /** Use load(), or give weights with `store.upload` under the network's parameter names. */
  constructor(
    network: LanguageModel,
    matrixDtype: "f32" | "bf16",
    options: ModelOptions = {},
    int8: ReadonlySet<string> = new Set(),
  ) {
    checkOptions("model", options, modelOptionNames)
    const { sessions = 16, device, precision = matrixDtype } = options
    expect(
      Number.isSafeInteger(sessions) && sessions >= 1 && sessions <= 4096,
      "BAD_OPTION",
      () => `model: sessions is a whole number from 1 to 4096, got ${sessions}`,
    )
    checkPrecision("model", precision)
    this.network = network
    this.codec = codecFor(network.vocab, options.codec)
    this.matrixDtype = matrixDtype
    this.int8 = int8
    this.precision = precision
    this.store = new Store(resolveDevice(device))
    this.name = describe(network)
    this.places = new Places(sessions, slotsPerSession(network))
  }

  /** The device that the model is on. */
  get device(): string {
    return this.store.device
  }

  /**
   * Opens a session with an empty state, or one that goes on from what session.save() returned, here or in another process, on this
   * device or another. Any number can be open; as many as the option `sessions` says can run at once.
   *
   * @throws DISPOSED after dispose(). For snapshots BAD_SNAPSHOT, with nothing changed, for bytes that are damaged, of another version
   * or of another model; BAD_INPUT for one of more tokens than this model's contextMax, and for what are no bytes
   * @example
   * const session = model.session()
   * const restored = await model.session(await readFile("session.bin"))
   */
  session(): Session
  session(snapshot: Uint8Array): Promise<Session>
  session(...given: [] | [Uint8Array]): Session | Promise<Session> {
    if (given.length > 0) return Session.restore(this, given[0]!)
    this.checkLive("session")
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
  async *generateBytes(
    prompt: Prompt,
    options: Omit<GenerateOptions, "stop" | "stopTokens"> = {},
  ): AsyncGenerator<number> {
    using session = this.session()
    for await (const { id } of session.tokens(prompt, options)) yield id
  }

  /**
   * Generates the reply to a conversation, which the tokenizer's chat template turns into a prompt; `new Chat(model)` goes on from reply
   * to reply without reading what came before again.
   *
   * @throws BAD_INPUT for a model without a template, and as `renderChat` and `generate`
   * @example
   * for await (const text of model.chat([{ role: "user", content: "Who are you?" }])) process.stdout.write(text)
   */
  async *chat(messages: readonly ChatMessage[], options: ReplyOptions = {}): AsyncGenerator<string> {
    using chat = new Chat(this)
    yield* chat.reply(messages, options)
  }

  /** The text of a conversation by the tokenizer's chat template. Throws BAD_INPUT for a model without one, and as `renderChat`. */
  renderChat(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    const { chat } = this.textCodec("chat")
    if (chat) return chat.render(messages, options)
    expect(options.template !== undefined, "BAD_INPUT", () => {
      return "chat: a model with a chat template is expected, got one without; give a template, or load a model that was trained on conversations"
    })
    return renderChat(options.template, messages, { ...options, template: undefined })
  }

  /** Ids of a text. Throws BAD_INPUT for a model that takes ids alone. */
  encode(text: string, options: EncodeOptions = {}): number[] {
    checkOptions("encode", options, ["begin", "within"])
    expect(typeof text === "string", "BAD_INPUT", () => `encode: a string is expected, got ${typeof text}`)
    return this.textCodec("encode").encode(text, options)
  }

  /** The text of ids; special tokens are left out unless the options say otherwise. Throws BAD_INPUT for ids outside the vocabulary. */
  decode(ids: Uint8Array | readonly number[], options: DecodeOptions = {}): string {
    checkOptions("decode", options, ["special", "within"])
    return decode(this.textCodec("decode"), checkedIds("decode", ids, this.network.vocab), options)
  }

  /**
   * Bits per byte of a text, counted in UTF-8; the first token is charged log₂ of the vocabulary, 8 bits for a byte, unless the
   * model predicts it too or the tokenizer begins texts with one that is not of them, which is charged nothing. The state is carried over all of it, or,
   * with `context`, emptied after every so many tokens; models whose attention sees everything need a context of at most their contextMax
   * for a text that is longer.
   * @throws BAD_OPTION for a context that is none, BAD_INPUT for a text without a byte, one beyond contextMax, and for models that take
   * ids alone; NOT_FINITE for broken weights; SLOTS_EXHAUSTED when as many sessions as there are places run
   */
  bitsPerByte(text: Prompt, options: ScoreOptions = {}): Promise<number> {
    return bitsPerByteOf(this, text, options)
  }

  /**
   * Log-probabilities of all tokens of a text, each given those before it; of a text after another use session.score(). The state is
   * carried over all of it, or, with `context`, emptied after every so many tokens.
   *
   * The first token, which most models do not predict, has null for its log-probability.
   * @throws as bitsPerByte(); models whose tokens are not bytes take ids and say no bitsPerByte
   * @example
   * const { ids, logprobs, total, bitsPerByte } = await model.score("It is a truth universally acknowledged")
   */
  score(text: Prompt, options: ScoreOptions = {}): Promise<Score> {
    return scoreText(this, text, options)
  }

  /**
   * Ids of a prompt, which may begin a text. Bytes are ids where the codec is that of bytes or there is none, else text in UTF-8.
   * Throws BAD_INPUT for ids outside the vocabulary and for bytes that are no text.
   */
  tokens(prompt: Prompt, begin = false): number[] {
    if (typeof prompt === "string") return this.textCodec("prompt").encode(prompt, { begin, within: !begin })
    if (prompt instanceof Uint8Array && this.codec && this.codec !== byteCodec)
      return this.codec.encode(textOfBytes(prompt), { begin, within: !begin })
    return checkedIds("prompt", prompt, this.network.vocab)
  }

  /** The codec, where there is one. Throws BAD_INPUT for a model that takes ids alone. */
  textCodec(where: string): Codec {
    expect(
      this.codec !== undefined,
      "BAD_INPUT",
      () =>
        `${where}: text is for models with a tokenizer or over the 256 bytes, this one has a vocabulary of ${this.network.vocab} and no tokenizer; put its tokenizer.json into the folder, name one with the option tokenizer, or give and take ids with session.tokens()`,
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
  step(kind: "prompt" | "next", rows: number, position = 0, withLogits = false): Promise<Executable> {
    const patches = this.network.patches?.mostBegun(position, rows)
    const name = `${kind} ${rows}${patches === 0 ? " inside" : ""}${withLogits ? " logits" : ""}`
    return this.#compiled(name, () => stepProgram(this.network, kind, { ...this.shape, rows, patches }, withLogits))
  }

  /** The compiled program that scores that many rows, the first of them at `position`. */
  scorer(rows: number, position: number): Promise<Executable> {
    const patches = this.network.patches?.mostBegun(position, rows)
    const name = `score ${rows}${patches === 0 ? " inside" : ""}`
    return this.#compiled(name, () => scoreProgram(this.network, { ...this.shape, rows, patches }))
  }

  /** Throws DISPOSED after dispose(). */
  checkLive(where: string): void {
    expect(!this.store.disposed, "DISPOSED", () => `${where}: the model has been disposed`)
  }

  /** What the model keeps of a sequence between runs. */
  get kept(): Kept {
    const { network, shape } = this
    const begin = () => stepProgram(network, "prompt", { ...shape, rows: 1, patches: network.patches?.mostBegun(0, 1) })
    this.#kept ??= new Kept(begin(), network.patches)
    return this.#kept
  }

  /**
   * SHA-256, in hex, of what the model computes: its config and all its weights, as they are when it is first asked for. That takes a
   * second or two for every gigabyte.
   */
  fingerprint(): Promise<string> {
    if (this.#fingerprint === undefined) {
      this.#fingerprint = fingerprint(this)
      this.#fingerprint.catch(() => {
        this.#fingerprint = undefined // so that a failure, such as memory, can be tried again
      })
    }
    return this.#fingerprint
  }

  /** Bytes on the device by what they are for, and `spilled`, those of sessions that are in host memory. */
  async memory(): Promise<Memory & { readonly spilled: number }> {
    return { ...(await this.store.memory()), spilled: this.open.hostBytes }
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
    const { precision, matrixDtype, int8, device } = this
    const rings = { count: this.places.ringCount, rowsMost: scoreRows }
    const activations = activationsOn(device, precision)
    return { slots: this.places.slotCount, rings, matrixDtype, int8, precision, activations }
  }

  #compiled(name: string, make: () => Program): Promise<Executable> {
    let compiled = this.#steps.get(name)
    if (compiled === undefined) {
      const program = make()
      compiled = this.store.compile(program).catch((error) => {
        throw outOfMemory(error, program, this)
      })
      this.#steps.set(name, compiled)
      compiled.catch(() => this.#steps.delete(name)) // so that a failure, such as memory, can be tried again
    }
    return compiled
  }
}
