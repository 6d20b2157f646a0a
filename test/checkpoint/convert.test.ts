import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs"
import { basename, dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import test from "ava"
import { type ConvertForm, type ConvertOptions, convert } from "../../lib/checkpoint/convert.ts"
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from "../../lib/checkpoint/halves.ts"
import { openWeights } from "../../lib/checkpoint/shards.ts"
import { temporaryFolder } from "./helpers.ts"
import { mamba, parametersOf, writeModel } from "./model-folder.ts"

const folder = temporaryFolder()
const golden = fileURLToPath(new URL("../golden/data/models", import.meta.url))
const source = join(folder, "source")
test.before(async () => {
  await writeModel(source, mamba)
})

let places = 0
/** A place that does not exist, in a folder of its own. */
const newPlace = (name = "out") => join(folder, `place-${places++}`, name)
const everything = (path: string) => (readdirSync(path, { recursive: true }) as string[]).sort()

test("every model keeps its weights in every form that has words for it, and on the way back", async (t) => {
  const forms: Record<string, ConvertForm[]> = {
    "mamba-byte/f32": ["original", "transformers", "samba", "selscan"],
    "mamba-padded-hf": ["original", "transformers", "selscan"],
    "llama-gqa/f32": ["transformers", "samba", "selscan"],
    "mistral-sw8/f32": ["transformers", "selscan"],
    "samba/f32": ["samba", "selscan"],
    "megabyte/f32": ["original", "selscan"],
  }
  for (const [name, namings] of Object.entries(forms)) {
    const model = join(golden, name)
    const expected = await parametersOf(model)
    for (const to of namings) {
      const [there, back] = [newPlace(), newPlace()]
      t.like(await convert(model, there, { to }), { to, dtype: "f32" })
      t.deepEqual(await parametersOf(there), expected, `${name} as ${to}`)
      await convert(there, back)
      t.deepEqual(await parametersOf(back), expected, `${name} from ${to}`)
    }
  }
})

test("a form without words for the model is refused by name, before anything is written", async (t) => {
  const cases: [string, ConvertForm, RegExp][] = [
    [
      "samba/f32",
      "transformers",
      /naming transformers has words for \(Mamba, Falcon-Mamba, Llama, Mistral\), got the pattern/,
    ],
    ["samba/f32", "gguf", /gguf: expected Mamba blocks alone, got the pattern mamba, swiglu/],
    ["megabyte/f32", "gguf", /gguf: expected a Mamba, got a MegaByte/],
    ["llama-gqa/f32", "original", /naming original has words for/],
  ]
  for (const [name, to, message] of cases) {
    const out = newPlace()
    const error = await t.throwsAsync(convert(join(golden, name), out, { to }), { code: "BAD_CHECKPOINT" })
    t.regex(error.message, message)
    t.false(existsSync(dirname(out)))
  }
})

test("matrices are kept as the file has them, or rounded to the dtype asked for", async (t) => {
  const weights = await writeModel(join(folder, "halves"), mamba, { dtype: "F16" })
  const name = "backbone.layers.0.mixer.in_proj.weight"
  const halves = (dtype: "f16" | "bf16" | "f32", values: Float32Array) =>
    dtype === "f32" ? values : dtype === "f16" ? f16ToF32(f32ToF16(values)) : bf16ToF32(f32ToBf16(values))
  const stored = halves("f16", weights.get(name)!)
  for (const dtype of [undefined, "f32", "f16", "bf16"] as const) {
    const out = newPlace()
    t.is((await convert(join(folder, "halves"), out, { dtype })).dtype, dtype ?? "f16")
    const got = await parametersOf(out)
    t.deepEqual(got[name], Array.from(halves(dtype ?? "f16", stored)))
    t.deepEqual(got["backbone.layers.0.mixer.A_log"], Array.from(weights.get("backbone.layers.0.mixer.A_log")!))
    await using file = await openWeights(out)
    t.is(file.tensors.get("backbone.norm_f.weight")!.dtype, "F32")
  }
})

test("a weight that is no number, or none in the dtype asked for, is refused and nothing is left", async (t) => {
  const spoilt = async (name: string, parameter: string, value: number) => {
    await writeModel(join(folder, name), mamba, { change: (weights) => weights.get(parameter)!.fill(value, 5, 6) })
    return join(folder, name)
  }
  const head = "backbone.embedding.weight"
  const cases: [string, ConvertOptions, RegExp][] = [
    [await spoilt("nan", head, Number.NaN), {}, /backbone.embedding.weight: finite weights are expected, got NaN at/],
    [
      await spoilt("large", head, 70000),
      { dtype: "f16" },
      /in F16: finite weights are expected, got Infinity at index 5/,
    ],
    [await spoilt("larger", head, 3.4e38), { dtype: "bf16" }, /in BF16: .* got Infinity at index 5/],
    [await spoilt("a", "backbone.layers.1.mixer.A_log", 100), { to: "gguf" }, /blk.1.ssm_a in F32: .* -Infinity/],
  ]
  for (const [model, options, message] of cases) {
    const out = newPlace()
    t.regex((await t.throwsAsync(convert(model, out, options), { code: "NOT_FINITE" })).message, message)
    t.false(existsSync(dirname(out)))
  }
})

test("tokenizer files come along", async (t) => {
  const model = newPlace("with-tokenizer")
  await writeModel(model, mamba)
  for (const file of ["tokenizer.json", "generation_config.json", "README.md"]) writeFileSync(join(model, file), file)
  mkdirSync(join(model, "vocab.json")) // no file: it is left where it is
  const out = newPlace()
  await convert(model, out)
  t.deepEqual(everything(out), ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"])
})

test("a model that is there is replaced only by force, whole, and nothing else is", async (t) => {
  const out = newPlace()
  mkdirSync(out, { recursive: true })
  for (const file of ["lit_config.json", "tokenizer.json", "notes.txt"]) writeFileSync(join(out, file), "old")
  const refused = await t.throwsAsync(convert(source, out), { code: "BAD_OPTION" })
  t.regex(
    refused.message,
    /expected no model in .*out, got (lit_config|tokenizer).json; choose another folder, or force/,
  )
  t.deepEqual(everything(out), ["lit_config.json", "notes.txt", "tokenizer.json"])
  await convert(source, out, { force: true })
  t.deepEqual(everything(out), ["config.json", "model.safetensors", "notes.txt"])
  t.deepEqual(await parametersOf(out), await parametersOf(source))
  t.deepEqual(everything(dirname(out)).length, 4)

  const file = newPlace("a.gguf")
  await convert(source, file)
  const first = readFileSync(file)
  await t.throwsAsync(convert(source, file), { code: "BAD_OPTION", message: /expected no file at .*a.gguf, got one/ })
  await convert(source, file, { force: true, dtype: "f16" })
  t.true(readFileSync(file).length < first.length)
})

test("a place that is not for a model is refused", async (t) => {
  const inFile = join(source, "model.safetensors")
  const cases: [string, ConvertOptions, RegExp][] = [
    [source, { force: true }, /expected another folder than the model's own/],
    [inFile, { force: true }, /expected the path of a folder, got a file at/],
    [inFile, { force: true, to: "gguf" }, /expected a GGUF file at .*model.safetensors to replace, got another/],
    [source, { to: "gguf" }, /expected the path of a file, got .*source; name a file in it/],
    ["", {}, /out is a path/],
    [newPlace(), { to: "onnx" as "gguf" }, /to is one of original, transformers, samba, selscan, gguf, got onnx/],
    [newPlace(), { dtype: "f64" as "f32" }, /dtype is f32, bf16 or f16, got f64/],
    [newPlace(), { modelName: 7 as unknown as string }, /modelName is a text, got 7/],
    [newPlace(), { force: "no" as unknown as boolean }, /force is true or false, got string/],
    [newPlace(), { signal: {} as AbortSignal }, /signal is an AbortSignal, got object/],
    [newPlace(), { onProgress: null as unknown as () => void }, /onProgress is a function, got null/],
    [newPlace(), { naming: "original" } as ConvertOptions, /unknown option naming/],
  ]
  for (const [out, options, message] of cases) {
    t.regex((await t.throwsAsync(convert(source, out, options), { code: "BAD_OPTION" })).message, message)
  }
  await t.throwsAsync(convert(join(folder, "absent"), newPlace()), { code: "NOT_FOUND" })
  await t.throwsAsync(convert(source, join(inFile, "below")), { code: "DISK" })
  t.deepEqual(everything(source), ["config.json", "model.safetensors"])
})

test("progress ends at all bytes; aborted after any piece, nothing is left", async (t) => {
  const steps: [number, number][] = []
  const onProgress = (done: number, total: number) => void steps.push([done, total])
  const { bytes } = await convert(source, newPlace(), { onProgress })
  t.deepEqual(steps.at(-1), [bytes, bytes])
  t.true(steps.every(([done, total], i) => total === bytes && done > (steps[i - 1]?.[0] ?? 0)))
  for (let last = 1; last < steps.length; last++) {
    for (const name of ["out", "out.gguf"]) {
      const [out, controller] = [newPlace(name), new AbortController()]
      let pieces = 0
      const abort = () => ++pieces === last && controller.abort()
      const options = { onProgress: abort, signal: controller.signal }
      await t.throwsAsync(convert(source, out, options), {
        code: "ABORTED",
        message: /^convert: aborted at \d+ of \d+/,
      })
      t.false(existsSync(dirname(out)))
    }
  }
})

test("what a killed conversion left behind long ago is removed, what is recent or foreign is not", async (t) => {
  const out = newPlace()
  const names = [".out.1.tmp", ".out.2.tmp", ".other.3.tmp", ".out.note.tmp"]
  for (const name of names) mkdirSync(join(dirname(out), name, "in"), { recursive: true })
  const longAgo = new Date(Date.now() - 7_200_000)
  for (const name of names) if (!name.includes("2")) utimesSync(join(dirname(out), name), longAgo, longAgo)
  await convert(source, out)
  t.deepEqual(readdirSync(dirname(out)).sort(), ["out", ...names.slice(1)].sort())
})

test("two conversions to one place: one is there, whole", async (t) => {
  for (const name of ["out", "out.gguf"]) {
    const out = newPlace(name)
    const ends = await Promise.allSettled([convert(source, out), convert(source, out)])
    for (const end of ends) if (end.status === "rejected") t.is(end.reason.code, "DISK")
    t.true(ends.some(({ status }) => status === "fulfilled"))
    t.deepEqual(readdirSync(dirname(out)), [name])
  }
})

const onPosix = process.platform === "win32" ? test.skip : test

onPosix("a disk that refuses in the middle leaves what was there before, and nothing else", async (t) => {
  const large = join(folder, "beyond-the-disk")
  await writeModel(large, { ...mamba, vocab: 40_000 })
  const library = new URL("../../lib/checkpoint/convert.ts", import.meta.url)
  const run = (out: string, force: boolean) => {
    const script = `
      import { convert } from ${JSON.stringify(library.href)}
      const options = { force: ${force} }
      await convert(${JSON.stringify(large)}, ${JSON.stringify(out)}, options).catch((e) => console.log(e.code, e.details.reason))`
    // The shell's limit on file sizes, 1,000 blocks of 512 bytes or 1 KB by shell; the embedding alone has 2.5 MB.
    const limited = `ulimit -f 1000; exec "$0" --import=tsx --input-type=module -e "$1"`
    return execFileSync("sh", ["-c", limited, process.execPath, script], { encoding: "utf8" }).trim()
  }
  for (const name of ["out", "out.gguf"]) {
    const out = newPlace(name)
    t.is(run(out, false), "DISK EFBIG")
    t.false(existsSync(dirname(out)))
    await convert(source, out)
    const before = everything(dirname(out)).map((file) => basename(file))
    t.is(run(out, true), "DISK EFBIG")
    t.deepEqual(
      everything(dirname(out)).map((file) => basename(file)),
      before,
    )
  }
})
