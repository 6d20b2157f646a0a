/**
 * A model's tokenizer in the keys of llama.cpp: a byte-level BPE from tokenizer.json, the 256 bytes, or ids as texts.
 *
 * llama.cpp normalises no text: one that is not in NFC becomes other tokens there than by a tokenizer.json that asks for NFC, as in the
 * files of its own converter. Everything else that it has no key for is refused.
 * @see llama.cpp v0.5.0, src/llama-vocab.cpp
 */
import { readFile, stat } from "node:fs/promises"
import { join } from "node:path"
import { expect, oneLine, SelscanError } from "../errors.ts"
import type { GgufMetadata } from "./gguf.ts"
import { shown } from "./source.ts"

/** Well above any published tokenizer.json, and below what a process should hold. */
const fileBytesMax = 1 << 27
/** Types of tokens. */
const [normal, control, userDefined, unused] = [1, 3, 4, 5]
/** Its splits by GPT-2's regular expression, as ByteLevel's `use_regex`. */
const gpt2Regex = "gpt-2"
/** Without merges any split will do; this one's detokenizer leaves spaces before punctuation alone. */
const noRegex = "qwen2"

type Json = Readonly<Record<string, unknown>>

/**
 * The tokenizer's keys for a model of `vocab` ids.
 * @throws SelscanError BAD_CHECKPOINT for a tokenizer.json that is malformed, has ids beyond the vocabulary, or is of a kind that llama.cpp has
 * no words for
 */
export async function ggufTokenizer(folder: string, vocab: number): Promise<GgufMetadata> {
  const path = join(folder, "tokenizer.json")
  const tokenizer = await readJson(path)
  if (tokenizer !== undefined) {
    const special = await specialTokens(folder)
    return new BytePairs(tokenizer, path, vocab).metadata(special)
  }
  return vocab === 256 ? byteTokenizer() : idTokenizer(vocab)
}

/** Bytes as tokens. A text holds no byte 0, so that one stands for its end. */
const byteTokenizer = () => withoutMerges(byteAlphabet(), normal, 0)

/**
 * Ids as texts, `[12]`, for a model whose tokenizer nobody gave: `[12][7]` is two tokens there. The form that has no texts at all ends the
 * process of a program that makes tokens of any text, node-llama-cpp 3.22 among them. The last id, often padding, stands for the end.
 */
function idTokenizer(vocab: number): GgufMetadata {
  const texts = Array.from({ length: vocab }, (_, id) => `[${id}]`)
  return withoutMerges(texts, userDefined, vocab - 1)
}

/** Some token must be the end of text: where no key names one, llama.cpp takes token 11. */
function withoutMerges(texts: readonly string[], type: number, end: number): GgufMetadata {
  return {
    "tokenizer.ggml.model": ["text", "gpt2"],
    "tokenizer.ggml.pre": ["text", noRegex],
    "tokenizer.ggml.tokens": ["texts", texts],
    "tokenizer.ggml.token_type": ["i32s", texts.map(() => type)],
    "tokenizer.ggml.merges": ["texts", []],
    "tokenizer.ggml.bos_token_id": ["u32", end],
    "tokenizer.ggml.eos_token_id": ["u32", end],
    "tokenizer.ggml.add_bos_token": ["bool", false],
  }
}

/** GPT-2's characters for bytes: those that can be seen stand for themselves, the others for U+0100 and on, in order. */
export function byteAlphabet(): string[] {
  const visible = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff)
  let next = 0x100
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(visible(byte) ? byte : next++))
}

interface SpecialTokens {
  /** By role, bos and so on: the token's text. */
  readonly texts: Readonly<Record<string, string>>
  /** Where no text is known: the id that the model's configuration says. */
  readonly endId: number | undefined
  readonly addBos: boolean
  readonly chatTemplate: string | undefined
}

const roles = { bos: "bos", eos: "eos", unk: "unknown", pad: "padding" } as const

/** What the files beside tokenizer.json say of special tokens. */
async function specialTokens(folder: string): Promise<SpecialTokens> {
  const read = async (file: string) => (await readJson(join(folder, file))) ?? {}
  const config = await read("tokenizer_config.json")
  const map = await read("special_tokens_map.json")
  const found = Object.keys(roles).flatMap((role) => {
    const said = config[`${role}_token`] ?? map[`${role}_token`]
    const text = isObject(said) ? said.content : said
    return typeof text === "string" ? [[role, text]] : []
  })
  const ends = [(await read("generation_config.json")).eos_token_id, (await read("config.json")).eos_token_id].flat()
  return {
    texts: Object.fromEntries(found) as Record<string, string>,
    endId: ends.find((id): id is number => typeof id === "number" && Number.isSafeInteger(id)),
    addBos: config.add_bos_token === true,
    chatTemplate: (await readText(join(folder, "chat_template.jinja"))) ?? templateOf(config.chat_template),
  }
}

/** One template, or the one called default of several. */
function templateOf(said: unknown): string | undefined {
  const list: readonly unknown[] = Array.isArray(said) ? said : []
  const named = list.filter(isObject).find(({ name }) => name === "default")?.template
  const template = typeof said === "string" ? said : named
  return typeof template === "string" ? template : undefined
}

/** A tokenizer.json whose tokens are bytes in GPT-2's alphabet, merged in pairs. */
class BytePairs {
  readonly #path: string
  readonly #tokens: string[]
  readonly #types: number[]
  readonly #merges: string[]
  readonly #ids = new Map<string, number>()

  constructor(json: Json, path: string, vocab: number) {
    this.#path = path
    const model = this.#modelOf(json)
    this.#checkKind(json, model)
    this.#tokens = Array.from({ length: vocab }, (_, id) => `[PAD${id}]`)
    this.#types = this.#tokens.map(() => unused)
    for (const [text, id] of Object.entries(model.vocab)) this.#add(text, id, normal)
    for (const added of Array.isArray(json.added_tokens) ? json.added_tokens : []) {
      if (!isObject(added) || typeof added.content !== "string") this.#refuse("added tokens with content", "another")
      const { content, id, special } = added as { content: string; id: unknown; special: unknown }
      this.#add(content, id, special === true ? control : userDefined)
    }
    const padding = this.#types.findIndex((type, id) => type === unused && this.#ids.has(this.#tokens[id]!))
    if (padding >= 0) this.#refuse("no token called as a padding one", shown(this.#tokens[padding]!))
    this.#merges = model.merges.map((merge) => this.#merge(merge))
  }

  #modelOf({ model }: Json): Json & { readonly vocab: Json; readonly merges: readonly unknown[] } {
    const fields = isObject(model) ? model : {}
    const { type, vocab, merges } = fields
    if (isObject(vocab) && Array.isArray(merges)) return { ...fields, vocab, merges }
    return this.#refuse("a model of type BPE with vocab and merges", named(type))
  }

  metadata({ texts, endId, addBos, chatTemplate }: SpecialTokens): GgufMetadata {
    const ids = Object.entries(roles).flatMap(([role, name]) => {
      const id = this.#ids.get(texts[role] ?? "") ?? (role === "eos" ? endId : undefined)
      return id === undefined ? [] : [[`tokenizer.ggml.${name}_token_id`, ["u32", id]] as const]
    })
    const end = ids.find(([key]) => key.includes("eos"))?.[1][1]
    // Without one llama.cpp takes token 11 for it, a comma or the like.
    if (!(typeof end === "number" && end >= 0 && end < this.#tokens.length))
      this.#refuse("an end of text, an eos_token in tokenizer_config.json", end === undefined ? "none" : `id ${end}`)
    return {
      "tokenizer.ggml.model": ["text", "gpt2"],
      "tokenizer.ggml.pre": ["text", gpt2Regex],
      "tokenizer.ggml.tokens": ["texts", this.#tokens],
      "tokenizer.ggml.token_type": ["i32s", this.#types],
      "tokenizer.ggml.merges": ["texts", this.#merges],
      ...Object.fromEntries(ids),
      "tokenizer.ggml.add_bos_token": ["bool", addBos],
      ...(chatTemplate !== undefined && { "tokenizer.chat_template": ["text", chatTemplate] as const }),
    }
  }

  /** Holds the tokenizer to what llama.cpp computes for the kind that we write. */
  #checkKind(json: Json, model: Json): void {
    const off = (value: unknown) => value === undefined || value === null || value === false || value === ""
    if (model.type !== undefined && model.type !== "BPE") this.#refuse("a model of type BPE", named(model.type))
    for (const name of ["continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"])
      if (!off(model[name])) this.#refuse(`a model without ${name}`, named(model[name]))
    const { pre_tokenizer: splits, normalizer, post_processor: processor } = json
    const byteLevel = isObject(splits) && splits.type === "ByteLevel" && splits.use_regex !== false
    if (!byteLevel) this.#refuse("a pre_tokenizer ByteLevel with its regular expression", named(splits))
    if (!off((splits as Json).add_prefix_space)) this.#refuse("a pre_tokenizer that adds no space", "one that does")
    if (!off(normalizer) && (normalizer as Json).type !== "NFC")
      this.#refuse("no normalizer but NFC", named(normalizer))
    const adds = !off(processor) && (processor as Json).type !== "ByteLevel"
    if (adds) this.#refuse("no post_processor but ByteLevel", named(processor))
  }

  #add(text: string, id: unknown, type: number): void {
    const fits = typeof id === "number" && Number.isSafeInteger(id) && id >= 0 && id < this.#tokens.length
    if (!fits) this.#refuse(`ids below the model's vocab, ${this.#tokens.length}`, `${named(id)} of ${shown(text)}`)
    const other = this.#types[id as number] === unused ? text : this.#tokens[id as number]!
    if (other !== text) this.#refuse("one token of each id", `${shown(other)} and ${shown(text)} of ${id}`)
    // llama.cpp ends the process over a text that two tokens have.
    const twice = this.#ids.get(text) ?? id
    if (twice !== id) this.#refuse("one id of each token", `${twice} and ${id} of ${shown(text)}`)
    this.#tokens[id as number] = text
    this.#types[id as number] = type
    this.#ids.set(text, id as number)
  }

  /** `"a b"`, or `["a", "b"]` as newer files have it. */
  #merge(merge: unknown): string {
    const pair = typeof merge === "string" ? merge.split(" ") : merge
    const good =
      Array.isArray(pair) && pair.length === 2 && pair.every((one) => typeof one === "string" && /^[^ ]+$/.test(one))
    if (!good) this.#refuse("merges of two tokens", named(merge))
    return (pair as string[]).join(" ")
  }

  #refuse(expected: string, got: string): never {
    const remedy = "a copy of the folder without tokenizer.json becomes a file that takes and gives ids"
    const message = `${this.#path}: expected ${expected}, got ${got}; ${remedy}`
    throw new SelscanError("BAD_CHECKPOINT", message, { expected, got })
  }
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

function named(value: unknown): string {
  const text = JSON.stringify(isObject(value) && typeof value.type === "string" ? value.type : (value ?? "none"))
  return text.length > 60 ? `${text.slice(0, 60)}…` : text
}

async function readJson(path: string): Promise<Json | undefined> {
  const text = await readText(path)
  if (text === undefined) return undefined
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (cause) {
    const message = `${path}: expected JSON, got a text that is none (${oneLine(cause)}); get the file again`
    throw new SelscanError("BAD_CHECKPOINT", message, { path }, { cause })
  }
  expect(isObject(parsed), "BAD_CHECKPOINT", () => `${path}: expected an object, got another value; get the file again`)
  return parsed
}

/** A file's text, or undefined where there is none. */
async function readText(path: string): Promise<string | undefined> {
  const info = await stat(path).catch(() => undefined)
  if (info === undefined) return undefined
  expect(info.isFile() && info.size <= fileBytesMax, "BAD_CHECKPOINT", () => {
    return `${path}: expected a file of at most ${fileBytesMax} bytes, got ${info.isFile() ? info.size : "no regular file"}; check it`
  })
  return await readFile(path, "utf8").catch((cause: Error) => {
    const message = `${path}: expected to read, got ${cause.message}; check the path and its permissions`
    throw new SelscanError("BAD_FILE", message, { path }, { cause })
  })
}
