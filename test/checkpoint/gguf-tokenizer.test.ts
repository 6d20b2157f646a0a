import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import { byteAlphabet, ggufTokenizer } from "../../lib/checkpoint/gguf-tokenizer.ts"
import { SelscanError } from "../../lib/errors.ts"
import { Random } from "../../lib/layers/random.ts"
import { temporaryFolder } from "./helpers.ts"

const folder = temporaryFolder()
let folders = 0

/** A folder with these files, text or JSON. */
function folderOf(files: Readonly<Record<string, unknown>>): string {
  const path = join(folder, `${folders++}`)
  mkdirSync(path)
  for (const [name, content] of Object.entries(files))
    writeFileSync(join(path, name), typeof content === "string" ? content : JSON.stringify(content))
  return path
}

const model = {
  type: "BPE",
  vocab: { "<|end|>": 0, a: 1, b: 2, Ġ: 3, ab: 4, Ġab: 5 },
  merges: ["a b", ["Ġ", "ab"]],
  byte_fallback: false,
}
/** As GPT-NeoX's, with few tokens: ids 6 and 7 are runs of spaces, the last of the model are padding. */
const pairs = {
  version: "1.0",
  added_tokens: [
    { id: 0, content: "<|end|>", special: true },
    { id: 6, content: "   ", special: false },
    { id: 7, content: "  ", special: false },
  ],
  normalizer: { type: "NFC" },
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  post_processor: { type: "ByteLevel" },
  model,
}
const config = { bos_token: "<|end|>", eos_token: { content: "<|end|>" }, unk_token: null }

test("bytes are tokens in GPT-2's alphabet, and byte 0 the end", async (t) => {
  const alphabet = byteAlphabet()
  t.is(new Set(alphabet).size, 256)
  t.is([..."\n Aé~"].map((char) => alphabet[char.codePointAt(0)!]).join(""), "ĊĠAé~")
  t.is([0, 127, 173].map((byte) => alphabet[byte]).join(""), "ĀġŃ")
  const keys = await ggufTokenizer(folderOf({}), 256)
  t.deepEqual(keys["tokenizer.ggml.tokens"], ["texts", alphabet])
  t.deepEqual(keys["tokenizer.ggml.eos_token_id"], ["u32", 0])
  t.deepEqual(keys["tokenizer.ggml.merges"], ["texts", []])
})

test("a model without a tokenizer has its ids as texts", async (t) => {
  const keys = await ggufTokenizer(folderOf({}), 3)
  t.deepEqual(keys["tokenizer.ggml.tokens"], ["texts", ["[0]", "[1]", "[2]"]])
  t.deepEqual(keys["tokenizer.ggml.token_type"], ["i32s", [4, 4, 4]])
  t.deepEqual(keys["tokenizer.ggml.eos_token_id"], ["u32", 2])
})

test("a byte-level BPE keeps tokens, types, merges and what is special; ids beyond it are padding", async (t) => {
  const template = "{% for m in messages %}{{ m.content }}{% endfor %}"
  const said = { ...config, add_bos_token: true, chat_template: template }
  const keys = await ggufTokenizer(folderOf({ "tokenizer.json": pairs, "tokenizer_config.json": said }), 10)
  t.deepEqual(keys, {
    "tokenizer.ggml.model": ["text", "gpt2"],
    "tokenizer.ggml.pre": ["text", "gpt-2"],
    "tokenizer.ggml.tokens": ["texts", ["<|end|>", "a", "b", "Ġ", "ab", "Ġab", "   ", "  ", "[PAD8]", "[PAD9]"]],
    "tokenizer.ggml.token_type": ["i32s", [3, 1, 1, 1, 1, 1, 4, 4, 5, 5]],
    "tokenizer.ggml.merges": ["texts", ["a b", "Ġ ab"]],
    "tokenizer.ggml.bos_token_id": ["u32", 0],
    "tokenizer.ggml.eos_token_id": ["u32", 0],
    "tokenizer.ggml.add_bos_token": ["bool", true],
    "tokenizer.chat_template": ["text", template],
  })
})

test("the end of text is looked for in every file that may say it; a template may be one of several, or a file", async (t) => {
  const end = async (files: object) => {
    const keys = await ggufTokenizer(folderOf({ "tokenizer.json": pairs, ...files }), 10)
    return keys["tokenizer.ggml.eos_token_id"]
  }
  t.deepEqual(await end({ "special_tokens_map.json": config }), ["u32", 0])
  t.deepEqual(await end({ "generation_config.json": { eos_token_id: [3, 0] } }), ["u32", 3])
  t.deepEqual(await end({ "config.json": { eos_token_id: 2 } }), ["u32", 2])
  const templates = [
    { name: "tool_use", template: "x" },
    { name: "default", template: "y" },
  ]
  const files = { "tokenizer.json": pairs, "tokenizer_config.json": { ...config, chat_template: templates } }
  t.deepEqual((await ggufTokenizer(folderOf(files), 10))["tokenizer.chat_template"], ["text", "y"])
  const own = await ggufTokenizer(folderOf({ ...files, "chat_template.jinja": "z" }), 10)
  t.deepEqual(own["tokenizer.chat_template"], ["text", "z"])
})

test("a tokenizer that llama.cpp has no words for, or that breaks its own rules, is refused by name", async (t) => {
  const changed = (change: object) => ({ ...pairs, ...change })
  const withModel = (change: object) => changed({ model: { ...model, ...change } })
  const prefix = { type: "ByteLevel", add_prefix_space: true }
  const cases: [unknown, RegExp][] = [
    ["{", /tokenizer.json: expected JSON, got a text that is none/],
    ["[]", /expected an object, got another value/],
    [{}, /expected a model of type BPE with vocab and merges, got "none"; a copy of the folder without tokenizer.json/],
    [withModel({ type: "Unigram", vocab: [] }), /expected a model of type BPE with vocab and merges, got "Unigram"/],
    [withModel({ type: "WordLevel" }), /expected a model of type BPE, got "WordLevel"/],
    [withModel({ byte_fallback: true }), /expected a model without byte_fallback, got true/],
    [withModel({ end_of_word_suffix: "</w>" }), /expected a model without end_of_word_suffix, got "<\/w>"/],
    [withModel({ vocab: { a: 10 } }), /expected ids below the model's vocab, 10, got 10 of "a"/],
    [withModel({ vocab: { a: -1 } }), /expected ids below the model's vocab, 10, got -1 of "a"/],
    [withModel({ vocab: { a: "1" } }), /expected ids below the model's vocab, 10, got "1" of "a"/],
    [withModel({ vocab: { a: 1, b: 1 } }), /expected one token of each id, got "a" and "b" of 1/],
    [withModel({ vocab: { "[PAD9]": 1 } }), /expected no token called as a padding one, got "\[PAD9\]"/],
    [withModel({ merges: ["ab"] }), /expected merges of two tokens, got "ab"/],
    [withModel({ merges: [["a", "b c"]] }), /expected merges of two tokens, got \["a","b c"\]/],
    [withModel({ merges: [7] }), /expected merges of two tokens, got 7/],
    [changed({ added_tokens: [{ id: 8, content: "a" }] }), /expected one id of each token, got 1 and 8 of "a"/],
    [changed({ added_tokens: [null] }), /expected added tokens with content, got another/],
    [changed({ normalizer: { type: "Lowercase" } }), /expected no normalizer but NFC, got "Lowercase"/],
    [changed({ pre_tokenizer: { type: "Metaspace" } }), /expected a pre_tokenizer ByteLevel .*, got "Metaspace"/],
    [changed({ pre_tokenizer: null }), /expected a pre_tokenizer ByteLevel .*, got "none"/],
    [changed({ pre_tokenizer: prefix }), /expected a pre_tokenizer that adds no space, got one that does/],
    [changed({ post_processor: { type: "TemplateProcessing" } }), /expected no post_processor but ByteLevel/],
  ]
  for (const [tokenizer, message] of cases) {
    const path = folderOf({ "tokenizer.json": tokenizer, "tokenizer_config.json": config })
    const error = await t.throwsAsync(ggufTokenizer(path, 10), { code: "BAD_CHECKPOINT" }, String(message))
    t.regex(error.message, message)
  }
  const endless = await t.throwsAsync(ggufTokenizer(folderOf({ "tokenizer.json": pairs }), 10))
  t.regex(endless.message, /expected an end of text, an eos_token in tokenizer_config.json, got none/)
  const far = folderOf({ "tokenizer.json": pairs, "config.json": { eos_token_id: 10 } })
  t.regex((await t.throwsAsync(ggufTokenizer(far, 10))).message, /an end of text, .* got id 10/)
  const piped = folderOf({})
  mkdirSync(join(piped, "tokenizer.json"))
  t.regex((await t.throwsAsync(ggufTokenizer(piped, 10))).message, /got no regular file/)
})

test("damaged tokenizers give one error with a code, or are read", async (t) => {
  const text = JSON.stringify(pairs)
  const runs = Number(process.env.SELSCAN_FUZZ ?? 300)
  const random = new Random(7, runs)
  const path = folderOf({ "tokenizer_config.json": config })
  const values = ["null", "true", "-1", "1e99", '""', "[]", "{}", '"\\ud800"', "[[]]"]
  for (let run = 0; run < runs; run++) {
    const at = random.below(text.length)
    const tail = text.slice(at + 1 + random.below(12))
    const put = random.below(2) === 0 ? values[random.below(values.length)]! : String.fromCharCode(random.below(128))
    writeFileSync(join(path, "tokenizer.json"), text.slice(0, at) + put + tail)
    try {
      await ggufTokenizer(path, 10)
    } catch (error) {
      if (!(error instanceof SelscanError)) return t.fail(`run ${run}: ${(error as Error).stack}`)
    }
  }
  t.pass()
})
