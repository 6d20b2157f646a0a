import { createHash } from "node:crypto"
import { mkdtempSync, writeFileSync } from "node:fs"
import { readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "ava"
import type { Naming } from "../../lib/checkpoint/family.ts"
import { openSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { load } from "../../lib/generate/load.ts"
import { Model } from "../../lib/generate/model.ts"
import { stepProgram } from "../../lib/generate/programs.ts"
import type { Program } from "../../lib/graph/program.ts"
import { allParameters, parameterCount } from "../../lib/layers/layer.ts"
import { initialWeights } from "../../lib/models/language-model.ts"
import { MegaByte, type MegaByteSize } from "../../lib/models/megabyte.ts"
import { Store } from "../../lib/native.ts"
import { readTexts, Streams, splitValidation } from "../../lib/train/data.ts"
import type { TrainOptions } from "../../lib/train/options.ts"
import { train } from "../../lib/train/train.ts"
import { device } from "../device.ts"
import { tinyModel } from "../generate/tiny.ts"
import { logitsAtOnce, logitsByRow, shapeOf } from "./megabyte-runs.ts"

const folder = mkdtempSync(join(tmpdir(), "selscan-megabyte-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))
let made = 0
const fresh = () => join(folder, String(made++))

const small = { vocab: 40, dims: [20, 12], depths: [2, 2], patches: 9, patch: 4, headDim: 4, heads: 3 } as const
const sizes: Readonly<Record<string, MegaByteSize>> = {
  "learned and rotary positions": { ...small, relPos: true, posEmb: true },
  "no positions": { ...small, ffMult: 2 },
  "rotary positions, an odd width, patches of 1": { ...small, dims: [16, 13], patch: 1, patches: 30, relPos: true },
  "learned positions, one layer, patches of 7": { ...small, depths: [1, 1], patch: 7, posEmb: true },
}

/** Weights wide enough that every part of the model tells in every logit. */
function storeOf(model: MegaByte): (program: Program) => Promise<Store> {
  const weights = initialWeights(model, 3)
  return async (program) => {
    const store = new Store(device)
    for (const slot of program.stored("weight")) {
      const wide = slot.name.includes("embs.") || slot.name.startsWith("start")
      await store.upload(
        "weight",
        slot,
        weights.get(slot.name)!.map((value) => (wide ? 10 * value : value)),
      )
    }
    return store
  }
}

const sequences = [0, 1].map((b) => Array.from({ length: 29 }, (_, i) => (7 * i * i + 3 * i + 11 * b) % 40))

for (const [title, size] of Object.entries(sizes)) {
  test(`one row at a time gives the logits of one run bit for bit: ${title}`, async (t) => {
    const model = new MegaByte(size)
    const makeStore = storeOf(model)
    const [whole, stepped] = [
      await logitsAtOnce(model, makeStore, sequences),
      await logitsByRow(model, makeStore, sequences),
    ]
    t.deepEqual(stepped, whole)
  })

  test(`what a row says depends on all rows before it, and on none after: ${title}`, async (t) => {
    const model = new MegaByte(size)
    const makeStore = storeOf(model)
    const [ids = []] = sequences
    const before = await logitsAtOnce(model, makeStore, [ids])
    const row = (logits: Float32Array, q: number) => logits.subarray(q * model.vocab, (q + 1) * model.vocab)
    for (const changed of [0, 6, 20]) {
      const other = ids.map((id, i) => (i === changed ? (id + 1) % 40 : id))
      const after = await logitsAtOnce(model, makeStore, [other])
      // Byte t is carried by row t + 1.
      for (let q = 0; q <= ids.length; q++) {
        const same =
          Buffer.compare(Buffer.from(row(before, q).slice().buffer), Buffer.from(row(after, q).slice().buffer)) === 0
        t.is(same, q <= changed, `row ${q} after a change of byte ${changed}`)
      }
    }
  })
}

test("a run inside a patch leaves the global stage out, and one that begins a patch has both", (t) => {
  const model = new MegaByte(sizes["learned and rotary positions"]!)
  const program = (patches: number) => stepProgram(model, "next", { ...shapeOf(1), rows: 1, patches })
  const paths = (patches: number) =>
    new Set(program(patches).nodes.map(({ path }) => path.split(".").slice(0, 2).join(".")))
  t.false(paths(0).has("transformers.0"))
  t.false(paths(0).has("token_embs.1"))
  t.true(paths(0).has("transformers.1"))
  for (const path of ["transformers.0", "transformers.1", "token_embs.1"]) t.true(paths(1).has(path), path)
  t.deepEqual(
    program(0)
      .stored("ring")
      .map(({ name }) => name),
    ["0", "1"].flatMap((layer) => [
      `transformers.1.layers.${layer}.0.mixer.keys`,
      `transformers.1.layers.${layer}.0.mixer.values`,
    ]),
  )
})

test("the parameters are those of the reference, by number and shape", (t) => {
  // The constructor's arguments and the count of the golden case.
  const sizes = { vocab: 64, dims: [32, 16], depths: [2, 1], patches: 8, patch: 4, headDim: 8, heads: 2 } as const
  const model = new MegaByte({ ...sizes, relPos: true, posEmb: true })
  t.is(parameterCount(model), 32048)
  t.is(model.contextMax, 32)
  t.deepEqual(allParameters(model).get("token_embs.1.3.weight")!.shape, [32, 64])
  t.deepEqual(allParameters(model).get("to_next_transformer_projections.0.1.weight")!.shape, [64, 32])
})

test("sizes that are none are refused in one sentence", (t) => {
  const cases: [object, RegExp][] = [
    [{ dims: [16] }, /MegaByte: dims are two, of the global and the local stage, got \[16\]/],
    [{ dims: [16, 0] }, /dims\[1\] is a whole number of at least 1, got 0/],
    [{ dims: [16, 1] }, /dims\[1\] is a whole number from 2 to/],
    [{ depths: [1, 2, 3] }, /depths are two/],
    [{ patch: 0 }, /patch is a whole number/],
    [{ patch: 2.5 }, /patch is a whole number/],
    [{ patches: -1 }, /patches is a whole number/],
    [{ headDim: 300 }, /headDim is a whole number from 1 to 256, got 300/],
    [{ headDim: 5, relPos: true }, /headDim is even where relPos turns its halves, got 5/],
    [{ pach: 8 }, /unknown option pach, did you mean patch\?/],
  ]
  for (const [wrong, message] of cases) {
    t.throws(() => new MegaByte({ ...small, ...wrong } as MegaByteSize), { code: "BAD_OPTION", message })
  }
})

test("a session begins a text by itself, and the first byte has the probability that scoring gives it", async (t) => {
  await using model = await tinyModel({ kind: "megabyte" })
  using session = model.session()
  t.is(session.length, 0)
  const tokens: { id: number; logprob: number }[] = []
  for await (const token of session.tokens(undefined, { maxTokens: 10, seed: 2 })) tokens.push(token)
  t.is(session.length, 10)
  const ids = tokens.map(({ id }) => id)
  const bits = tokens.map(({ logprob }) => -logprob / Math.LN2)
  for (const count of [1, 4, 10]) {
    const mean = bits.slice(0, count).reduce((a, b) => a + b) / count
    const scored = await model.bitsPerByte(ids.slice(0, count))
    t.true(Math.abs(scored - mean) < 1e-5, `${count} bytes: ${scored} bits each, sampled with ${mean}`)
  }
  using other = model.session()
  await other.append(ids.slice(0, 1))
  t.is(other.length, 1)
})

test("the penalty history of a text that the model began holds that text alone", async (t) => {
  await using model = await tinyModel({ kind: "megabyte", sessions: 1 })
  const penalised = { temperature: 0, frequencyPenalty: 100, maxTokens: 100 }
  const ids = async () => {
    const seen: number[] = []
    for await (const id of model.generateBytes([], penalised)) seen.push(id)
    return seen
  }
  // The second session takes over the slots of the first: what that one left there must not count.
  const [first, second] = [await ids(), await ids()]
  t.is(new Set(first).size, 100)
  t.deepEqual(second, first)
})

test("with a context, bits per byte are those of the pieces by themselves", async (t) => {
  await using model = await tinyModel({ kind: "megabyte" })
  const text = Uint8Array.from({ length: 1500 }, (_, i) => (i * i * 31 + i) % 256)
  const whole = await model.bitsPerByte(text)
  const parts: number[] = []
  for (const [begin, end] of [
    [0, 700],
    [700, 1400],
    [1400, 1500],
  ] as const) {
    parts.push((await model.bitsPerByte(text.subarray(begin, end))) * (end - begin))
  }
  const apart = parts.reduce((a, b) => a + b) / 1500
  t.true(Math.abs((await model.bitsPerByte(text, { context: 700 })) - apart) < 1e-6)
  t.true(Math.abs(whole - apart) > 1e-6)
  await t.throwsAsync(model.bitsPerByte(text, { context: 5000 }), { code: "BAD_OPTION" })
})

/** The hash of each weight's bits. */
async function weightsOf(model: Model): Promise<Map<string, string>> {
  const weights = new Map<string, string>()
  for (const name of allParameters(model.network).keys()) {
    const bytes = await model.store.download("weight", name)
    weights.set(name, createHash("sha256").update(bytes).digest("hex"))
  }
  return weights
}

for (const [title, size] of Object.entries(sizes)) {
  test(`saved and loaded again it is the same model, in both namings: ${title}`, async (t) => {
    const network = new MegaByte({ ...size, extra: { note: "kept" } })
    await using model = new Model(network, "f32", { device })
    for (const [name, data] of initialWeights(network, 8)) {
      await model.store.upload("weight", { name, dtype: "f32", shape: allParameters(network).get(name)!.shape }, data)
    }
    for (const naming of [undefined, "original", "selscan"] as (Naming | undefined)[]) {
      const path = fresh()
      await model.save(path, naming ? { naming } : {})
      await using again = await load(path, { device })
      t.deepEqual(again.network.config, network.config, naming)
      t.deepEqual(await weightsOf(again), await weightsOf(model), naming)
      const file = await openSafetensors(join(path, "model.safetensors"))
      t.is(file.tensors.has("transformers.0.layers.0.0.to_kv.weight"), naming !== "selscan")
      await file[Symbol.asyncDispose]()
    }
    await t.throwsAsync(model.save(fresh(), { naming: "transformers" }), {
      code: "BAD_CHECKPOINT",
      message: /got a MegaByte/,
    })
  })
}

test("configs of models that we do not compute are refused with the field that says so", async (t) => {
  await using model = await tinyModel({ kind: "megabyte", contextMax: 30 })
  const path = fresh()
  await model.save(path)
  const config = join(path, "megabyte.json")
  const good = JSON.parse(await readFile(config, "utf8")) as Record<string, unknown>
  const cases: [object, RegExp][] = [
    [{ max_seq_len: [8, 4, 2] }, /max_seq_len to be two whole numbers .* got \[8,4,2\]/],
    [{ dim: [16, 8, 4] }, /dim to be two whole numbers/],
    [{ depth: 2 }, /depth to be two whole numbers/],
    [{ dim_head: 5 }, /heads of an even size/],
    [{ dim_head: 1000 }, /dim_head to be a whole number from 1 to 256, got 1000/],
    [{ heads: -1 }, /heads to be a whole number/],
    [{ rel_pos: "yes" }, /rel_pos to be true or false/],
    [{ num_tokens: 257 }, /expected token_embs\.0\.weight to be \[257,16\], got \[256,16\]/],
    [{ max_seq_len: [8, 100000] }, /patch of at most 4096 bytes/],
  ]
  for (const [wrong, message] of cases) {
    await writeFile(config, JSON.stringify({ ...good, ...wrong }))
    await t.throwsAsync(load(path, { device }), { code: "BAD_CHECKPOINT", message })
  }
  await writeFile(config, JSON.stringify({ ...good, dim: 16, pad_id: 0, flash_attn: false }))
  await t.throwsAsync(load(path, { device }), { code: "BAD_CHECKPOINT", message: /to be \[.*16\], got/ })
})

const text = join(folder, "text.txt")
writeFileSync(text, "the quick brown fox jumps over the lazy dog. ".repeat(200))
const recipe = (extra: Partial<TrainOptions> = {}): TrainOptions => ({
  files: [text],
  out: fresh(),
  model: { dims: [24, 16], depths: [1, 1], patch: 4, patches: 32, headDim: 8, heads: 2, posEmb: true },
  batch: 3,
  length: 32,
  steps: 12,
  rate: 0.01,
  validation: 0.02,
  device,
  ...extra,
})

async function lossesOf(options: TrainOptions, resume = false): Promise<number[]> {
  const losses: number[] = []
  for await (const event of train(options, { resume })) if (event.type === "step") losses.push(event.bitsPerByte)
  return losses
}

test("training lowers the loss, over sequences that go on, and leaves a model that loads", async (t) => {
  const options = recipe({ steps: 80, recompute: true })
  const losses = await lossesOf(options)
  t.true(losses[0]! > 6 && losses.at(-1)! < losses[0]! - 2, `${losses[0]} → ${losses.at(-1)} bits per byte`)
  await using model = await load(options.out, { device })
  t.true((await model.bitsPerByte((await readFile(text)).subarray(0, 120))) < 6)
  const begun: number[] = []
  for await (const id of model.generateBytes([], { maxTokens: 20, seed: 1 })) begun.push(id)
  t.is(begun.length, 20)
})

test("a sequence that goes on has the losses of the text that it goes on with", async (t) => {
  const options = recipe({ batch: 1, length: 16, steps: 3, reset: 0, rate: Number.MIN_VALUE, minRate: 0, decay: 0 })
  const losses = await lossesOf(options)
  // The rate leaves the weights as they were. The first sequence begins with the start's row: it has one target more.
  const nats = losses.reduce((total, loss, i) => total + loss * (i === 0 ? 17 : 16), 0)
  const { train: bytes } = splitValidation(await readTexts([text]), 0.02)
  const stream = new Streams(bytes, { streams: 1, length: 16, seed: 0, reset: 0, contextMax: 128 })
  const read = [0, 1, 2].flatMap((step) => [...stream.sequence(0, step).ids])
  await using model = await load(options.out, { device })
  const scored = await model.bitsPerByte([...read, stream.sequence(0, 2).targets.at(-1)!])
  t.true(Math.abs(scored - nats / 49) < 1e-5, `${scored} and ${nats / 49} bits per byte`)
})

test("recomputing blocks, and batches in parts, change no bit of the first loss", async (t) => {
  const plain = await lossesOf(recipe({ steps: 3 }))
  t.deepEqual(await lossesOf(recipe({ steps: 3, recompute: true })), plain)
  const parts = await lossesOf(recipe({ steps: 3, batch: 1, accumulation: 3 }))
  for (const [i, loss] of parts.entries())
    t.true(Math.abs(loss - plain[i]!) < 1e-4, `step ${i}: ${loss} and ${plain[i]}`)
})

test("sequences that are no whole patches, and texts that are longer than the model, are refused", async (t) => {
  await t.throwsAsync(lossesOf(recipe({ length: 30 })), {
    code: "BAD_OPTION",
    message: "train: length is a multiple of the model's patch of 4 bytes, got 30",
  })
  await t.throwsAsync(lossesOf(recipe({ length: 256 })), { code: "BAD_OPTION", message: /contextMax, 128, got 256/ })
})
