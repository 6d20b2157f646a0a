import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import { load } from "../../lib/generate/load.ts"
import { Model } from "../../lib/generate/model.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { modelConfig } from "../../lib/models/config.ts"
import { initialWeights } from "../../lib/models/language-model.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { temporaryFolder } from "../checkpoint/helpers.ts"
import { tinyByteLevel } from "../text/tokenizers.ts"
import { each, selscan } from "./run.ts"

const folder = temporaryFolder()
const chatMl =
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

/** The same weights with a tokenizer and a chat template, and without. */
const [tokenized, bare] = [join(folder, "tokenized"), join(folder, "bare")]
const text = join(folder, "a text.txt")
const other = join(folder, "other.txt")

test.before("models and texts lie in folders", async () => {
  const network = new PatternModel(modelConfig({ dim: 16, state: 4, layers: 2, vocab: 272 }))
  await using model = new Model(network, "f32", { device: "cpu" })
  const weights = initialWeights(network, 5)
  for (const [name, { shape }] of allParameters(network)) {
    const spread = name === "backbone.embedding.weight" ? 10 : 1
    const values = weights.get(name)!.map((value) => value * spread)
    await model.store.upload("weight", { name, dtype: "f32", shape }, values)
  }
  for (const path of [tokenized, bare]) await model.save(path)
  writeFileSync(join(tokenized, "tokenizer.json"), JSON.stringify(tinyByteLevel()))
  writeFileSync(
    join(tokenized, "tokenizer_config.json"),
    JSON.stringify({ eos_token: "<|im_end|>", chat_template: chatMl }),
  )
  mkdirSync(join(folder, "nothing"))
  writeFileSync(text, "the theory of the thing")
  writeFileSync(other, "café")
})

const json = async (args: readonly string[], input?: string) => {
  const { code, out, err } = await selscan([...args, "--json", "--device", "cpu"], input === undefined ? {} : { input })
  return code === 0 && err === "" ? JSON.parse(out) : { code, err }
}

test("score says what model.score() says, token by token, of a text, standard input and every file", async (t) => {
  await using model = await load(tokenized, { device: "cpu" })
  const expected = await model.score("the theory of the thing")
  const scored = { count: expected.ids.length, total: expected.total, bitsPerByte: expected.bitsPerByte }
  const tokens = expected.ids.map((id, i) => {
    return { id, logprob: expected.logprobs[i], text: model.decode([id], { special: true, within: true }) }
  })
  t.deepEqual(await json(["score", "the theory of the thing", "--tokens", "--model", tokenized]), {
    model: tokenized,
    texts: [{ name: "text", ...scored, tokens }],
  })
  t.deepEqual(await json(["score", "--stdin", "--model", tokenized], "the theory of the thing"), {
    model: tokenized,
    texts: [{ name: "stdin", ...scored }],
  })
  const { texts } = await json(["score", "--file", text, "--file", other, "--model", tokenized])
  t.deepEqual(texts[0], { name: text, ...scored })
  t.like(texts[1], { name: other, total: (await model.score("café")).total })
})

test("score of a text after another is session.score(), and every token counts", async (t) => {
  await using model = await load("demo", { device: "cpu" })
  using session = model.session()
  await session.append("The capital of France is")
  const { total, bitsPerByte } = await session.score(" Paris")
  t.deepEqual(await json(["score", " Paris", "--given", "The capital of France is"]), {
    model: "demo",
    given: "The capital of France is",
    texts: [{ name: "text", count: 6, total, bitsPerByte }],
  })
})

test("score prints a line for every token, and one for the text", async (t) => {
  const { code, out } = await selscan(["score", "the", "the", "--model", "demo"])
  t.is(code, 2)
  t.is(out, "")
  const printed = await selscan(["score", "é\n", "--tokens", "--device", "cpu"])
  t.regex(
    printed.out,
    /^ {3}195 {9}– {2}"\ufffd"\n {3}169 +-[\d.]+ {2}"\ufffd"\n {4}10 +-[\d.]+ {2}"\\n"\ntext: -[\d.]+ nats over 3 tokens, [\d.]+ bits per byte\n$/,
  )
})

test("score with a context empties the state, as model.score() does", async (t) => {
  await using model = await load(tokenized, { device: "cpu" })
  const { total } = await model.score("the theory of the thing", { context: 3 })
  const { texts } = await json(["score", "--file", text, "--context", "3", "--model", tokenized])
  t.is(texts[0].total, total)
})

test("generate and score take ids for models without a tokenizer, which answer with ids", async (t) => {
  const generate = ["generate", "--ids", "1, 2 3", "--max-tokens", "5", "--temperature", "0"]
  const [ids, words] = await Promise.all([
    json([...generate, "--model", bare]),
    selscan([...generate, "--model", bare, "--device", "cpu"]),
  ])
  t.is(ids.ids.length, 5)
  t.is(ids.tokens, 5)
  t.deepEqual(ids.prompt, [1, 2, 3])
  t.is(words.out, `${ids.ids.join(" ")}\n`)
  t.true((await json(["score", "--ids", "1 2 3", "--model", bare])).texts[0].total < 0)
  const text = await json([...generate, "--model", tokenized])
  await using model = await load(tokenized, { device: "cpu" })
  t.is(text.text, model.decode(ids.ids))
})

test("bytes of standard input and files that are no text are taken as they are, where tokens are bytes", async (t) => {
  const bytes = Uint8Array.of(0x61, 0xff, 0x62)
  writeFileSync(join(folder, "bytes.bin"), bytes)
  await using model = await load("demo", { device: "cpu" })
  const { total } = await model.score(bytes)
  const [score, file, generated, refused] = await Promise.all([
    selscan(["score", "--stdin", "--json", "--device", "cpu"], { input: bytes }),
    json(["score", "--file", join(folder, "bytes.bin")]),
    selscan(["generate", "--stdin", "--max-tokens", "1", "--json", "--device", "cpu"], { input: bytes }),
    selscan(["score", "--stdin", "--model", tokenized], { input: bytes }),
  ])
  t.is(JSON.parse(score.out).texts[0].total, total, score.err)
  t.is(file.texts[0].total, total)
  t.like(JSON.parse(generated.out), { prompt: "a\ufffdb", tokens: 1 }, generated.err)
  t.is(refused.code, 1)
  t.regex(refused.err, /bytes are expected to be text in UTF-8/)
})

test("generate counts tokens, tells their log-probabilities, and ends a text where its tokenizer does", async (t) => {
  const args = ["generate", "the ", "--model", tokenized, "--max-tokens", "40", "--temperature", "2", "--seed"]
  await each([1, 2, 3], async (seed) => {
    const [plain, told] = await Promise.all([
      json([...args, String(seed)]),
      json([...args, String(seed), "--logprobs"]),
    ])
    const end = told.ids.indexOf(265) // <|im_end|>
    t.is(plain.text, told.text)
    t.is(plain.tokens, end < 0 ? 40 : end)
    t.is(end, end < 0 ? -1 : told.ids.length - 1)
    t.is(told.logprobs.length, told.ids.length)
    t.true(told.logprobs.every((logprob: number) => logprob <= 0))
  })
})

test("generate --chat writes the message as the template has it, and prints the reply alone", async (t) => {
  await using model = await load(tokenized, { device: "cpu" })
  const messages = [
    { role: "system", content: "Be brief." },
    { role: "user", content: "the?" },
  ]
  let reply = ""
  for await (const piece of model.chat(messages, { maxTokens: 12, temperature: 0.8, seed: 4 })) reply += piece
  const args = ["generate", "the?", "--chat", "--system", "Be brief.", "--model", tokenized]
  const rest = ["--max-tokens", "12", "--seed", "4"]
  const [object, plain] = await Promise.all([json([...args, ...rest]), selscan([...args, ...rest, "--device", "cpu"])])
  t.is(object.text, reply)
  t.is(object.prompt, "the?")
  t.is(plain.out, reply === "" ? "" : `${reply}\n`)
})

test("what cannot be generated or scored is refused in one line", async (t) => {
  const cases: [string[], number, RegExp][] = [
    [["generate", "x", "--model", bare], 1, /ids are expected for a model without a tokenizer, got text; give --ids/],
    [["generate", "--ids", "1 b", "--model", bare], 2, /--ids are whole numbers between spaces, got b/],
    [["generate", "--ids", "272", "--model", bare], 1, /ids are whole numbers from 0 to 271, got 272/],
    [["generate", "--ids", "1", "x"], 2, /one prompt is expected, got 2/],
    [["generate", "--ids", "1", "--stop", "x", "--model", bare], 2, /--stop is for text, got it for a model without/],
    [["generate", "x", "--stop", "y", "--logprobs"], 2, /--stop is for text, got it with --logprobs/],
    [["generate", "x", "--chat"], 1, /a model with a chat template is expected, got one without/],
    [["generate", "x", "--system", "y"], 2, /--system is for --chat/],
    [["score"], 2, /one text is expected, got 0; write it after the command/],
    [["score", "x", "--file", text], 2, /one text is expected, got 2/],
    [["score", ""], 1, /text of at least one byte is needed/],
    [["score", "--file", join(folder, "absent")], 1, /there is no such file/],
    [["score", "--file", join(folder, "nothing")], 1, /it is a folder/],
    [["score", "x", "--given", "y", "--context", "2"], 2, /--context is for texts that nothing comes before/],
    [["score", "x", "--context", "0"], 2, /context is a whole number of at least 1, got 0/],
    [["eval", "bpb", "--file", text, "--model", "demo", "--model", "demo"], 2, /bpb judges one model, got 2/],
  ]
  await each(cases, async ([args, code, message]) => {
    const outcome = await selscan(args)
    t.is(outcome.code, code, args.join(" "))
    t.regex(outcome.err, message)
    t.is(outcome.err.trim().split("\n").length, 1, outcome.err)
    t.is(outcome.out, "", args.join(" "))
  })
})

test("eval judges models with a tokenizer by the bytes of the text", async (t) => {
  await using model = await load(tokenized, { device: "cpu" })
  const { bitsPerByte, bytes } = await json(["eval", "bpb", "--file", text, "--model", tokenized])
  t.is(bytes, 23)
  t.is(bitsPerByte, (await model.score("the theory of the thing")).bitsPerByte)
})
