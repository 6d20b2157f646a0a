import { join } from "node:path"
import test from "ava"
import type { MambaConfig } from "../../lib/checkpoint/config.ts"
import {
  checkCopies,
  checkNames,
  checkShapes,
  detectNaming,
  expectedTensors,
  fromOurs,
  type Naming,
  toOurs,
} from "../../lib/checkpoint/names.ts"
import { openSafetensors, writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import type { SelscanError } from "../../lib/errors.ts"
import { temporaryFolder } from "./helpers.ts"

const folder = temporaryFolder()
const config: MambaConfig = {
  dim: 32,
  layers: 3,
  vocab: 256,
  state: 16,
  conv: 4,
  expand: 2,
  inner: 64,
  rank: 2,
  convBias: true,
  projBias: false,
  normEps: 1e-5,
  tied: true,
  residualF32: true,
}
const namings: Naming[] = ["original", "transformers"]
const fileNames = (naming: Naming, of = config) =>
  expectedTensors(naming, of)
    .filter(({ copyOf }) => copyOf === undefined)
    .map(({ fileName }) => fileName)

/** Elements of all tensors that a tied model stores. */
function parameters(of: MambaConfig): number {
  const stored = expectedTensors("original", of).filter(({ copyOf }) => copyOf === undefined)
  return stored.reduce((sum, { shape }) => sum + shape.reduce((product, dim) => product * dim, 1), 0)
}

function published(dim: number, layers: number, vocab = 50280): MambaConfig {
  return { ...config, dim, layers, vocab, inner: 2 * dim, rank: Math.ceil(dim / 16) }
}

test("the table's shapes add up to the published parameter counts", (t) => {
  t.is(parameters(published(768, 24)), 129_135_360)
  t.is(parameters(published(1024, 48)), 371_516_416)
  t.is(parameters(published(1536, 48)), 793_204_224)
  t.is(parameters(published(2048, 48)), 1_372_178_432)
  t.is(parameters(published(2560, 64)), 2_768_345_600)
  t.is(parameters(published(1024, 53, 256)), 353_628_160)
  t.is(parameters(published(1792, 48, 256)), 973_387_520)
  t.is(parameters(published(2304, 48, 256)), 1_605_392_640)
})

test("the names of one layer are those of the public checkpoints", (t) => {
  t.deepEqual(fileNames("transformers", { ...config, layers: 1 }), [
    "backbone.embeddings.weight",
    "backbone.layers.0.norm.weight",
    "backbone.layers.0.mixer.in_proj.weight",
    "backbone.layers.0.mixer.conv1d.weight",
    "backbone.layers.0.mixer.conv1d.bias",
    "backbone.layers.0.mixer.x_proj.weight",
    "backbone.layers.0.mixer.dt_proj.weight",
    "backbone.layers.0.mixer.dt_proj.bias",
    "backbone.layers.0.mixer.A_log",
    "backbone.layers.0.mixer.D",
    "backbone.layers.0.mixer.out_proj.weight",
    "backbone.norm_f.weight",
  ])
  t.deepEqual(
    fileNames("original").map((name) => name.replace("embedding.", "embeddings.")),
    fileNames("transformers"),
  )
  t.true(fileNames("original").includes("backbone.layers.2.mixer.D"))
})

test("a model with biases, or without the convolution's, has the tensors it says", (t) => {
  const names = fileNames("original", { ...config, layers: 1, projBias: true, convBias: false })
  t.deepEqual(
    names.filter((name) => name.endsWith("bias")),
    [
      "backbone.layers.0.mixer.in_proj.bias",
      "backbone.layers.0.mixer.dt_proj.bias",
      "backbone.layers.0.mixer.out_proj.bias",
    ],
  )
})

for (const naming of namings) {
  test(`${naming} names map to ours and back`, (t) => {
    const names = fileNames(naming)
    t.is(detectNaming(names), naming)
    const ours = toOurs(names, naming, config)
    t.notThrows(() => checkNames(ours, "model"))
    t.is(ours.mapping.size, names.length)
    t.is(ours.mapping.get(names[0]!), "backbone.embedding.weight")
    const back = fromOurs(ours.mapping.values(), naming, config)
    t.deepEqual([...back.mapping.values()], names)
  })

  test(`the head of a tied model in ${naming} names may be there, that of an untied one must`, (t) => {
    const names = fileNames(naming)
    const withHead = toOurs([...names, "lm_head.weight"], naming, config)
    t.deepEqual(withHead.copies, [{ name: "lm_head.weight", of: names[0]! }])
    t.deepEqual([withHead.missing, withHead.unexpected, withHead.mapping.has("lm_head.weight")], [[], [], false])
    const untied = { ...config, tied: false }
    t.deepEqual(toOurs(names, naming, untied).missing, ["lm_head.weight"])
    t.is(toOurs([...names, "lm_head.weight"], naming, untied).mapping.get("lm_head.weight"), "lm_head.weight")
  })
}

test("names of neither naming, or of both, are refused", (t) => {
  t.throws(() => detectNaming([]), { code: "BAD_CHECKPOINT", message: /got none; / })
  t.throws(() => detectNaming(["transformer.wte.weight"], "a.bin"), {
    code: "BAD_CHECKPOINT",
    message: /^a.bin: .*wte/,
  })
  const both = [...fileNames("original"), ...fileNames("transformers")]
  t.throws(() => detectNaming(both), { code: "BAD_CHECKPOINT", message: /got both/ })
})

test("missing and unexpected tensors are told in one error, the first eight of each", (t) => {
  const names = fileNames("original").filter((name) => !name.includes("layers.1."))
  const extra = Array.from({ length: 9 }, (_, i) => `extra.${i}`)
  const report = toOurs([...names, ...extra], "original", config)
  t.is(report.missing.length, 10)
  const error = t.throws<SelscanError>(() => checkNames(report, "model"), { code: "BAD_CHECKPOINT" })
  t.regex(
    error.message,
    /^model: expected .*, got backbone\.layers\.1\.norm\.weight, .* and 2 more missing and extra\.0, .* and 1 more unexpected; /,
  )
  t.is(error.message.match(/backbone/g)?.length, 8)
  t.deepEqual(error.details.unexpected, extra)
})

test("a tensor of another shape is named with both shapes", (t) => {
  const tensors = new Map(expectedTensors("transformers", config).map((tensor) => [tensor.fileName, tensor]))
  t.notThrows(() => checkShapes(tensors, "transformers", config, "model"))
  const message =
    "model: expected backbone.layers.0.mixer.A_log to be [64,8], got [64,16]; pair it with its own config.json"
  const narrow = { ...config, state: 8, rank: 18 } // rank + 2·state stays the same
  const dtProj = { ...tensors.get("backbone.layers.0.mixer.dt_proj.weight")!, shape: [64, 18] }
  tensors.set(dtProj.fileName, dtProj)
  t.throws(() => checkShapes(tensors, "transformers", narrow, "model"), { code: "BAD_CHECKPOINT", message })
})

test("a tied head must hold the embedding's data", async (t) => {
  const tiny = { ...config, layers: 1, vocab: 3, dim: 2 }
  const data = Uint8Array.from({ length: 24 }, (_, i) => i)
  for (const [head, equal] of [
    [data, true],
    [data.with(23, 0), false],
    [data.subarray(0, 12), false],
  ] as const) {
    const path = join(folder, "head.safetensors")
    const entry = (name: string, bytes: Uint8Array) => ({
      name,
      dtype: "F32" as const,
      shape: [bytes.length / 4],
      data: bytes,
    })
    await writeSafetensors(path, [entry("backbone.embedding.weight", data), entry("lm_head.weight", head)])
    await using file = await openSafetensors(path)
    const check = checkCopies(file, toOurs(file.tensors.keys(), "original", tiny))
    if (equal) await t.notThrowsAsync(check)
    else
      await t.throwsAsync(check, {
        code: "BAD_CHECKPOINT",
        message: /lm_head.weight to equal backbone.embedding.weight/,
      })
  }
})
