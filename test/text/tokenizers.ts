/**
 * Tokenizers for tests: the one of GPT-NeoX (EleutherAI/gpt-neox-20b, Apache-2.0), and small ones of every kind of decoder.
 */
import { readFileSync } from "node:fs"
import { brotliDecompressSync } from "node:zlib"

const beside = (name: string) => readFileSync(new URL(name, import.meta.url))

/** The parsed tokenizer.json that public Mamba checkpoints are used with. */
export const gptNeox = () => JSON.parse(brotliDecompressSync(beside("gpt-neox.json.br")).toString())

/** Texts and their ids, as the Rust library gives them: recorded with npm's tokenizers 0.23.2. */
export const gptNeoxIds = () => JSON.parse(beside("gpt-neox.ids.json").toString()) as readonly [string, number[]][]

const numbered = (tokens: readonly string[]) => Object.fromEntries(tokens.map((token, id) => [token, id]))
const special = (id: number, content: string) => ({ id, content, special: true, normalized: false })
const letters = [..."abcdefghijklmnopqrstuvwxyz"]

/** The characters that bytes stand as in byte-level vocabularies, by byte. */
const byteCharacters = (() => {
  let other = 0x100
  return Array.from({ length: 256 }, (_, byte) => {
    const visible = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad)
    return String.fromCharCode(visible ? byte : other++)
  })
})()

/** All bytes, a few words, an end of text, and two tokens of ChatML. Ids 0 to 266. */
export function tinyByteLevel() {
  const merges = ["t h", "th e", "Ġ the", "Ġ a", "à ¤", "ð Ł", "ðŁ Ļ"]
  const vocab = numbered([...byteCharacters, ...merges.map((merge) => merge.replace(" ", ""))])
  const added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map((content, i) => special(263 + i, content))
  return {
    added_tokens: [...added, { id: 266, content: "  ", special: false, normalized: true }],
    normalizer: { type: "NFC" },
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
    post_processor: null,
    decoder: { type: "ByteLevel" },
    model: { type: "BPE", vocab, merges },
  }
}

/** As Llama's: spaces as ▁ with one before the text, unknown characters as bytes, `<s>` in front. */
export function tinyLlama() {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`)
  const merges = [
    ["▁", "t"],
    ["h", "e"],
    ["▁t", "he"],
    ["▁", "▁"],
    ["▁", "a"],
  ] as const
  const vocab = numbered(["<unk>", "<s>", "</s>", ...bytes, "▁", ...letters, ...merges.map((pair) => pair.join(""))])
  const begins = [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }]
  return {
    added_tokens: [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "Prepend", prepend: "▁" },
        { type: "Replace", pattern: { String: " " }, content: "▁" },
      ],
    },
    pre_tokenizer: null,
    post_processor: { type: "TemplateProcessing", single: begins, pair: begins, special_tokens: {} },
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: { type: "BPE", vocab, merges, unk_token: "<unk>", fuse_unk: true, byte_fallback: true },
  }
}

/** Words and pieces that go on from them, with spaces between words. */
export function tinyWordPiece() {
  const pieces = [...letters, ...letters.map((letter) => `##${letter}`), "the", "##he", "##ing", "�", "日", "!"]
  return {
    added_tokens: [special(0, "[UNK]"), special(1, "[SEP]")],
    normalizer: null,
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: null,
    decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    model: {
      type: "WordPiece",
      vocab: numbered(["[UNK]", "[SEP]", ...pieces]),
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
    },
  }
}

/** Scored pieces with ▁ before words. */
export function tinyUnigram() {
  const pieces = ["<unk>", "</s>", "▁", "▁the", "he", "▁a", ...letters].map((piece, i) => [piece, -i])
  return {
    added_tokens: [special(0, "<unk>"), special(1, "</s>")],
    normalizer: null,
    pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme: "always" },
    post_processor: null,
    decoder: { type: "Metaspace", replacement: "▁", prepend_scheme: "always" },
    model: { type: "Unigram", unk_id: 0, vocab: pieces },
  }
}

/** Pieces of which the last of a word says that it is. */
export function tinySuffixed() {
  const vocab = numbered(["<unk>", ...letters, ...letters.map((letter) => `${letter}</w>`), "th"])
  return {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: { type: "WhitespaceSplit" },
    post_processor: null,
    decoder: { type: "BPEDecoder", suffix: "</w>" },
    model: { type: "BPE", vocab, merges: ["t h"], unk_token: "<unk>", end_of_word_suffix: "</w>" },
  }
}
