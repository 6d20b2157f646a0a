import { execFileSync } from "node:child_process"
import { cpSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import test, { type ExecutionContext } from "ava"
import fc from "fast-check"
import { SelscanError } from "../../lib/errors.ts"
import { byteCodec, decode } from "../../lib/text/codec.ts"
import { namedTokenizer, readTokenizer } from "../../lib/text/read.ts"
import { tokenizerCodec } from "../../lib/text/tokenizer.ts"
import { temporaryFolder } from "../checkpoint/helpers.ts"
import { tinyByteLevel, tinyLlama, tinyUnigram, tinyWordPiece } from "./tokenizers.ts"

const root = temporaryFolder()
let count = 0

/** A folder with these files; values that are no text are written as JSON. */
function folderOf(files: Record<string, unknown>): string {
  const folder = join(root, `${count++}`)
  mkdirSync(folder)
  for (const [name, content] of Object.entries(files)) {
    const raw = typeof content === "string" || content instanceof Uint8Array
    writeFileSync(join(folder, name), raw ? content : JSON.stringify(content))
  }
  return folder
}

const tokenizer = tinyByteLevel()

test("a folder without a tokenizer.json has no tokenizer", async (t) => {
  t.is(await readTokenizer(folderOf({ "tokenizer_config.json": {} })), undefined)
})

test("a text ends where the tokenizer and the generation config say, and the model's config only where they are silent", async (t) => {
  const ends = async (files: Record<string, unknown>) =>
    (await readTokenizer(folderOf({ "tokenizer.json": tokenizer, ...files })))!.endTokens
  const config = { eos_token: "<|im_end|>" }
  t.deepEqual(await ends({}), [])
  t.deepEqual(await ends({ "tokenizer_config.json": config }), [265])
  t.deepEqual(await ends({ "tokenizer_config.json": { eos_token: { content: "<|im_end|>" } } }), [265])
  t.deepEqual(await ends({ "special_tokens_map.json": config }), [265])
  t.deepEqual(
    await ends({ "tokenizer_config.json": config, "generation_config.json": { eos_token_id: 263 } }),
    [265, 263],
  )
  t.deepEqual(await ends({ "generation_config.json": { eos_token_id: [263, 265, 9999, -1] } }), [263, 265])
  t.deepEqual(await ends({ "config.json": { eos_token_id: 0 } }), [0])
  t.deepEqual(await ends({ "config.json": { eos_token_id: 0 }, "tokenizer_config.json": config }), [265])
})

test("a chat template stands in the config, alone or among others, or in a file of its own, which comes first", async (t) => {
  const rendered = async (files: Record<string, unknown>) =>
    (await readTokenizer(folderOf({ "tokenizer.json": tokenizer, ...files })))!.chat?.render([{ role: "user" }])
  const named = { chat_template: [{ name: "default", template: "listed" }] }
  t.is(await rendered({}), undefined)
  t.is(await rendered({ "tokenizer_config.json": { chat_template: "own {{ eos_token }}", eos_token: "E" } }), "own E")
  t.is(await rendered({ "tokenizer_config.json": named }), "listed")
  t.is(await rendered({ "tokenizer_config.json": named, "chat_template.jinja": "file" }), "file")
})

test("a tokenizer is named by bytes, a file or a folder", async (t) => {
  const folder = folderOf({ "tokenizer.json": tokenizer })
  cpSync(join(folder, "tokenizer.json"), join(folder, "other.json"))
  t.is(await namedTokenizer("bytes"), byteCodec)
  for (const name of [folder, join(folder, "other.json")])
    t.deepEqual((await namedTokenizer(name)).encode("the"), [257])
  await t.throwsAsync(namedTokenizer(5 as unknown as string), { code: "BAD_OPTION", message: /got number$/ })
  await t.throwsAsync(namedTokenizer(join(root, "none")), { code: "NOT_FOUND", message: /check the path$/ })
})

/** What every refusal of a tokenizer looks like. */
const refusal = {
  instanceOf: SelscanError,
  code: "BAD_TOKENIZER",
  message: /^[^\n]*: expected [^\n]+, got [^\n]+; get the tokenizer's files again, or [^\n]+$/,
}

test("a malformed file is refused with its name and what is wrong", async (t) => {
  const { model } = tokenizer
  for (const [expected, files] of Object.entries({
    "tokenizer.json: expected JSON": { "tokenizer.json": "{" },
    "a text file in UTF-8": { "tokenizer.json": Uint8Array.of(0x22, 0xff, 0x22) },
    "the object of a tokenizer.json": { "tokenizer.json": [] },
    "tokenizer_config.json: expected a JSON object": { "tokenizer.json": tokenizer, "tokenizer_config.json": "3" },
    "chat_template: expected a template": {
      "tokenizer.json": tokenizer,
      "tokenizer_config.json": { chat_template: 3 },
    },
    "model: expected an object": { "tokenizer.json": { ...tokenizer, model: 1 } },
    "type: expected BPE, Unigram, WordPiece": { "tokenizer.json": { ...tokenizer, model: { type: "Other" } } },
    "vocab: expected an object": { "tokenizer.json": { ...tokenizer, model: { ...model, vocab: null } } },
    'vocab: "a": expected an id': { "tokenizer.json": { ...tokenizer, model: { ...model, vocab: { a: -1 } } } },
    "merges: expected an array": { "tokenizer.json": { ...tokenizer, model: { ...model, merges: {} } } },
    "merges[1]: expected a pair": { "tokenizer.json": { ...tokenizer, model: { ...model, merges: ["a b", "ab"] } } },
    "added_tokens[0]: expected content": { "tokenizer.json": { ...tokenizer, added_tokens: [{ id: 1, content: "" }] } },
    "decoder: expected null, or an object": { "tokenizer.json": { ...tokenizer, decoder: "ByteLevel" } },
    "decoder: expected one of a language model": { "tokenizer.json": { ...tokenizer, decoder: { type: "CTC" } } },
    "Unknown PreTokenizer type": { "tokenizer.json": { ...tokenizer, pre_tokenizer: { type: "Other" } } },
    "normalizer: 0: pattern: expected a Regex": {
      "tokenizer.json": { ...tokenizer, normalizer: { type: "Sequence", normalizers: [{ type: "Replace" }] } },
    },
    "Maximum call stack": {
      "tokenizer.json": JSON.stringify(tokenizer).replace(
        '{"type":"NFC"}',
        `${'{"type":"Sequence","normalizers":['.repeat(9999)}${"]}".repeat(9999)}`,
      ),
    },
    "Invalid regular expression": {
      "tokenizer.json": {
        ...tokenizer,
        pre_tokenizer: { type: "Split", pattern: { Regex: "(" }, behavior: "Isolated" },
      },
    },
  })) {
    const error = await t.throwsAsync(readTokenizer(folderOf(files)), refusal)
    t.true(error?.message.includes(expected), `${expected}: ${error?.message}`)
  }
})

/** `SELSCAN_FUZZ=100000` for a long run with another seed each time. */
const long = Number(process.env.SELSCAN_FUZZ ?? 0)
const runs = (numRuns: number, seed: number) => (long > 0 ? { numRuns: long } : { numRuns, seed })

/** What is accepted can be used, and nothing but a SelscanError refuses the rest, now or later. */
function survives(t: ExecutionContext, json: unknown): void {
  try {
    const codec = tokenizerCodec(json, { config: { eos_token: "</s>", add_bos_token: true, bos_token: "<s>" } })
    const ids = codec.encode("the a🙂 <s>\n", { begin: true })
    decode(codec, [...ids, 0, 1, 2, codec.size], { special: true })
  } catch (error) {
    if (!(error instanceof SelscanError)) throw error
    if (error.code !== "BAD_TOKENIZER" || /\n/.test(error.message)) t.fail(error.message)
  }
}

test("tokenizers with any value in any place are read, or refused by a SelscanError", (t) => {
  const files = [tinyByteLevel(), tinyLlama(), tinyWordPiece(), tinyUnigram()].map((file) => JSON.stringify(file))
  const value = fc.oneof(
    fc.jsonValue({ maxDepth: 2 }),
    fc.constantFrom<unknown>(
      -1,
      0.5,
      1e9,
      "",
      "a b",
      "\ud800",
      {},
      [],
      [[]],
      { type: "Sequence" },
      { type: "ByteLevel" },
    ),
  )
  fc.assert(
    fc.property(
      fc.constantFrom(...files),
      fc.array(fc.nat(), { minLength: 1, maxLength: 6 }),
      value,
      (file, path, value) => {
        const json = JSON.parse(file)
        let at = json
        for (const step of path) {
          const keys = Object.keys(at)
          const key = keys[step % keys.length]
          if (key === undefined) break
          const inner = at[key]
          if (typeof inner !== "object" || inner === null || step === path.at(-1)) {
            at[key] = value
            break
          }
          at = inner
        }
        survives(t, json)
      },
    ),
    runs(1500, 1),
  )
  t.pass()
})

test("any JSON at all is refused by a SelscanError", (t) => {
  fc.assert(
    fc.property(fc.jsonValue(), (json) => survives(t, json)),
    runs(500, 2),
  )
  t.pass()
})

test("a file that is no regular one is refused, not waited for", async (t) => {
  const expected = { code: "BAD_TOKENIZER", message: /a text file in UTF-8, got "no regular file"/ }
  for (const file of ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]) {
    const [piped, endless] = [1, 2].map(() =>
      folderOf(file === "tokenizer.json" ? {} : { "tokenizer.json": tokenizer }),
    )
    execFileSync("mkfifo", [join(piped!, file)])
    symlinkSync("/dev/zero", join(endless!, file))
    for (const folder of [piped!, endless!]) await t.throwsAsync(readTokenizer(folder), expected)
  }
})
