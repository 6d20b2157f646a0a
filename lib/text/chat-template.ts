/**
 * Chat templates: how a conversation becomes the text that a model was trained on, as Jinja in the tokenizer's files.
 *
 * A template is a stranger's program. It sees the data that it is given and no JavaScript object, and it is bounded: one second to be read and
 * one to run, 2²⁴ characters of text, ranges of 2¹⁶ numbers. What it may allocate within its second is not.
 */
import { runInNewContext } from "node:vm"
import { Template } from "@huggingface/jinja"
import { checkOptions, expect, oneLine, SelscanError } from "../errors.ts"
import { isObject, refuse } from "./tokenizer-file.ts"

/** One turn of a conversation. Templates may read more than these, such as tool_calls. */
export interface ChatMessage {
  /** Most templates know system, user and assistant. */
  readonly role: string
  readonly content?: unknown
  readonly [field: string]: unknown
}

export interface ChatOptions {
  /** Ends with what begins a reply. Default true. */
  readonly generationPrompt?: boolean | undefined
  /** Tools as JSON schemas, for templates that tell the model of them. */
  readonly tools?: readonly object[] | undefined
  /** Documents to answer from, for templates that show them. */
  readonly documents?: readonly object[] | undefined
  /** The template's name where the tokenizer has several, else a template as Jinja. */
  readonly template?: string | undefined
  /** More variables for the template, such as { enable_thinking: false }. */
  readonly variables?: Readonly<Record<string, unknown>> | undefined
}

export const chatOptionNames: readonly (keyof ChatOptions)[] = [
  "generationPrompt",
  "tools",
  "documents",
  "template",
  "variables",
]

type Json = Readonly<Record<string, unknown>>

const timeoutMs = 1000
const charactersMax = 2 ** 24
const rangeMax = 2 ** 16
const defaultName = "default"

/** The templates of a tokenizer, by name; most have one. */
export class ChatTemplates {
  readonly #templates: ReadonlyMap<string, string>
  /** bos_token, eos_token and the like, as text. */
  readonly #tokens: Json

  constructor(templates: ReadonlyMap<string, string>, tokens: Json = {}) {
    this.#templates = templates
    this.#tokens = tokens
  }

  /** Those of a tokenizer_config.json: `source` is its chat_template. Throws BAD_TOKENIZER when that is neither text nor a list of named ones. */
  static of(source: unknown, config: Json, where: string): ChatTemplates | undefined {
    if (source === undefined || source === null) return undefined
    const named = typeof source === "string" ? [{ name: defaultName, template: source }] : source
    const good = (one: unknown) => isObject(one) && typeof one.name === "string" && typeof one.template === "string"
    if (!Array.isArray(named) || !named.every(good))
      return refuse(`${where}: chat_template`, "a template, or a list of name and template", source)
    const tokens = Object.entries(config)
      .filter(([name]) => name.endsWith("_token"))
      .map(([name, token]) => [name, isObject(token) ? token.content : token])
      .filter(([, token]) => typeof token === "string")
    return new ChatTemplates(new Map(named.map(({ name, template }) => [name, template])), Object.fromEntries(tokens))
  }

  get names(): readonly string[] {
    return [...this.#templates.keys()]
  }

  /** The text of a conversation; with tools the template named tool_use, where there is one. Throws as `renderChat`. */
  render(messages: readonly ChatMessage[], { template, ...options }: ChatOptions = {}): string {
    const named = template ?? (options.tools && this.#templates.has("tool_use") ? "tool_use" : defaultName)
    const source = this.#templates.get(named) ?? template
    expect(source !== undefined, "BAD_OPTION", () => {
      return `chat: the tokenizer has templates of other names, got none; choose a template: ${this.names.join(", ")}`
    })
    const { variables = {} } = options
    return renderChat(source, messages, { ...options, variables: { ...this.#tokens, ...variables } })
  }
}

/**
 * The text of a conversation by a template, as transformers' `apply_chat_template` gives it.
 *
 * The template sees messages, tools, documents, add_generation_prompt and the options' variables, such as bos_token; besides what Jinja
 * has, raise_exception(), range() and strftime_now(). A message that contains the text of a special token, such as <|im_end|>, is encoded with that
 * token, as everywhere: take such text out of what strangers send.
 * @throws BAD_INPUT for messages that are none or that the template refuses; BAD_TEMPLATE for one that is no Jinja, fails, takes more than a
 * second or writes more than 2²⁴ characters; BAD_OPTION
 * @example
 * renderChat("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", [{ role: "user", content: "Hello" }])
 * // "user: Hello\n"
 */
export function renderChat(template: string, messages: readonly ChatMessage[], options: ChatOptions = {}): string {
  checkOptions("chat", options, chatOptionNames)
  const { generationPrompt = true, tools, documents, variables = {} } = options
  checkMessages(messages)
  const data = plain({ messages, tools, documents, variables })
  const parsed = compile(template)
  const given = {
    ...(data.variables as Json),
    messages: data.messages,
    tools: data.tools ?? null,
    documents: data.documents ?? null,
    add_generation_prompt: generationPrompt,
    bounded_range: range,
    refuse_messages: (reason: unknown) => {
      throw new Refusal(String(reason))
    },
  }
  const text = bounded("to take these messages", () => parsed.render(given))
  expect(text.length <= charactersMax, "BAD_TEMPLATE", () => {
    return `chat: a template is expected to write at most ${charactersMax} characters, got ${text.length}; choose another template`
  })
  return text
}

/** What a template says by raise_exception. */
class Refusal extends Error {}

function checkMessages(messages: readonly ChatMessage[]): void {
  const wanted = "chat: messages are an array of at least one { role, content }"
  expect(Array.isArray(messages), "BAD_INPUT", () => `${wanted}, got ${messages === null ? "null" : typeof messages}`)
  expect(messages.length > 0, "BAD_INPUT", () => `${wanted}, got none`)
  const bad = messages.findIndex((message) => !isObject(message) || typeof message.role !== "string")
  expect(bad < 0, "BAD_INPUT", () => `${wanted}, got another thing at index ${bad}; give it a role, such as user`)
}

/** A copy of nothing but data: a template calls no function that a caller did not mean it to. */
function plain(data: object): Json {
  try {
    return JSON.parse(JSON.stringify(data))
  } catch (cause) {
    const message = `chat: messages, tools, documents and variables are expected to be data, got ${oneLine(cause)}; give what JSON can say`
    throw new SelscanError("BAD_INPUT", message, {}, { cause })
  }
}

/** Before the template's own statements come two that put bounded functions in the place of the library's. */
const prelude = "{% set range = bounded_range %}{% set raise_exception = refuse_messages %}"

function compile(source: string): Template {
  expect(typeof source === "string", "BAD_OPTION", () => `chat: template is a text in Jinja, got ${typeof source}`)
  // The library's reader takes n² steps for n spaces in a row.
  return bounded("to be Jinja", () => {
    const template = new Template(source)
    template.parsed.body.unshift(...new Template(prelude).parsed.body)
    return template
  })
}

function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop]
  const count = Math.ceil((to - from) / step)
  if (!Number.isInteger(step) || step === 0 || count > rangeMax)
    throw new Error(`range() has at most ${rangeMax} numbers`)
  return Array.from({ length: Math.max(0, count) }, (_, i) => from + i * step)
}

/** Runs it for a second at most: the engine stops all that runs inside, wherever it was written. `expected` of the template. */
function bounded<T>(expected: string, work: () => T): T {
  try {
    return runInNewContext("work()", { work }, { timeout: timeoutMs })
  } catch (cause) {
    if (cause instanceof Refusal) {
      throw new SelscanError(
        "BAD_INPUT",
        `chat: messages are expected to be such as the template takes, got: ${oneLine(cause)}`,
      )
    }
    if ((cause as { code?: unknown }).code === "ERR_SCRIPT_EXECUTION_TIMEOUT")
      throw badTemplate(`to end within ${timeoutMs} ms`, new Error("one that goes on"))
    throw badTemplate(expected, cause)
  }
}

function badTemplate(expected: string, cause: unknown): SelscanError {
  const message = `chat: a template is expected ${expected}, got ${oneLine(cause)}; give another as template`
  return new SelscanError("BAD_TEMPLATE", message, {}, { cause })
}
