import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs"
import { rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "ava"
import { Chat } from "../../lib/generate/chat.ts"
import { type LoadOptions, load } from "../../lib/generate/load.ts"
import { Model, type ModelOptions } from "../../lib/generate/model.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { modelConfig, sambaPattern } from "../../lib/models/config.ts"
import { initialWeights } from "../../lib/models/language-model.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import type { ChatMessage } from "../../lib/text/chat-template.ts"
import { decode } from "../../lib/text/codec.ts"
import { tokenizerCodec } from "../../lib/text/tokenizer.ts"
import { device } from "../device.ts"
import { tinyByteLevel, tinyLlama } from "../text/tokenizers.ts"

const root = mkdtempSync(join(tmpdir(), "selscan-tokenized-"))
test.after.always(() => rm(root, { recursive: true, force: true }))

const chatMl =
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
const config = { eos_token: "<|im_end|>", chat_template: chatMl }

/** A SAMBA of random weights with a few more rows than its tokenizer has ids, as padded vocabularies are. */
async function tinyTokenized(options: ModelOptions = {}, vocab = 272): Promise<Model> {
  const size = { dim: 16, state: 4, layers: 4, pattern: sambaPattern, heads: 2, kvHeads: 1, mlp: 24, window: 11 }
  const network = new PatternModel(modelConfig({ ...size, vocab, contextMax: 4096 }))
  const model = new Model(network, "f32", { device, ...options })
  const weights = initialWeights(network, 5)
  for (const [name, { shape }] of allParameters(network)) {
    const spread = name === "backbone.embedding.weight" ? 10 : 1 // so that the next token depends on what came before
    const values = weights.get(name)!.map((value) => value * spread)
    await model.store.upload("weight", { name, dtype: "f32", shape }, values)
  }
  return model
}

const codec = tokenizerCodec(tinyByteLevel(), { config })
const folder = join(root, "model")
test.before("a model and its tokenizer lie in a folder", async () => {
  await using model = await tinyTokenized()
  await model.save(folder)
  writeFileSync(join(folder, "tokenizer.json"), JSON.stringify(tinyByteLevel()))
  writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify(config))
})
const open = (options: LoadOptions = {}) => load(folder, { device, ...options })

async function all(text: AsyncIterable<string>): Promise<string> {
  let whole = ""
  for await (const piece of text) whole += piece
  return whole
}

async function ids(
  model: Model,
  prompt: string,
  maxTokens: number,
  seed: number,
  temperature = 1.5,
): Promise<number[]> {
  using session = model.session()
  const list: number[] = []
  for await (const { id } of session.tokens(prompt, { maxTokens, seed, temperature })) list.push(id)
  return list
}

test("a folder's tokenizer is the model's, unless another or none is named", async (t) => {
  await using model = await open()
  t.is(model.codec?.size, 267)
  t.deepEqual(model.encode("the <|im_end|>"), [257, 32, 265])
  t.is(model.decode([257, 32, 265]), "the ")
  t.is(model.decode([257, 32, 265], { special: true }), "the <|im_end|>")
  t.throws(() => model.decode([272]), {
    code: "BAD_INPUT",
    message: /^decode: ids are whole numbers from 0 to 271, got 272/,
  })
  t.throws(() => model.encode(3 as never), { code: "BAD_INPUT" })
  await using bytes = await open({ tokenizer: "bytes" })
  t.deepEqual(bytes.encode("the"), [116, 104, 101])
  const other = join(root, "llama.json")
  writeFileSync(other, JSON.stringify(tinyLlama()))
  await t.throwsAsync(open({ tokenizer: other }), {
    code: "BAD_TOKENIZER",
    message: /tokenizer of at most 272 ids is expected, .* got one of 291/,
  })
  await using given = await open({ codec })
  t.is(given.codec, codec)
  await t.throwsAsync(open({ tokenizer: join(root, "none") }), { code: "NOT_FOUND" })
})

test("a model without a tokenizer says what to add", async (t) => {
  await using model = await tinyTokenized()
  const error = await t.throwsAsync(all(model.generate("the")), { code: "BAD_INPUT" })
  t.regex(error!.message, /vocabulary of 272 and no tokenizer; put its tokenizer\.json into the folder/)
  t.deepEqual((await ids(await open(), "the", 3, 1)).length, 3)
})

test("a tokenizer that is damaged is refused before weights are read", async (t) => {
  const damaged = join(root, "damaged")
  mkdirSync(damaged)
  await using model = await tinyTokenized()
  await model.save(damaged)
  writeFileSync(join(damaged, "tokenizer.json"), "{}")
  await t.throwsAsync(load(damaged, { device }), { code: "BAD_TOKENIZER", message: /tokenizer\.json: model: expected/ })
})

test("text is that of the tokens, whole characters alone, and a session holds what was received at every cut", async (t) => {
  await using model = await open()
  for (const seed of [1, 2, 3]) {
    const list = await ids(model, "the", 24, seed)
    const options = { maxTokens: 24, seed, temperature: 1.5, stopTokens: [] }
    t.is(await all(model.generate("the", options)), model.decode(list))
    for (let cut = 1; cut <= 8; cut++) {
      using session = model.session()
      let [received, pieces] = ["", 0]
      for await (const piece of session.generate("the", options)) {
        received += piece
        if (++pieces === cut) break
      }
      // As many tokens as it takes to have shown that much, and nothing held back.
      const held = list.slice(0, session.length - model.encode("the").length)
      t.is(model.decode(held), received)
      using fresh = model.session()
      await fresh.append([...model.encode("the"), ...held])
      const greedy = { temperature: 0, maxTokens: 6, stopTokens: [] }
      t.is(await all(session.generate(" a", greedy)), await all(fresh.generate(" a", greedy)))
    }
  }
})

test("a stop string inside a token leaves a session that holds the text before it", async (t) => {
  for (const [make, vocab] of [
    [tinyByteLevel, 272],
    [tinyLlama, 300],
  ] as const) {
    const codec = tokenizerCodec(make())
    await using model = await tinyTokenized({ codec }, vocab)
    let found = 0
    for (let seed = 1; found < 2; seed++) {
      const options = { maxTokens: 60, seed, temperature: 2, stopTokens: [], stop: ["e", "a"] }
      using session = model.session()
      const text = await all(session.generate("th", options))
      if (!/(^|[^t])th$| $/.test(text)) continue // the token was " the", "the", "he" or " a"
      found++
      using fresh = model.session()
      const list = await ids(model, "th", 60, seed, 2)
      const whole = codec.decoder({ within: true })
      let count = 0
      for (let shown = ""; shown.length <= text.length; count++) shown += whole.push(list[count]!)
      const before = list.slice(0, count - 1)
      const shown = decode(codec, [...codec.encode("a"), ...before]).slice(1)
      const added = codec.encode(text.slice(shown.length), { within: true })
      await fresh.append([...codec.encode("th", { begin: true }), ...before, ...added])
      t.is(session.length, fresh.length)
      const greedy = { temperature: 0, maxTokens: 6, stopTokens: [] }
      t.is(await all(session.generate("x", greedy)), await all(fresh.generate("x", greedy)))
    }
  }
})

test("a text ends before the tokens that end it, which the session does not hold", async (t) => {
  await using model = await open()
  const list = await ids(model, "the", 40, 4)
  const end = list.find((id, i) => i > 5 && list.indexOf(id) === i)!
  const before = list.slice(0, list.indexOf(end))
  const options = { maxTokens: 40, seed: 4, temperature: 1.5 }
  using session = model.session()
  t.is(await all(session.generate("the", { ...options, stopTokens: [end] })), model.decode(before))
  t.is(session.length, model.encode("the").length + before.length)
  using fresh = model.session()
  await fresh.append([...model.encode("the"), ...before])
  const greedy = { temperature: 0, maxTokens: 6, stopTokens: [] }
  t.is(await all(session.generate(" a", greedy)), await all(fresh.generate(" a", greedy)))
  await t.throwsAsync(all(model.generate("the", { stopTokens: ["x"] as never })), { code: "BAD_OPTION" })
})

test("the tokenizer's end of text ends generation by itself, and a special token's text as stop string", async (t) => {
  const ended = tokenizerCodec(tinyByteLevel(), { endTokens: Array.from({ length: 260 }, (_, id) => id) })
  await using eager = await open({ codec: ended })
  t.is((await all(eager.generate("the", { seed: 1 }))).length < 20, true)
  await using model = await open()
  const special = codec.special("<|im_start|>")!
  for (let seed = 1, found = 0; found < 2; seed++) {
    const list = await ids(model, "the", 60, seed)
    const at = list.indexOf(special)
    if (at < 0) continue
    found++
    const options = { maxTokens: 60, seed, temperature: 1.5, stopTokens: [], stop: "<|im_start|>" }
    t.is(await all(model.generate("the", options)), model.decode(list.slice(0, at)))
  }
})

test("a text begins with the tokenizer's first token, and only a text", async (t) => {
  const llama = tokenizerCodec(tinyLlama())
  await using model = await tinyTokenized({ codec: llama }, 300)
  using session = model.session()
  await session.append("the")
  t.is(session.length, 1 + model.encode("the").length)
  await session.append("the")
  t.is(session.length, 1 + model.encode("the").length + model.encode("the", { within: true }).length)
  using ids = model.session()
  await ids.append(model.encode("the"))
  t.is(ids.length, model.encode("the").length)
})

test("bits per byte are those of the text's bytes in UTF-8, the first token charged where nobody predicts it", async (t) => {
  await using model = await open()
  const text = "the é the 🙂"
  const { ids, total, bitsPerByte } = await model.score(text)
  t.true(ids.length < Buffer.byteLength(text))
  const bits = Math.log2(272) - total / Math.LN2
  t.true(Math.abs(bitsPerByte! - bits / Buffer.byteLength(text)) < 1e-6)
  t.is(await model.bitsPerByte(text), bitsPerByte!)
  t.is(await model.bitsPerByte(new TextEncoder().encode(text)), bitsPerByte!)
  await t.throwsAsync(model.bitsPerByte(Uint8Array.of(0xff)), { code: "BAD_INPUT", message: /text in UTF-8/ })
  await t.throwsAsync(model.bitsPerByte([1, 2]), { code: "BAD_INPUT" })
  await using begun = await tinyTokenized({ codec: tokenizerCodec(tinyLlama()) }, 300)
  const score = await begun.score("the")
  t.is(score.logprobs[0], null)
  t.true(Math.abs(score.bitsPerByte! - -score.total / Math.LN2 / 3) < 1e-6)
})

const greedy = { temperature: 0, maxTokens: 12 }
const user = (content: string): ChatMessage => ({ role: "user", content })

test("a chat goes on from what its session holds, with the bits of a session that read all of it", async (t) => {
  await using model = await open()
  using chat = new Chat(model)
  const messages = [user("the"), { role: "system", content: "a" }]
  const reply = await all(chat.reply(messages, greedy))
  t.is(reply, await all(model.chat(messages, greedy)))
  const held = chat.length
  messages.push({ role: "assistant", content: reply }, user("and"))
  const next = await all(chat.reply(messages, greedy))
  const rest = model.renderChat(messages).slice((model.renderChat(messages.slice(0, 2)) + reply).length)
  t.true(chat.length >= held + model.encode(rest).length)
  using session = model.session()
  t.is(await all(session.generate(model.encode(model.renderChat(messages.slice(0, 2))), greedy)), reply)
  t.is(await all(session.generate(model.encode(rest), greedy)), next)
  t.is(chat.length, session.length)
})

test("a chat that goes on holds the ids that all of its text has", async (t) => {
  const codec = tokenizerCodec(tinyLlama())
  await using model = await tinyTokenized({ codec }, 300)
  for (const template of [
    "{{ messages | map(attribute='content') | join('') }}",
    "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}",
  ]) {
    using chat = new Chat(model)
    const messages = [user("th")]
    const options = { template, maxTokens: 0 }
    await all(chat.reply(messages, options))
    messages.push(user("en"))
    await all(chat.reply(messages, options))
    const apart = model.encode(model.renderChat([user("th")], { template })).length
    const rest = model.renderChat([user("en")], { template })
    t.is(chat.length, apart + model.encode(rest, { within: !template.includes("<s>") }).length)
    if (template.includes("<s>")) t.is(chat.length, model.encode(model.renderChat(messages, { template })).length)
  }
})

test("a chat whose messages changed begins again", async (t) => {
  await using model = await open()
  using chat = new Chat(model)
  await all(chat.reply([user("the")], greedy))
  const other = [user("another")]
  t.is(await all(chat.reply(other, greedy)), await all(model.chat(other, greedy)))
})

test("after a break or an abort a chat goes on from what was received", async (t) => {
  await using model = await open()
  using chat = new Chat(model)
  let received = ""
  for await (const piece of chat.reply([user("the")], { ...greedy, stopTokens: [] })) {
    received += piece
    if (received.length > 3) break
  }
  const held = chat.length
  const messages = [user("the"), { role: "assistant", content: received }, user("on")]
  await t.throwsAsync(all(chat.reply(messages, { ...greedy, signal: AbortSignal.abort() })), { code: "ABORTED" })
  t.is(chat.length, held)
  await all(chat.reply(messages, { ...greedy, maxTokens: 1 }))
  t.true(chat.length > held)
})

test("a chat replies once at a time, and needs a template", async (t) => {
  await using model = await open()
  using chat = new Chat(model)
  const first = chat.reply([user("the")], { ...greedy, stopTokens: [] })
  await first.next()
  await t.throwsAsync(all(chat.reply([user("the")], greedy)), { code: "SESSION_BUSY" })
  await first.return(undefined)
  t.is(typeof (await all(chat.reply([user("the")], greedy))), "string")
  await t.throwsAsync(all(chat.reply([user("x")], { maxtokens: 3 } as never)), { code: "BAD_OPTION" })
  await using bare = await open({ tokenizer: "bytes" })
  await t.throwsAsync(all(bare.chat([user("the")])), { code: "BAD_INPUT", message: /got one without; give a template/ })
  const template = "{{ messages[0].content }}"
  t.is(bare.renderChat([user("the")], { template }), "the")
  t.is(await all(bare.chat([user("the")], { ...greedy, template })), await all(bare.generate("the", greedy)))
})
