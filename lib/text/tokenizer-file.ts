/**
 * What stands in a tokenizer.json, checked before anything is built of it: the library that reads it expects a good one.
 */
import { SelscanError } from "../errors.ts"

export type Json = Readonly<Record<string, unknown>>

/** A tokenizer.json as far as it is read here. */
export interface TokenizerFile extends Json {
  readonly added_tokens: readonly AddedToken[]
  readonly normalizer: Json | null
  readonly pre_tokenizer: Json | null
  readonly post_processor: Json | null
  readonly decoder: Json | null
  readonly model: Json & { readonly type: string }
}

export interface AddedToken extends Json {
  readonly id: number
  readonly content: string
  readonly special?: boolean
}

/** Ids of a vocabulary: the largest public ones have 2¹⁸. */
const idMax = 2 ** 24
const modelTypes = ["BPE", "Unigram", "WordPiece"]

export const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value)

const isId = (value: unknown): value is number =>
  typeof value === "number" && Number.isInteger(value) && value >= 0 && value < idMax

export const refuse = (where: string, expected: string, got: unknown, cause?: unknown): never => {
  const shown = (JSON.stringify(got) ?? "none").slice(0, 60)
  const message = `${where}: expected ${expected}, got ${shown}; get the tokenizer's files again, or load with another tokenizer`
  throw new SelscanError("BAD_TOKENIZER", message, { expected, got: shown }, { cause })
}

/** Checks the parsed JSON of a tokenizer.json. Throws BAD_TOKENIZER. */
export function tokenizerFile(json: unknown, where: string): TokenizerFile {
  if (!isObject(json)) return refuse(where, "the object of a tokenizer.json", json)
  const { added_tokens: added = [], model } = json
  if (!isObject(model)) return refuse(`${where}: model`, "an object", model)
  if (!Array.isArray(added)) return refuse(`${where}: added_tokens`, "an array", added)
  added.forEach((token, i) => {
    const good = isObject(token) && isId(token.id) && typeof token.content === "string" && token.content !== ""
    if (!good) refuse(`${where}: added_tokens[${i}]`, `content, and an id below ${idMax}`, token)
  })
  return {
    ...json,
    added_tokens: added as AddedToken[],
    normalizer: part(json, "normalizer", where),
    pre_tokenizer: part(json, "pre_tokenizer", where),
    post_processor: part(json, "post_processor", where),
    decoder: part(json, "decoder", where),
    model: checkModel(model, `${where}: model`),
  }
}

/** A part that may be missing, and the parts of it where it is a sequence; what else they say is checked when they are built. */
function part(json: Json, name: string, where: string): Json | null {
  const value = json[name] ?? null
  if (value === null) return null
  if (!isObject(value) || typeof value.type !== "string")
    return refuse(`${where}: ${name}`, "null, or an object with a type", value)
  if (value.type === "CTC") refuse(`${where}: ${name}`, "one of a language model", value.type)
  if (value.type === "Split" || value.type === "Replace") checkPattern(value.pattern, `${where}: ${name}: pattern`)
  for (const list of ["normalizers", "pretokenizers", "decoders"]) {
    const parts = value[list]
    const count = Array.isArray(parts) ? parts.length : 0
    for (let i = 0; i < count; i++) part(parts as Json, `${i}`, `${where}: ${name}`)
  }
  return value
}

function checkPattern(pattern: unknown, where: string): void {
  const good = isObject(pattern) && typeof (pattern.Regex ?? pattern.String) === "string"
  if (!good) refuse(where, "a Regex or a String", pattern)
}

/** Files of the first years leave the type out. */
const typeOf = ({ type, merges, vocab }: Json): unknown =>
  type ?? (merges !== undefined ? "BPE" : Array.isArray(vocab) ? "Unigram" : "WordPiece")

function checkModel(model: Json, where: string): TokenizerFile["model"] {
  const type = typeOf(model)
  if (typeof type !== "string" || !modelTypes.includes(type))
    return refuse(`${where}: type`, modelTypes.join(", "), type)
  if (type === "Unigram") checkPieces(model.vocab, `${where}: vocab`)
  else checkVocab(model.vocab, `${where}: vocab`)
  return type === "BPE" ? { ...model, type, merges: pairs(model.merges, `${where}: merges`) } : { ...model, type }
}

function checkVocab(vocab: unknown, where: string): void {
  const ids = isObject(vocab) ? vocab : refuse(where, "an object of tokens and ids", vocab)
  for (const [token, id] of Object.entries(ids)) {
    if (!isId(id)) refuse(`${where}: ${JSON.stringify(token.slice(0, 40))}`, `an id below ${idMax}`, id)
  }
}

function checkPieces(vocab: unknown, where: string): void {
  const pieces = Array.isArray(vocab) && vocab.length > 0 ? vocab : refuse(where, "an array of pieces", vocab)
  pieces.forEach((piece: unknown, i: number) => {
    const good = Array.isArray(piece) && typeof piece[0] === "string" && Number.isFinite(piece[1])
    if (!good) refuse(`${where}[${i}]`, "a piece and its score", piece)
  })
}

/** Merges are pairs, or in older files pairs with a space between. */
function pairs(merges: unknown, where: string): [string, string][] {
  if (!Array.isArray(merges)) return refuse(where, "an array of pairs", merges)
  return merges.map((merge: unknown, i) => {
    const pair = typeof merge === "string" ? merge.split(" ") : merge
    const good =
      Array.isArray(pair) && pair.length === 2 && pair.every((side) => typeof side === "string" && side !== "")
    return good ? (pair as [string, string]) : refuse(`${where}[${i}]`, "a pair of tokens", merge)
  })
}
