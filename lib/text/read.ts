/**
 * The tokenizer of a model's folder: tokenizer.json, and beside it what ends a text and how a conversation is written.
 */
import { readFile, stat } from "node:fs/promises"
import { dirname, join } from "node:path"
import { expect, SelscanError } from "../errors.ts"
import { ChatTemplates } from "./chat-template.ts"
import { byteCodec, type Codec } from "./codec.ts"
import { isObject, refuse } from "./tokenizer-file.ts"

/** The largest public tokenizer.json has 35 MB, which is parsed into a few times as much memory. */
const fileBytesMax = 2 ** 27

type Json = Readonly<Record<string, unknown>>

/**
 * The codec of a folder, undefined where it has no tokenizer.json.
 *
 * A text ends at the eos_token of tokenizer_config.json or special_tokens_map.json and at every eos_token_id of generation_config.json;
 * at the one of config.json only where those say nothing, as that often is a default nobody chose.
 * @throws BAD_TOKENIZER, with the file and what is wrong in it
 */
export async function readTokenizer(folder: string): Promise<Codec | undefined> {
  const path = join(folder, "tokenizer.json")
  const text = await textOf(path)
  return text === undefined ? undefined : await codecOf(folder, path, text)
}

/**
 * The codec that an option names: "bytes", a tokenizer.json, or a folder with one.
 * @throws BAD_OPTION for what is no text, NOT_FOUND for a path without a tokenizer, else as `readTokenizer`
 */
export async function namedTokenizer(name: string): Promise<Codec> {
  expect(typeof name === "string", "BAD_OPTION", () => {
    return `load: tokenizer is "bytes", a tokenizer.json or a folder with one, got ${name === null ? "null" : typeof name}`
  })
  if (name === "bytes") return byteCodec
  const path = name.endsWith(".json") ? name : join(name, "tokenizer.json")
  const text = await textOf(path)
  if (text !== undefined) return await codecOf(dirname(path), path, text)
  const message = `load: tokenizer is expected to be "bytes", a tokenizer.json or a folder with one, got ${name}; check the path`
  throw new SelscanError("NOT_FOUND", message, { tokenizer: name })
}

async function codecOf(folder: string, path: string, text: string): Promise<Codec> {
  const [own = {}, special = {}, generation = {}, model = {}, template] = await Promise.all([
    objectOf(join(folder, "tokenizer_config.json")),
    objectOf(join(folder, "special_tokens_map.json")),
    objectOf(join(folder, "generation_config.json")),
    objectOf(join(folder, "config.json")),
    textOf(join(folder, "chat_template.jinja")),
  ])
  const config = { ...special, ...own }
  const json = parsed(text, path)
  const ends = idsOf(generation)
  const { tokenizerCodec } = await import("./tokenizer.ts") // models over bytes need none
  return tokenizerCodec(json, {
    config,
    endTokens: ends.length > 0 || config.eos_token ? ends : idsOf(model),
    where: path,
    chat: ChatTemplates.of(template ?? config.chat_template, config, join(folder, "tokenizer_config.json")),
  })
}

/** One id, or several; −1 is how some say none. */
const idsOf = ({ eos_token_id: ids }: Json): number[] =>
  [ids].flat().filter((id): id is number => Number.isInteger(id) && (id as number) >= 0)

async function objectOf(path: string): Promise<Json | undefined> {
  const text = await textOf(path)
  if (text === undefined) return undefined
  const json = parsed(text, path)
  return isObject(json) ? json : refuse(path, "a JSON object", json)
}

function parsed(text: string, path: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    return refuse(path, "JSON", (cause as Error).message, cause)
  }
}

/** A file's text, undefined where there is none. */
async function textOf(path: string): Promise<string | undefined> {
  try {
    const info = await stat(path)
    // A pipe would be waited for, and a device read, for ever.
    if (!info.isFile()) refuse(path, "a text file in UTF-8", "no regular file")
    if (info.size > fileBytesMax) refuse(path, `at most ${fileBytesMax} bytes`, info.size)
    return new TextDecoder("utf-8", { fatal: true }).decode(await readFile(path))
  } catch (cause) {
    if (cause instanceof SelscanError) throw cause
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined
    return refuse(path, "a text file in UTF-8", (cause as Error).message, cause)
  }
}
