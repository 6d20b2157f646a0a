import test from "ava"
import { patternNames } from "../../lib/checkpoint/patterns.ts"
import { parameterCount } from "../../lib/layers/layer.ts"
import { modelConfig } from "../../lib/models/config.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { modelPreset, type Preset, presets } from "../../lib/models/presets.ts"

const countOf = (name: Preset) => parameterCount(new PatternModel(modelPreset(name)))

/**
 * Exact sizes: those of the published files (Llama, Mistral, Phi-3), and of microsoft/Samba's configurations, which round to the
 * sizes in their names.
 */
const counts = {
  "samba-421m": 421_793_280,
  "samba-1.3b": 1_330_207_488,
  "samba-1.7b": 1_742_194_688,
  "samba-3.8b": 3_864_275_712,
  "samba-nope-421m": 421_793_280,
  "mamba-swa-mlp-400m": 394_999_296,
  "mamba-430m": 432_804_864,
  "mlp2-swa-mlp-417m": 417_240_576,
  "llama-438m": 438_081_024,
  "llama-swa-438m": 438_081_024,
  "llama-2-7b": 6_738_415_616,
  "llama-3-8b": 8_030_261_248,
  "mistral-7b": 7_241_732_096,
  "tfm++-3.8b": 3_821_079_552,
} as const satisfies Partial<Record<Preset, number>>

for (const [name, count] of Object.entries(counts)) {
  test(`${name} has ${count.toLocaleString("en")} parameters`, (t) => {
    t.is(countOf(name as Preset), count)
  })
}

test("a preset has the size that its name says, to one in the last digit that is not a zero", (t) => {
  for (const name of Object.keys(presets) as Preset[]) {
    const [, digits, unit] = /-([\d.]+)([mb])$/.exec(name) ?? []
    if (digits === undefined) continue
    const millions = Number(digits) * (unit === "b" ? 1000 : 1)
    const zeros = /0*$/.exec(String(millions))![0].length
    // MambaByte's 972m has 973.4, by its own configuration.
    const most = Math.max(10 ** zeros, 0.002 * millions)
    const count = countOf(name)
    t.true(Math.abs(count / 1e6 - millions) < most, `${name}: ${count.toLocaleString("en")}`)
  }
})

test("the patterns are those of the paper's tables", (t) => {
  const pattern = (name: Preset) => `${modelPreset(name).depth}: ${patternNames(modelPreset(name).pattern)}`
  t.is(pattern("samba-421m"), "24: mamba, swiglu, sliding, swiglu")
  t.is(pattern("samba-3.8b"), "64: mamba, swiglu, sliding, swiglu")
  t.is(pattern("mamba-swa-mlp-400m"), "24: mamba, sliding, swiglu")
  t.is(pattern("mamba-mlp-1.9b"), "48: mamba, swiglu")
  t.is(pattern("mlp2-swa-mlp-417m"), "24: swiglu, swiglu, sliding, swiglu")
  t.is(pattern("sliding-gla-438m"), "24: gla, swiglu, sliding, swiglu")
  t.is(pattern("sliding-retnet-446m"), "24: retention, swiglu, sliding, swiglu")
  t.is(pattern("llama-438m"), "24: full, swiglu")
  t.is(pattern("llama-swa-438m"), "24: sliding, swiglu")
  t.is(pattern("mistral-7b"), "64: sliding, swiglu")
  t.is(pattern("mamba-130m"), "24: mamba")
})

test("heads, windows and positions are the published ones", (t) => {
  const attention = (name: Preset) => modelPreset(name).pattern.find(({ kind }) => kind === "attention")
  t.like(attention("samba-421m"), { heads: 12, kvHeads: 12, headDim: 128, window: 2048, conv: 0 })
  t.like(attention("samba-1.7b"), { heads: 32, kvHeads: 4, headDim: 64, window: 2048 })
  t.like(attention("samba-3.8b"), { heads: 11, kvHeads: 1, headDim: 256, window: 2048 })
  t.like(attention("samba-nope-421m"), { rope: false })
  t.like(attention("llama-3-8b"), { kvHeads: 8, headDim: 128, window: 0, contextMax: 8192, rope: { base: 500000 } })
  t.like(attention("mistral-7b"), { window: 4096, rope: { base: 10000, rotary: 128, interleaved: false } })
  t.like(modelPreset("sliding-gla-438m").pattern[0], { heads: 4, expandK: 0.5, expandV: 1 })
  t.like(modelPreset("sliding-retnet-446m").pattern[0], { heads: 6, expandK: 1, expandV: 2 })
  // Its configurations with mamba_init have one matrix for embedding and head.
  const tied = ["samba-421m", "mamba-swa-mlp-400m", "mlp2-swa-mlp-417m", "sliding-retnet-446m", "llama-1.3b"]
  for (const name of tied) t.true(modelPreset(name).tied)
  for (const name of ["llama-438m", "sliding-gla-438m", "mistral-7b"]) t.false(modelPreset(name).tied)
})

test("every preset fits its pattern a whole number of times", (t) => {
  for (const name of Object.keys(presets)) {
    const { depth, pattern } = modelPreset(name)
    t.is(depth % pattern.length, 0, name)
  }
})

test("a name that is no preset is refused with the nearest", (t) => {
  const message = "preset: unknown preset samba-421, did you mean samba-421m?"
  t.throws(() => modelPreset("samba-421"), { code: "BAD_OPTION", message })
  t.throws(() => modelPreset("toString"), { code: "BAD_OPTION" })
})

test("heads of gla are its own, for a width that its default does not divide", (t) => {
  const size = { dim: 640, layers: 2, vocab: 64, heads: 10 }
  const made = (gla: "gla" | { block: "gla"; heads: number }) =>
    new PatternModel(modelConfig({ ...size, pattern: [gla, "sliding"] })).config.pattern.map(
      (block) => "heads" in block && block.heads,
    )
  t.throws(() => made("gla"), { message: /got 320 for 1 heads; choose other heads/ })
  t.deepEqual(made({ block: "gla", heads: 4 }), [4, 10])
})

test("an option that is undefined is one that was not given", (t) => {
  const size = { dim: 64, layers: 1, vocab: 64 }
  const given = { ...size, heads: undefined, pattern: [{ block: "full", rope: { base: undefined } }] }
  t.deepEqual(
    modelConfig(given as unknown as Parameters<typeof modelConfig>[0]),
    modelConfig({ ...size, pattern: ["full"] }),
  )
})

test("sizes that are no object are refused by name", (t) => {
  for (const size of [undefined, null, "samba", [64]]) {
    t.throws(() => modelConfig(size as never), { code: "BAD_OPTION", message: /^model: options are an object, got / })
  }
})

test("sizes and patterns that fit no model are refused in one sentence", (t) => {
  const size = { dim: 64, layers: 4, vocab: 64 }
  const cases: [object, RegExp][] = [
    [{ ...size, dim: 0 }, /dim is a whole number of at least 1, got 0/],
    [{ ...size, layers: 1.5 }, /layers is a whole number/],
    [{ ...size, vocab: "64" }, /vocab is a whole number/],
    [{ ...size, pattern: [] }, /fits into the layers a whole number of times, got 0 blocks for 4/],
    [{ ...size, pattern: ["mamba", "swiglu", "sliding"] }, /got 3 blocks for 4 layers/],
    [{ ...size, pattern: ["mambo"] }, /pattern\[0\]: unknown block mambo, did you mean mamba\?/],
    [
      { ...size, pattern: [{ block: "sliding", windw: 3 }] },
      /pattern\[0\]: unknown option windw, did you mean window\?/,
    ],
    [{ ...size, pattern: ["sliding"], window: 0 }, /window is at least 1, the query's own key, got 0/],
    [{ ...size, pattern: ["full"], heads: 3 }, /SlidingAttention: headDim is a whole number/],
    [{ ...size, pattern: ["full"], heads: 4, kvHeads: 3 }, /kvHeads divides heads, got 3 for 4/],
    [{ ...size, pattern: ["full"], heads: 4, rope: { rotary: 7 } }, /rotary is an even number/],
    [{ ...size, pattern: ["full"], heads: 4, rope: { base: 1 } }, /rope.base is a number above 1, got 1/],
    [{ ...size, pattern: ["full"], rope: { bas: 5e5 } }, /rope: unknown option bas, did you mean base\?/],
    [{ ...size, pattern: ["full"], rope: { interleaved: "no" } }, /rope.interleaved is true or false, got no/],
    [{ ...size, pattern: ["full"], rope: true }, /pattern\[0\]: rope is false or an object of its options, got true/],
    [{ ...size, pattern: ["full"], shortConv: 1 }, /conv is 2, 3 or 4 taps, or 0/],
    [{ ...size, pattern: ["full"], contextMax: 0 }, /contextMax is a whole number from 1 to 16777216, got 0/],
    [{ ...size, pattern: ["full"], contextMax: 2 ** 40 }, /contextMax is a whole number from 1 to 16777216/],
    [{ ...size, pattern: ["sliding"], window: 1.5 }, /window is a whole number from 0 to 16777216, got 1.5/],
    [{ ...size, pattern: ["sliding"], window: 2 ** 31 }, /window is a whole number .* got 2147483648/],
    [{ ...size, pattern: ["swiglu"], mlp: 0 }, /inner is a whole number of at least 1, got 0/],
    [{ ...size, pattern: null }, /pattern is an array of blocks, got null/],
    [{ ...size, pattern: "mamba" }, /pattern is an array of blocks, got mamba/],
    [{ ...size, pattern: [null] }, /pattern\[0\]: a block is a name or an object .* got null; known are mamba/],
    [{ ...size, pattern: ["mamba", 5] }, /pattern\[1\]: a block is a name or an object .* got 5/],
    [{ ...size, pattern: [{ block: "mamba", window: 5 }] }, /pattern\[0\]: unknown option window, known are state/],
    [{ ...size, pattern: [{ block: "gla", heads: 5 }] }, /dim·expandK is divided by heads .* got 32 for 5 heads/],
    [{ ...size, pattern: [{ block: "swiglu", heads: 2 }] }, /pattern\[0\]: unknown option heads, known are mlp/],
    [{ ...size, pattern: [{ block: "full", window: 5 }] }, /pattern\[0\]: unknown option window/],
    [{ ...size, tied: "false" }, /tied is true or false, got false/],
    [{ ...size, convBias: 0 }, /convBias is true or false, got 0/],
    [{ ...size, pattern: [{ block: "mamba", projBias: "no" }] }, /pattern\[0\]: projBias is true or false, got no/],
    [{ ...size, normEps: 0 }, /normEps is a number above 0/],
    [{ ...size, state: 65 }, /state is 1 to 64, got 65/],
  ]
  for (const [given, message] of cases) {
    const error = t.throws(() => new PatternModel(modelConfig(given as Parameters<typeof modelConfig>[0])), { message })
    t.like(error, { name: "SelscanError", code: "BAD_OPTION" })
    t.false(error.message.includes("\n"))
  }
})
