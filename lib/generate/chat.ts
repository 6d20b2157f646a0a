/**
 * A conversation: each reply goes on from the state that the one before left, so that nothing is read twice.
 */
import { expect } from "../errors.ts"
import { type ChatMessage, type ChatOptions, chatOptionNames } from "../text/chat-template.ts"
import type { Model } from "./model.ts"
import type { GenerateOptions, Session } from "./session.ts"

/** How a reply is generated, and how the conversation becomes a prompt. */
export interface ReplyOptions extends GenerateOptions, ChatOptions {}

/**
 * Replies to a list of messages that grows. Where the text of the conversation begins with all that the session holds, only the
 * rest is read; where it does not, as after a message was edited or where the template shortens older turns, a new session reads all of it.
 *
 * The messages are the caller's: add the reply as an assistant's message before the next turn. Text is compared, not ids, since a reply need not
 * have the tokens that its text would be encoded as.
 *
 * @example
 * using chat = new Chat(model)
 * const messages = [{ role: "user", content: "Name a river." }]
 * let reply = ""
 * for await (const text of chat.reply(messages)) reply += text
 * messages.push({ role: "assistant", content: reply }, { role: "user", content: "Another." })
 */
export class Chat {
  readonly #model: Model
  #session: Session | undefined
  /** The text that the session holds. */
  #held = ""
  #busy = false

  constructor(model: Model) {
    this.#model = model
  }

  /** Tokens that the session holds. */
  get length(): number {
    return this.#session?.length ?? 0
  }

  /**
   * Generates the reply to the messages. After a `break`, an abort or an error the session holds what was received, and the
   * conversation can go on from there.
   * @throws SESSION_BUSY while another reply is generated; BAD_INPUT for a model without a template; as `renderChat` and `generate`
   */
  async *reply(messages: readonly ChatMessage[], options: ReplyOptions = {}): AsyncGenerator<string> {
    expect(!this.#busy, "SESSION_BUSY", () => "chat: it is replying already; end that first, or open another chat")
    const [chat, generate] = divided(options)
    const text = this.#model.renderChat(messages, chat)
    this.#busy = true
    try {
      yield* this.#goOn(text, generate)
    } finally {
      this.#busy = false
    }
  }

  async *#goOn(text: string, options: GenerateOptions): AsyncGenerator<string> {
    const session = this.#sessionFor(text)
    const ids = this.#encode(text.slice(this.#held.length))
    const before = session.length
    let received = text
    try {
      for await (const piece of session.generate(ids, options)) {
        received += piece
        yield piece
      }
    } finally {
      // A prompt that was not read to its end is not held at all.
      if (session.length > before || ids.length === 0) this.#held = received
    }
  }

  /** Ids of a text that goes on from what is held, as they are in all of the text: only after a special token does one begin anew. */
  #encode(rest: string): number[] {
    const ids = this.#model.encode(rest)
    const first = (special: boolean) => this.#model.decode(ids.slice(0, 1), { special })
    const anew = this.#held === "" || (first(false) === "" && first(true) !== "")
    return anew ? ids : this.#model.encode(rest, { within: true })
  }

  /** The session, if it holds the beginning of the text, else a new one. */
  #sessionFor(text: string): Session {
    if (this.#session && text.startsWith(this.#held)) return this.#session
    this.dispose()
    this.#session = this.#model.session()
    return this.#session
  }

  /** Releases the session. A reply after that begins with a new one. Throws SESSION_BUSY while a reply is generated. */
  dispose(): void {
    this.#session?.dispose()
    this.#session = undefined
    this.#held = ""
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

function divided(options: ReplyOptions): [ChatOptions, GenerateOptions] {
  const entries = Object.entries(options)
  const isChat = ([name]: [string, unknown]) => (chatOptionNames as readonly string[]).includes(name)
  return [Object.fromEntries(entries.filter(isChat)), Object.fromEntries(entries.filter((one) => !isChat(one)))]
}
