import { cpSync, mkdtempSync, writeFileSync } from "node:fs"
import { readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import test from "ava"
import { openSafetensors, writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { load } from "../../lib/generate/load.ts"
import { Model } from "../../lib/generate/model.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { modelConfig } from "../../lib/models/config.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { devices } from "../../lib/native.ts"
import { device } from "../device.ts"
import { tinyModel } from "./tiny.ts"

const folder = mkdtempSync(join(tmpdir(), "selscan-load-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))

const saved = join(folder, "saved")
test.before("a tiny model is saved", async () => {
  await using model = await tinyModel()
  await model.save(saved)
})

async function tokens(path: string, options = {}): Promise<readonly { id: number; logprob: number }[]> {
  await using model = await load(path, { device, ...options })
  using session = model.session()
  const list = []
  for await (const token of session.tokens([72, 105], { temperature: 0, maxTokens: 8 })) list.push(token)
  return list
}

test("a saved model loads with the same bits, in either naming", async (t) => {
  await using model = await load(saved, { device })
  await model.save(join(folder, "transformers"), { naming: "transformers" })
  const config = JSON.parse(await readFile(join(folder, "transformers", "config.json"), "utf8"))
  t.is(config.model_type, "mamba")
  await using file = await openSafetensors(join(folder, "transformers", "model.safetensors"))
  t.true(file.tensors.has("backbone.embeddings.weight"))
  t.deepEqual(await tokens(join(folder, "transformers")), await tokens(saved))
})

test("halves are read: bf16 stays bf16 in matrices alone, f16 is widened", async (t) => {
  await using model = await load(saved, { device })
  for (const dtype of ["bf16", "f16"] as const) {
    const path = join(folder, dtype)
    await model.save(path, { dtype })
    await using file = await openSafetensors(join(path, "model.safetensors"))
    t.is(file.tensors.get("backbone.layers.0.mixer.in_proj.weight")?.dtype, dtype === "bf16" ? "BF16" : "F16")
    t.is(file.tensors.get("backbone.layers.0.mixer.A_log")?.dtype, "F32")
    await using half = await load(path, { device })
    t.is(half.precision, dtype === "bf16" ? "bf16" : "f32")
    const close = (await tokens(path, { precision: "f32" }))[0]!
    t.true(Math.abs(close.logprob - (await tokens(saved))[0]!.logprob) < 0.05)
  }
})

test("a model with another vocabulary takes ids and refuses text", async (t) => {
  await using model = new Model(new PatternModel(modelConfig({ dim: 16, layers: 1, vocab: 64 })), "f32", { device })
  using session = model.session()
  t.like(await t.throwsAsync(() => session.append("text"), { message: /vocabulary of 64/ }), { code: "BAD_INPUT" })
  t.like(await t.throwsAsync(() => session.append([64])), { code: "BAD_INPUT" })
  await session.append([1, 2, 3])
  t.is(session.length, 3)
})

test("positions that were learned are as many as they are", async (t) => {
  const megabyte = fileURLToPath(new URL("../golden/data/models/megabyte/f32", import.meta.url))
  const message = /contextMax is the 32 positions that this model has learned, got 64; leave it out/
  t.like(await t.throwsAsync(load(megabyte, { device, contextMax: 64 }), { message }), { code: "BAD_OPTION" })
  await using model = await load(megabyte, { device, contextMax: 32 })
  t.is(model.network.contextMax, 32)
})

/** A copy of the saved model whose weights file was rewritten by `change`. */
async function changed(
  name: string,
  change: (entries: Map<string, { dtype: "F32"; shape: number[]; data: Float32Array }>) => void,
): Promise<string> {
  const path = join(folder, name)
  cpSync(saved, path, { recursive: true })
  await using file = await openSafetensors(join(saved, "model.safetensors"))
  const entries = new Map()
  for (const [tensor, { shape }] of file.tensors)
    entries.set(tensor, { dtype: "F32", shape, data: await file.readF32(tensor) })
  change(entries)
  await writeSafetensors(
    join(path, "model.safetensors"),
    [...entries].map(([tensor, entry]) => ({
      name: tensor,
      ...entry,
      data: new Uint8Array(entry.data.buffer),
    })),
  )
  return path
}

test("weights that do not fit are refused in one sentence", async (t) => {
  const first = "backbone.layers.0.mixer.D"
  const cases: [string, string, RegExp][] = [
    [await changed("missing", (all) => all.delete(first)), "BAD_CHECKPOINT", /missing.*mixer\.D/],
    [
      await changed("extra", (all) => all.set("surprise", { dtype: "F32", shape: [1], data: new Float32Array(1) })),
      "BAD_CHECKPOINT",
      /surprise/,
    ],
    [
      await changed("shape", (all) => all.set(first, { dtype: "F32", shape: [4], data: new Float32Array(4) })),
      "BAD_CHECKPOINT",
      /mixer\.D/,
    ],
    [await changed("nan", (all) => all.get(first)!.data.fill(Number.NaN)), "NOT_FINITE", /mixer\.D.*NaN at index 0/],
    [
      join(folder, "absent"),
      "NOT_FOUND",
      /^load: expected .* folder with config\.json or lit_config\.json .*, got none/,
    ],
    [folder, "NOT_FOUND", /config\.json/],
  ]
  for (const [path, code, message] of cases) t.like(await t.throwsAsync(() => load(path), { message }), { code })
})

test("a damaged file and a foreign config are refused", async (t) => {
  const damaged = join(folder, "damaged")
  cpSync(saved, damaged, { recursive: true })
  const bytes = await readFile(join(saved, "model.safetensors"))
  await writeFile(join(damaged, "model.safetensors"), bytes.subarray(0, bytes.length - 5))
  t.like(await t.throwsAsync(() => load(damaged)), { code: "BAD_FILE" })
  writeFileSync(join(damaged, "config.json"), '{"model_type": "llama", "hidden_size": 8}')
  t.like(await t.throwsAsync(() => load(damaged)), { code: "BAD_CHECKPOINT" })
  writeFileSync(join(damaged, "config.json"), "{")
  t.like(await t.throwsAsync(() => load(damaged)), { code: "BAD_CHECKPOINT" })
})

test("options are checked by name and value", async (t) => {
  t.like(
    await t.throwsAsync(() => load(saved, { presicion: "f32" } as object), { message: /did you mean precision\?/ }),
    { code: "BAD_OPTION" },
  )
  t.like(await t.throwsAsync(() => load(saved, { precision: "f64" as "f32" })), { code: "BAD_OPTION" })
  t.like(await t.throwsAsync(() => load(saved, { sessions: 0 })), { code: "BAD_OPTION" })
  const { missing } = devices().find(({ name }) => name === "cuda")!
  if (missing !== undefined) {
    const message = `device cuda: ${missing}`
    t.like(await t.throwsAsync(() => load(saved, { device: "cuda" }), { message }), { code: "NO_DEVICE" })
  }
  t.like(await t.throwsAsync(() => load(saved, { device: "gpu" as "cuda" })), { code: "BAD_OPTION" })
  t.like(await t.throwsAsync(() => load(saved, { contextMax: 0 })), { code: "BAD_OPTION" })
  t.like(await t.throwsAsync(() => load(saved, { contextMax: 2 ** 25 })), { code: "BAD_OPTION" })
  t.like(await t.throwsAsync(() => load("")), { code: "BAD_INPUT" })
})

test("saving where nothing can be written says so", async (t) => {
  await using model = await load(saved, { device })
  const blocked = join(saved, "config.json", "inside-a-file")
  t.like(await t.throwsAsync(() => model.save(blocked)), { code: "DISK" })
  t.like(await t.throwsAsync(() => model.save(join(folder, "x"), { dtype: "int8" as "f32" })), { code: "BAD_OPTION" })
  const naming = "mistral" as "selscan"
  t.like(await t.throwsAsync(() => model.save(join(folder, "x"), { naming }), { message: /original, transformers/ }), {
    code: "BAD_OPTION",
  })
})

test("a folder holds a model in one form", async (t) => {
  await using model = new Model(new PatternModel(modelConfig({ dim: 16, layers: 1, vocab: 256 })), "f32", { device })
  for (const [name, { shape }] of allParameters(model.network)) {
    const zeros = new Float32Array(shape.reduce((product, size) => product * size, 1))
    await model.store.upload("weight", { name, dtype: "f32", shape }, zeros)
  }
  const path = join(folder, "one-form")
  await model.save(path)
  const message = /no config file but lit_config\.json, got config\.json/
  t.like(await t.throwsAsync(() => model.save(path, { naming: "samba" }), { message }), { code: "BAD_OPTION" })
  await model.save(path, { naming: "transformers" })
  await using again = await load(path, { device })
  t.is(again.network.vocab, 256)
})

test("a signal that has fired loads nothing, and a name is a text", async (t) => {
  await t.throwsAsync(load(saved, { device, signal: AbortSignal.abort() }), { code: "ABORTED" })
  const url = new URL("file:///model") as unknown as string
  await t.throwsAsync(load(url), { code: "BAD_INPUT", message: /got object$/ })
  await t.throwsAsync(load(""), { code: "BAD_INPUT", message: /got an empty text$/ })
})
