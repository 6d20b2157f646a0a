import { execFileSync } from "node:child_process"
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import fc from "fast-check"
import {
  familyOf,
  modelConfigFields,
  ownNaming,
  parseModelConfig,
  readModelConfig,
} from "../../lib/checkpoint/families.ts"
import type { MambaBlock, ModelConfig } from "../../lib/models/config.ts"
import { temporaryFolder } from "./helpers.ts"

const folder = temporaryFolder()

/** The whole config.json of state-spaces/mamba-130m. */
const original = {
  d_model: 768,
  n_layer: 24,
  vocab_size: 50277,
  ssm_cfg: {},
  rms_norm: true,
  residual_in_fp32: true,
  fused_add_norm: true,
  pad_vocab_size_multiple: 8,
}

/** The fields that matter of the same model's transformers form, with the leftovers that published files carry. */
const transformers = {
  architectures: ["MambaForCausalLM"],
  model_type: "mamba",
  d_model: 999,
  n_layer: 99,
  d_inner: 999,
  hidden_size: 768,
  num_hidden_layers: 24,
  intermediate_size: 1536,
  vocab_size: 50280,
  pad_vocab_size_multiple: 64,
  state_size: 16,
  conv_kernel: 4,
  expand: 2,
  time_step_rank: 48,
  use_bias: false,
  use_conv_bias: true,
  hidden_act: "silu",
  layer_norm_epsilon: 1e-5,
  residual_in_fp32: true,
  torch_dtype: "float32",
}

const block: MambaBlock = { kind: "mamba", state: 16, conv: 4, inner: 1536, rank: 48, convBias: true, bias: false }
const expected: ModelConfig = { dim: 768, vocab: 50280, depth: 24, pattern: [block], tied: true, normEps: 1e-5 }

const parse = (fields: object) => parseModelConfig(JSON.stringify(fields), "config.json")
const parseBlock = (fields: object) => parse(fields).pattern[0] as MambaBlock

test("both forms of mamba-130m are the same config", (t) => {
  t.deepEqual(parse(original), expected)
  t.deepEqual(parse(transformers), expected)
})

test("an original config says what differs in ssm_cfg, and its vocabulary is padded", (t) => {
  const ssm_cfg = { layer: "Mamba1", d_state: 8, d_conv: 3, expand: 1.5, dt_rank: 3, conv_bias: false, bias: true }
  const config = parse({ ...original, d_model: 25, vocab_size: 61, ssm_cfg, tie_embeddings: false })
  t.deepEqual([config.vocab, config.tied], [64, false])
  t.deepEqual(config.pattern, [{ kind: "mamba", state: 8, conv: 3, inner: 37, rank: 3, convBias: false, bias: true }])
  t.is(parseBlock({ ...original, d_model: 25, ssm_cfg: { dt_rank: "auto" } }).rank, 2)
  t.is(parse({ ...original, vocab_size: 61, pad_vocab_size_multiple: 1 }).vocab, 61)
})

test("a transformers config takes the class's defaults, its stated inner size and no padding", (t) => {
  const { use_bias: _, time_step_rank: __, ...rest } = transformers
  t.true(parseBlock(rest).bias)
  t.is(parseBlock({ ...rest, time_step_rank: "auto" }).rank, 48)
  t.is(parse({ ...transformers, vocab_size: 61 }).vocab, 61)
  t.is(parseBlock({ ...transformers, expand: 16 }).inner, 1536)
  const { intermediate_size: ___, ...implied } = transformers
  t.is(parseBlock({ ...implied, expand: 3 }).inner, 2304)
})

test("how a file keeps its residual stream says nothing about what is computed", (t) => {
  t.deepEqual(parse({ ...original, residual_in_fp32: false }), expected)
  t.deepEqual(parse({ ...transformers, residual_in_fp32: false }), expected)
})

const refused: [string, object, RegExp][] = [
  ["a norm that is neither", { ...original, rms_norm: "layer" }, /rms_norm to be true or false, got "layer"/],
  ["Mamba-2", { ...original, ssm_cfg: { layer: "Mamba2" } }, /ssm_cfg\.layer to be "Mamba1", got "Mamba2"/],
  ["attention layers", { ...original, attn_layer_idx: [9, 18] }, /attn_layer_idx to be \[\], .* got \[9,18\]/],
  ["MLP layers", { ...original, d_intermediate: 2048 }, /d_intermediate to be 0/],
  [
    "transformers' Mamba-2",
    { ...transformers, model_type: "mamba2" },
    /model_type to be mamba, falcon_mamba, .* got "mamba2"/,
  ],
  [
    "quantised weights",
    { ...transformers, expand: 16, quantization_config: { quant_method: "bitsandbytes" } },
    /quantization_config.quant_method to be compressed-tensors, got "bitsandbytes"/,
  ],
  [
    "a quantised Falcon-Mamba that calls itself mamba",
    { ...transformers, architectures: ["FalconMambaForCausalLM"], quantization_config: {} },
    /quantization_config.quant_method to be compressed-tensors, got none/,
  ],
  ["a mixer's eps of zero", { ...transformers, mixer_rms_eps: 0 }, /mixer_rms_eps to be a number above 0 .* got 0/],
  ["another activation", { ...transformers, hidden_act: "gelu" }, /hidden_act to be "silu"/],
  ["no model at all", {}, /model_type to be mamba, .* or d_model .* got none/],
  ["no layers", { ...original, n_layer: undefined }, /n_layer to be a whole number from 1 to 4096, got none/],
  ["too many layers", { ...original, n_layer: 1e9 }, /n_layer to be .* got 1000000000/],
  ["a fractional width", { ...original, d_model: 7.5 }, /d_model to be a whole number/],
  ["a width in text", { ...original, d_model: "768" }, /d_model .* got "768"/],
  ["a wide convolution", { ...original, ssm_cfg: { d_conv: 5 } }, /ssm_cfg\.d_conv .* from 2 to 4, got 5/],
  ["a large state", { ...original, ssm_cfg: { d_state: 128 } }, /ssm_cfg\.d_state .* from 1 to 64, got 128/],
  ["an ssm_cfg that is none", { ...original, ssm_cfg: [] }, /ssm_cfg to be an object, got \[\]/],
  ["a flag that is none", { ...transformers, use_bias: 0 }, /use_bias to be true or false, got 0/],
  ["no inner channel", { ...original, d_model: 4, ssm_cfg: { expand: 0.1 } }, /at least one inner channel/],
  ["matrices beyond measure", { ...original, d_model: 2 ** 24, vocab_size: 2 ** 24 }, /at most 2\^40 elements/],
  ["an eps of zero", { ...transformers, layer_norm_epsilon: 0 }, /layer_norm_epsilon to be a number above 0/],
  ["a list", [], /a JSON object, got \[\]/],
]

for (const [what, fields, says] of refused) {
  test(`${what} is one clear error`, (t) => {
    const error = t.throws(() => parse(fields), { name: "SelscanError", code: "BAD_CHECKPOINT", message: says })
    t.regex(error.message, /^config\.json: expected .*, got .*; /)
  })
}

test("a config is read from its folder", async (t) => {
  const path = join(folder, "config.json")
  t.regex(
    (await t.throwsAsync(readModelConfig(folder), { code: "NOT_FOUND" })).message,
    /config\.json or lit_config\.json/,
  )
  writeFileSync(path, JSON.stringify(original))
  t.deepEqual(await readModelConfig(folder), expected)
  writeFileSync(path, "{")
  await t.throwsAsync(readModelConfig(folder), { code: "BAD_CHECKPOINT", message: /expected JSON/ })
  writeFileSync(path, '{\n "d_model": \u001b[2J,\n}')
  await t.throwsAsync(readModelConfig(folder), { code: "BAD_CHECKPOINT", message: /^[^\p{Cc}]+$/u })
  await t.throwsAsync(readModelConfig(5 as unknown as string), { code: "BAD_INPUT", message: /got number$/ })
  writeFileSync(path, " ".repeat(2 ** 20 + 1))
  await t.throwsAsync(readModelConfig(folder), { code: "BAD_CHECKPOINT", message: /at most 1048576 bytes/ })
  rmSync(path)
  mkdirSync(path)
  await t.throwsAsync(readModelConfig(folder), { code: "BAD_CHECKPOINT", message: /got no regular file/ })
})

test("the extra of our own files is kept as it is", (t) => {
  const extra = { steps: 1000, note: "ü", nested: { list: [1, null] } }
  const config = parse({ ...original, selscan: extra })
  t.deepEqual(config, { ...expected, extra })
  for (const naming of ["original", "transformers", "samba", "selscan"] as const) {
    t.deepEqual(parse(modelConfigFields(config, naming)), config)
    t.false("selscan" in modelConfigFields(expected, naming))
  }
})

test("any Mamba is the same after writing and reading, in both forms and ours", (t) => {
  const configs = fc
    .record({
      dim: fc.integer({ min: 16, max: 4096 }),
      depth: fc.integer({ min: 1, max: 100 }),
      vocab: fc.integer({ min: 1, max: 60_000 }),
      tied: fc.boolean(),
      block: fc.record({
        kind: fc.constant("mamba" as const),
        state: fc.integer({ min: 1, max: 64 }),
        conv: fc.integer({ min: 2, max: 4 }),
        inner: fc.integer({ min: 1, max: 8192 }),
        rank: fc.integer({ min: 1, max: 256 }),
        convBias: fc.boolean(),
        bias: fc.boolean(),
      }),
    })
    .map(({ block, ...sizes }): ModelConfig => ({ ...sizes, pattern: [block], normEps: 1e-5 }))
  const form = fc.constantFrom("original", "transformers", "selscan")
  const same = fc.property(configs, form, (config, as) => {
    t.deepEqual(parse(modelConfigFields(config, as)), config)
  })
  fc.assert(same, { seed: 10, numRuns: 300 })
})

test("what the original form cannot say is refused there and written in another", (t) => {
  const narrow = { ...expected, normEps: 1e-6 }
  const error = t.throws(() => modelConfigFields(narrow, "original"), { code: "BAD_CHECKPOINT" })
  t.is(
    error.message,
    "config: expected a model that naming original has words for (Mamba, MegaByte), got normEps 0.000001; choose another naming, such as selscan",
  )
  t.deepEqual(parse(modelConfigFields(narrow, "transformers")), narrow)
  t.is(familyOf(narrow).naming, "transformers")
  t.is(ownNaming(narrow), "selscan")
  t.is(ownNaming(expected), "original")
  const two = { ...expected, pattern: [block, { ...block, state: 8 }] }
  t.throws(() => modelConfigFields(two, "transformers"), { code: "BAD_CHECKPOINT", message: /got state 8 of block 1;/ })
  t.deepEqual(parse(modelConfigFields(two)), two)
})

test("a config file that is no regular one is refused, not waited for", async (t) => {
  const [piped, endless] = [join(folder, "piped"), join(folder, "endless")]
  for (const one of [piped, endless]) mkdirSync(one, { recursive: true })
  execFileSync("mkfifo", [join(piped, "config.json")])
  symlinkSync("/dev/zero", join(endless, "config.json"))
  for (const one of [piped, endless]) {
    await t.throwsAsync(readModelConfig(one), { code: "BAD_CHECKPOINT", message: /got no regular file/ })
  }
})
