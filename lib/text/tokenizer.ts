/**
 * The codec of a tokenizer.json, by `@huggingface/tokenizers`, which agrees with the Rust library but for what is set right here:
 * white space of byte-level vocabularies (`byte-level.ts`), long words in a fraction of the time (`byte-pairs.ts`), and text as it comes.
 */
import { type Context, createContext, Script } from "node:vm"
import { Tokenizer } from "@huggingface/tokenizers"
import { SelscanError } from "../errors.ts"
import { byteLevelDecoder, bytesOfToken, wordPattern } from "./byte-level.ts"
import { BytePairs } from "./byte-pairs.ts"
import type { ChatTemplates } from "./chat-template.ts"
import type { Codec, DecodeOptions, Decoder, EncodeOptions } from "./codec.ts"
import { isObject, type Json, refuse, type TokenizerFile, tokenizerFile } from "./tokenizer-file.ts"
import { windowDecoder } from "./window-decoder.ts"

export interface TokenizerOptions {
  /** What tokenizer_config.json says. Default: nothing. */
  readonly config?: Json | undefined
  /** Tokens that end a text, beside the config's eos_token. Default: none. */
  readonly endTokens?: readonly number[] | undefined
  readonly chat?: ChatTemplates | undefined
  /** What errors call it. Default tokenizer.json. */
  readonly where?: string | undefined
}

/** What is used of the library's classes, whose own types do not resolve from a module. */
interface Library {
  readonly model: { readonly vocab: readonly (string | undefined)[] } & Partial<PairModel> & Partial<PieceModel>
  readonly pre_tokenizer: PreTokenizer | null
  encode(text: string, options: { add_special_tokens: boolean }): { readonly ids: readonly (number | undefined)[] }
  decode(ids: readonly number[], options: { clean_up_tokenization_spaces: boolean }): string
  token_to_id(token: string): number | undefined
}

/** A model of byte pairs. */
interface PairModel {
  readonly merges: readonly (readonly [string, string])[]
  readonly end_of_word_suffix: string | null
  readonly continuing_subword_suffix: string | null
  readonly max_length_to_cache: number
  /** What its own merging looks ranks up in. */
  readonly bpe_ranks: Map<string, number>
  readonly cache: { get(word: string): string[] | undefined; put(word: string, symbols: string[]): void }
  bpe(word: string): string[]
}

/** A Unigram model: of all ways to cut a word into pieces, the likeliest. */
interface PieceModel {
  tokenize(word: string): string[]
  encode(words: readonly string[]): string[]
}

interface PreTokenizer {
  /** Those of a sequence. */
  readonly tokenizers?: readonly (PreTokenizer | null)[]
  /** Byte-level ones have it. */
  readonly byte_encoder?: object
  pattern?: RegExp
}

/** Combining marks in a row after which a text is cut: putting n of them in order takes ICU n² steps, a minute for 200,000. */
const marksMax = 1024

/**
 * The codec of a parsed tokenizer.json. Decoding the ids of well-formed text gives that text as the tokenizer normalises it (GPT-NeoX: NFC)
 * when special tokens are shown; lone surrogates become U+FFFD. Special tokens that stand in a text are encoded as such.
 *
 * @throws BAD_TOKENIZER for a file that is none, or that needs what is not supported; its encode() too, where a pattern of the file takes more
 * than 10 s and 0.1 ms for each character
 * @example
 * const codec = tokenizerCodec(JSON.parse(await readFile("tokenizer.json", "utf8")))
 * const ids = codec.encode("Mamba is a selective state space model.")
 */
export function tokenizerCodec(json: unknown, options: TokenizerOptions = {}): Codec {
  const { where = "tokenizer.json" } = options
  return attempt(where, () => new TokenizerCodec(tokenizerFile(json, where), { ...options, where }))
}

const script = new Script("work()")
let context: Context | undefined

/** The engine stops what runs inside, patterns too. A context takes half a millisecond to make, so there is one. */
function bounded<T>(work: () => T, timeout: number): T {
  context ??= createContext({})
  context.work = work
  try {
    return script.runInContext(context, { timeout })
  } finally {
    context.work = undefined
  }
}

/** A pattern may need 2ⁿ steps for n letters; good ones take less than a microsecond for each. */
const timeoutOf = ({ length }: string) => 10_000 + Math.ceil(length / 10)

/** Whatever the library stumbles over in a file is the file's fault. */
function attempt<T>(where: string, work: () => T, timeoutMs?: number): T {
  try {
    return timeoutMs === undefined ? work() : bounded(work, timeoutMs)
  } catch (cause) {
    if (cause instanceof SelscanError) throw cause
    if ((cause as { code?: unknown }).code === "ERR_SCRIPT_EXECUTION_TIMEOUT")
      refuse(where, "patterns that take a text in seconds", `one that goes on after ${timeoutMs} ms`, cause)
    return refuse(where, "a tokenizer that can be built and used", (cause as Error).message, cause)
  }
}

class TokenizerCodec implements Codec {
  readonly size: number
  readonly endTokens: readonly number[]
  readonly chat: ChatTemplates | undefined
  readonly #tokenizer: Library
  readonly #where: string
  /** By id: a token as the vocabulary has it, or an added token's text. */
  readonly #tokens: readonly (string | undefined)[]
  readonly #added: ReadonlyMap<number, string>
  readonly #special: ReadonlyMap<string, number>
  readonly #specialIds: ReadonlySet<number>
  readonly #byteLevel: boolean
  /** Whether it has patterns of its own, which may take for ever. */
  readonly #patterns: boolean
  /** Bytes of tokens that have been decoded. */
  readonly #bytes = new Map<number, Uint8Array>()
  /** What it sets before a text when asked to begin one. */
  readonly #front: readonly number[]
  /** The tokenizer without the space that it sets before a text. */
  readonly #within: Library

  constructor(file: TokenizerFile, { config = {}, endTokens = [], chat, where = "" }: TokenizerOptions) {
    this.#where = where
    this.#tokenizer = new Tokenizer(file, config) as Library
    this.#tokens = this.#tokenizer.model.vocab
    this.size = this.#tokens.length
    this.#added = new Map(file.added_tokens.map(({ id, content }) => [id, content]))
    this.#special = new Map(file.added_tokens.filter(({ special }) => special).map(({ id, content }) => [content, id]))
    this.#specialIds = new Set(this.#special.values())
    this.#byteLevel = file.decoder?.type === "ByteLevel"
    this.#patterns = /"Regex":/.test(JSON.stringify([file.normalizer, file.pre_tokenizer]))
    this.chat = chat
    mend(this.#tokenizer)
    this.#within = unspaced(file, config, this.#tokenizer)
    this.#front = this.#begin(config)
    const ends = [this.#idOf(config.eos_token), ...endTokens]
    this.endTokens = [...new Set(ends.filter((id) => id !== undefined && id < this.size) as number[])]
    this.decoder().push(this.encode("a")[0] ?? 0) // what can be built can be used
  }

  encode(text: string, { begin = false, within = false }: EncodeOptions = {}): number[] {
    const encode = (piece: string, i: number) => this.#ids(piece, false, within || i > 0)
    const ids = pieces(text.replace(/\p{Surrogate}/gu, "\ufffd")).flatMap(encode)
    return begin ? [...this.#front, ...ids] : ids
  }

  decoder({ special = false, within = false }: DecodeOptions = {}): Decoder {
    const known = (id: number) => this.#tokens[id] !== undefined && (special || !this.#specialIds.has(id))
    if (this.#byteLevel) return byteLevelDecoder((id) => (known(id) ? this.#bytesOf(id) : undefined))
    const decoder = windowDecoder((ids) => this.#decode(ids), within ? this.#ids("a", false) : [])
    return {
      push: (id) => (known(id) ? decoder.push(id) : ""),
      get open() {
        return decoder.open
      },
      flush: () => decoder.flush(),
    }
  }

  special(text: string): number | undefined {
    return this.#special.get(text)
  }

  /** The id of a token as a config names it: its text, or an object with that as content. */
  #idOf(token: unknown): number | undefined {
    const text = isObject(token) ? token.content : token
    return typeof text === "string" ? this.#tokenizer.token_to_id(text) : undefined
  }

  #ids(text: string, withSpecial: boolean, within = false): number[] {
    const tokenizer = within ? this.#within : this.#tokenizer
    const encode = () => tokenizer.encode(text, { add_special_tokens: withSpecial })
    const { ids } = attempt(this.#where, encode, this.#patterns ? timeoutOf(text) : undefined)
    if (!ids.every((id) => Number.isInteger(id)))
      refuse(this.#where, "tokens for every text, or one that stands for unknown ones", "neither")
    return ids as number[]
  }

  #decode(ids: readonly number[]): string {
    if (ids.length === 0) return ""
    return attempt(this.#where, () => this.#tokenizer.decode([...ids], { clean_up_tokenization_spaces: false }))
  }

  #bytesOf(id: number): Uint8Array {
    let bytes = this.#bytes.get(id)
    if (bytes === undefined) {
      const added = this.#added.get(id)
      bytes = added === undefined ? bytesOfToken(this.#tokens[id]!) : new TextEncoder().encode(added)
      this.#bytes.set(id, bytes)
    }
    return bytes
  }

  /** What the tokenizer sets before a text: as its config says, else what it sets before an "a". */
  #begin({ add_bos_token: begins, bos_token: token }: Json): number[] {
    if (begins === false) return []
    const [plain, whole] = [this.#ids("a", false), this.#ids("a", true)]
    const at = whole.findIndex((_, i) => plain.every((id, j) => id === whole[i + j]))
    const bos = this.#idOf(token)
    return at > 0 || begins !== true || bos === undefined ? whole.slice(0, Math.max(at, 0)) : [bos]
  }
}

/** A tokenizer that sets no space before a text; it shares the model of the one that does. */
function unspaced(file: TokenizerFile, config: Json, spaced: Library): Library {
  const { normalizer, pre_tokenizer } = file
  if (!/"Prepend"|"Metaspace"|"add_prefix_space":true/.test(JSON.stringify([normalizer, pre_tokenizer]))) return spaced
  const model = { type: "BPE", vocab: {}, merges: [] }
  const parts = { normalizer: withoutSpace(normalizer), pre_tokenizer: withoutSpace(pre_tokenizer) }
  const tokenizer = Object.assign(new Tokenizer({ ...file, ...parts, model }, config) as Library, {
    model: spaced.model,
  })
  mendPattern(tokenizer)
  return tokenizer
}

function withoutSpace(part: Json | null): Json | null {
  if (part === null || part.type === "Prepend") return null
  const inner = (parts: unknown) => (parts as Json[] | undefined)?.map(withoutSpace).filter((one) => one !== null)
  const [normalizers, pretokenizers] = [inner(part.normalizers), inner(part.pretokenizers)]
  return { ...part, normalizers, pretokenizers, add_prefix_space: false, prepend_scheme: "never" }
}

/** Sets right where the library differs from the Rust one, or takes long. */
function mend(tokenizer: Library): void {
  const { model } = tokenizer
  mendPattern(tokenizer)
  // Its own hands the pieces of a word to a function as arguments, of which the stack holds some ten thousand.
  if (hasPieces(model)) model.encode = (words) => words.flatMap((word) => model.tokenize(word))
  if (hasPairs(model) && !model.end_of_word_suffix && !model.continuing_subword_suffix) mendPairs(model)
}

function mendPattern({ pre_tokenizer }: Library): void {
  for (const part of allOf(pre_tokenizer)) if (part.byte_encoder) part.pattern = wordPattern
}

const hasPairs = (model: object): model is PairModel => "bpe" in model

const hasPieces = (model: object): model is PieceModel => "tokenize" in model

function mendPairs(model: PairModel): void {
  const bytePairs = new BytePairs(model.merges)
  model.bpe_ranks.clear() // 8 MB of GPT-NeoX that nobody reads any more
  model.bpe = (word) => {
    const known = model.cache.get(word)
    if (known !== undefined) return known
    const symbols = bytePairs.split(word)
    if (word.length < model.max_length_to_cache) model.cache.put(word, symbols)
    return symbols
  }
}

const allOf = (part: PreTokenizer | null): PreTokenizer[] =>
  part === null ? [] : [part, ...(part.tokenizers ?? []).flatMap(allOf)]

/** The text, cut inside runs of combining marks that are longer than any language has. */
function pieces(text: string): string[] {
  const cuts: number[] = []
  for (const { 0: marks, index } of text.matchAll(/\p{M}{64,}/gu)) {
    for (let at = marksMax; at < marks.length; at += marksMax) cuts.push(index + at)
  }
  return [...cuts, text.length].map((end, i) => text.slice(cuts[i - 1] ?? 0, end))
}
