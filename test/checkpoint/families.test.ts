import test from "ava"
import fc from "fast-check"
import { familyOf, modelConfigFields, parseModelConfig } from "../../lib/checkpoint/families.ts"
import type { Naming } from "../../lib/checkpoint/family.ts"
import { patternOf } from "../../lib/checkpoint/patterns.ts"
import { type BlockConfig, type ModelConfig, modelConfig, sambaPattern } from "../../lib/models/config.ts"
import { modelPreset } from "../../lib/models/presets.ts"
import { llama, mistral, samba, transformer } from "./published.ts"

const parse = (fields: object) => parseModelConfig(JSON.stringify(fields), "config.json")

test("published configurations are the presets of their names", (t) => {
  const lit = (fields: object) => parse({ ...samba, ...fields })
  t.deepEqual(parse(samba), modelPreset("samba-421m"))
  t.deepEqual(lit({ nope: true }), modelPreset("samba-nope-421m"))
  t.deepEqual(lit({ abl_mamba: true }), modelPreset("mlp2-swa-mlp-417m"))
  t.deepEqual(lit({ mb_per_layer: -1, mamba_swa_mlp: true, n_layer: 8 }), modelPreset("mamba-swa-mlp-400m"))
  t.deepEqual(parse({ ...transformer, local_window: -1 }), modelPreset("llama-438m"))
  t.deepEqual(parse(transformer), modelPreset("llama-swa-438m"))
  t.deepEqual(parse({ ...transformer, gla_per_layer: 2 }), modelPreset("sliding-gla-438m"))
  t.deepEqual(parse({ ...transformer, ret_per_layer: 2, mamba_init: true }), modelPreset("sliding-retnet-446m"))
  t.deepEqual(parse(llama), modelPreset("llama-2-7b"))
  t.deepEqual(parse({ ...mistral, max_position_embeddings: 4096 }), modelPreset("mistral-7b"))
})

test("a stack of Mamba blocks is read whatever its other fields' defaults say", (t) => {
  const fields = { mamba: true, block_size: 4096, padding_multiple: 64, n_layer: 60, vocab_size: 32000, n_embd: 1024 }
  t.deepEqual(parse({ ...fields, bias: true, parallel_residual: true }), modelPreset("mamba-430m"))
  t.is(parse({ ...fields, vocab_size: 31990 }).vocab, 32000)
})

/** Kinds of the mixers, with the window of attention. */
const mixers = (fields: object) => {
  const { pattern, depth } = parse({ ...samba, n_layer: 6, ...fields })
  const blocks = Array.from({ length: depth }, (_, i) => pattern[i % pattern.length]!)
  return blocks
    .filter((_, i) => i % 2 === 0)
    .map((block) => (block.kind === "attention" ? block.window : block.kind))
    .join(" ")
}

test("flags of layers are written out as blocks", (t) => {
  t.is(mixers({}), "mamba 2048 mamba 2048 mamba 2048")
  t.is(mixers({ mb_per_layer: 3 }), "mamba 2048 2048 mamba 2048 2048")
  t.is(mixers({ mb_per_layer: -1 }), "2048 2048 2048 2048 2048 2048")
  t.is(mixers({ mb_per_layer: -1, full_per_layer: 2 }), "2048 0 2048 0 2048 0")
  t.is(mixers({ full_per_layer: 4 }), "mamba 2048 mamba 0 mamba 2048")
  t.is(mixers({ full_per_layer: 1 }), "mamba 0 mamba 0 mamba 0")
  t.is(mixers({ local_window: -1 }), "mamba 0 mamba 0 mamba 0")
  t.is(mixers({ attn_layer_pos: "[1,5]" }), "mamba 2048 mamba mamba mamba 2048")
  t.is(mixers({ attn_layer_pos: " [ 0 , ] ", local_window: -1 }), "0 mamba mamba mamba mamba mamba")
  t.is(mixers({ mb_per_layer: 4, ret_per_layer: 2, gla_per_layer: 3 }), "mamba 2048 retention gla mamba 2048")
  const odd = parse({ ...samba, n_layer: 3 })
  t.deepEqual([odd.depth, odd.pattern.length], [6, 6])
})

test("sizes of attention come from the fields, absent ones from the class", (t) => {
  const attention = (fields: object) => parse({ ...transformer, ...fields }).pattern[0]
  t.like(attention({ n_query_groups: 4, n_head: 24 }), { heads: 24, kvHeads: 4, headDim: 64, conv: 0 })
  t.like(attention({ n_query_groups: null, sc_attn: true }), { kvHeads: 12, conv: 4 })
  t.like(attention({ rotary_percentage: 0.25, block_size: 16384 }), {
    contextMax: 16384,
    rope: { base: 10000, rotary: 32, interleaved: false },
  })
  const { padded_vocab_size: _, ...unpadded } = { ...transformer, vocab_size: 31990 }
  t.is(parse(unpadded).vocab, 32000)
  t.like(parse({ ...llama, head_dim: 64, num_key_value_heads: undefined }).pattern[0], { headDim: 64, kvHeads: 32 })
  t.like(parse({ ...llama, rope_theta: 500000 }).pattern[0], { rope: { base: 500000 } })
  t.like(parse({ ...llama, rope_parameters: { rope_type: "default", rope_theta: 1e6 } }).pattern[0], {
    rope: { base: 1e6 },
  })
  const { rms_norm_eps: __, tie_word_embeddings: ___, max_position_embeddings: ____, ...short } = llama
  t.like(parse(short), { normEps: 1e-6, tied: false })
  t.like(parse(short).pattern[0], { contextMax: 2048 })
  t.like(parse({ ...mistral, sliding_window: null }).pattern[0], { window: 0 })
  t.like(parse({ ...mistral, sliding_window: undefined }).pattern[0], { window: 4096 })
  t.like(parse({ ...mistral, num_key_value_heads: undefined }).pattern[0], { kvHeads: 8 })
  t.like(parse({ ...mistral, num_key_value_heads: null }).pattern[0], { kvHeads: 32 })
})

const namingsOf: Readonly<Record<string, readonly Naming[]>> = {
  "samba-421m": ["samba", "selscan"],
  "samba-nope-421m": ["samba", "selscan"],
  "samba-3.8b": ["samba", "selscan"],
  "mamba-swa-mlp-400m": ["samba", "selscan"],
  "mamba-mlp-1.9b": ["samba", "selscan"],
  "mlp2-swa-mlp-417m": ["samba", "selscan"],
  "sliding-gla-438m": ["samba", "selscan"],
  "sliding-retnet-446m": ["samba", "selscan"],
  "llama-438m": ["transformers", "samba", "selscan"],
  "llama-3-8b": ["transformers", "selscan"],
  "mistral-7b": ["transformers", "samba", "selscan"],
  "mamba-130m": ["original", "transformers", "samba", "selscan"],
}

for (const [name, namings] of Object.entries(namingsOf)) {
  test(`${name} is the same model after writing and reading as ${namings.join(", ")}, and in no other form`, (t) => {
    const config = modelPreset(name)
    for (const naming of ["original", "transformers", "samba", "selscan"] as const) {
      if (namings.includes(naming)) t.deepEqual(parse(modelConfigFields(config, naming)), config)
      else
        t.throws(() => modelConfigFields(config, naming), {
          code: "BAD_CHECKPOINT",
          message: /naming \w+ has words for/,
        })
    }
  })
}

test("a model is saved as others read it, or else in our form", (t) => {
  const form = (name: string) => {
    const { name: family, naming } = familyOf(modelPreset(name))
    return `${family} ${naming}`
  }
  t.is(form("mamba-130m"), "Mamba original")
  t.is(form("llama-3-8b"), "Llama transformers")
  t.is(form("mistral-7b"), "Mistral transformers")
  for (const name of ["samba-421m", "samba-nope-421m", "sliding-gla-438m"]) t.is(form(name), "selscan selscan")
  const partly = modelConfig({
    dim: 64,
    layers: 2,
    vocab: 64,
    pattern: ["full", "swiglu"],
    heads: 2,
    rope: { rotary: 16 },
  })
  t.is(familyOf(partly).naming, "selscan")
})

test("what a naming has no words for is named", (t) => {
  const says = (size: Parameters<typeof modelConfig>[0], naming: Naming, got: string) => {
    const config = modelConfig({ heads: 2, ...size })
    const error = t.throws(() => modelConfigFields(config, naming), { code: "BAD_CHECKPOINT" })
    t.regex(
      error.message,
      /^config: expected a model that naming \w+ has words for \(.*\), got .*; choose another naming/,
    )
    t.true(error.message.includes(`got ${got};`), error.message)
  }
  const size = { dim: 64, layers: 4, vocab: 64 }
  says({ ...size, pattern: sambaPattern, state: 8 }, "samba", "state 8 of block 0")
  says({ ...size, pattern: ["mamba", "full", "swiglu", "swiglu"] }, "samba", "the kind attention of block 1")
  says({ ...size, pattern: ["full", "swiglu"], shortConv: 3 }, "samba", "conv 3 of block 0")
  says({ ...size, pattern: ["full", "swiglu"], shortConv: 4 }, "transformers", "conv 4 of block 0")
  says({ ...size, pattern: ["full", "swiglu"], rope: false }, "transformers", "rope false of block 0")
  says({ ...size, pattern: ["full", "swiglu", "sliding", "swiglu"] }, "transformers", "window 2048 of block 2")
  says({ ...size, pattern: ["swiglu", "full"] }, "transformers", "the pattern swiglu, full")
  says({ ...size, pattern: ["mamba", { block: "full", heads: 1 }], layers: 4 }, "original", "the pattern mamba, full")
})

test("the shortest pattern that repeats to some blocks is found", (t) => {
  const [a, b]: BlockConfig[] = [
    { kind: "swiglu", inner: 1 },
    { kind: "swiglu", inner: 2 },
  ]
  const length = (text: string) => patternOf([...text].map((letter) => (letter === "a" ? a! : b!))).length
  t.deepEqual(["a", "aaaa", "abab", "aba", "abaaba", "aab", "abba"].map(length), [1, 1, 2, 3, 3, 3, 4])
})

test("any pattern is the same after writing and reading in our form", (t) => {
  const size = fc.integer({ min: 1, max: 9 })
  const blocks = fc.oneof(
    fc.record({ kind: fc.constant("swiglu" as const), inner: size }),
    fc.record({
      kind: fc.constant("mamba" as const),
      ...{
        state: size,
        conv: fc.constantFrom(2, 3, 4),
        inner: size,
        rank: size,
        convBias: fc.boolean(),
        bias: fc.boolean(),
      },
    }),
    fc.record({
      kind: fc.constant("attention" as const),
      ...{ heads: fc.constantFrom(2, 4), kvHeads: fc.constantFrom(1, 2), headDim: fc.constantFrom(4, 6) },
      ...{ window: fc.nat({ max: 5 }), contextMax: size, conv: fc.constantFrom(0, 2, 3, 4) },
      rope: fc.oneof(
        fc.constant(false as const),
        fc.record({ base: fc.constantFrom(2, 10000.5), rotary: fc.constantFrom(2, 4), interleaved: fc.boolean() }),
      ),
    }),
    fc.record({
      kind: fc.constantFrom("gla" as const, "retention" as const),
      heads: fc.constantFrom(1, 2),
      expandK: fc.constant(1),
      expandV: fc.constantFrom(1, 2),
    }),
  )
  const configs = fc
    .record({
      dim: fc.constantFrom(8, 16),
      vocab: size,
      times: size,
      tied: fc.boolean(),
      normEps: fc.constantFrom(1e-5, 1e-6),
      pattern: fc.array(blocks, { minLength: 1, maxLength: 5 }),
    })
    .map(({ times, ...rest }): ModelConfig => ({ ...rest, depth: times * rest.pattern.length }))
  const same = fc.property(configs, (config) => {
    t.deepEqual(parse(modelConfigFields(config, "selscan")), config)
  })
  fc.assert(same, { seed: 11, numRuns: 300 })
})
