import test from "ava"
import {
  familyOf,
  familyOfTensors,
  modelConfigFields,
  ownNaming,
  parseConfig,
  parseModelConfig,
  tensorsOf,
} from "../../lib/checkpoint/families.ts"
import { checkNames, checkShapes, match } from "../../lib/checkpoint/names.ts"
import { parameterCount } from "../../lib/layers/layer.ts"
import { Mamba } from "../../lib/layers/mamba.ts"
import { type ModelConfig, modelConfig } from "../../lib/models/config.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { modelPreset } from "../../lib/models/presets.ts"

const parse = (fields: object) => parseModelConfig(JSON.stringify(fields), "config.json")
const read = (fields: object) => parseConfig(JSON.stringify(fields), "config.json")

/** What matters of the config.json of tiiuae/falcon-mamba-7b. */
const falcon = {
  architectures: ["FalconMambaForCausalLM"],
  conv_kernel: 4,
  expand: 2,
  hidden_act: "silu",
  hidden_size: 4096,
  intermediate_size: 8192,
  layer_norm_epsilon: 1e-5,
  model_type: "falcon_mamba",
  num_hidden_layers: 64,
  residual_in_fp32: true,
  state_size: 16,
  tie_word_embeddings: false,
  time_step_rank: 256,
  use_bias: false,
  use_conv_bias: true,
  vocab_size: 65024,
}
/** The arguments of MambaByteLM for its 353M. */
const module353 = { vocab_size: 256, d_model: 1024, num_layers: 53, d_state: 16, d_conv: 4, expand: 2, norm_eps: 1e-5 }

test("Falcon-Mamba is its preset, and says so again", (t) => {
  const preset = modelPreset("falcon-mamba-7b")
  t.deepEqual(parse(falcon), preset)
  t.is(parameterCount(new PatternModel(preset)), 7_272_665_088)
  const { name, naming } = familyOf(preset)
  t.deepEqual([name, naming], ["Falcon-Mamba", "transformers"])
  for (const naming of ["transformers", "selscan"] as const)
    t.deepEqual(parse(modelConfigFields(preset, naming)), preset)
  const message = /naming original has words for .* got mixerNormEps 0\.000001 of block 0/
  t.throws(() => modelConfigFields(preset, "original"), { code: "BAD_CHECKPOINT", message })
})

test("the norms of a Falcon-Mamba have the eps of its file, whatever the file calls itself", (t) => {
  const epsOf = (fields: object) =>
    (parse({ ...falcon, ...fields }).pattern[0] as { mixerNormEps?: number }).mixerNormEps
  t.is(epsOf({}), 1e-6)
  t.is(epsOf({ mixer_rms_eps: 1e-5 }), 1e-5)
  t.is(epsOf({ model_type: "mamba", use_bias: false }), 1e-6)
  t.is(epsOf({ model_type: "mamba", architectures: undefined, mixer_rms_eps: 1e-5 }), 1e-5)
  t.is(epsOf({ model_type: "mamba", architectures: undefined }), undefined)
})

test("a Mamba whose norms are LayerNorm has their biases, and a head of its own where it says so", (t) => {
  const fields = { d_model: 16, n_layer: 2, vocab_size: 256, rms_norm: false, tie_embeddings: false }
  const config = parse(fields)
  t.deepEqual(config, modelConfig({ dim: 16, layers: 2, vocab: 256, norm: "layer", tied: false }))
  const { family } = read(fields)
  const names = tensorsOf(family, config).map(({ fileName }) => fileName)
  for (const name of ["layers.0.norm.bias", "layers.1.norm.weight", "norm_f.bias"])
    t.true(names.includes(`backbone.${name}`))
  t.true(names.includes("lm_head.weight"))
  t.deepEqual(parse(modelConfigFields(config, "original")), config)
  t.deepEqual(parse(modelConfigFields(config, "selscan")), config)
  t.throws(() => modelConfigFields(config, "transformers"), { code: "BAD_CHECKPOINT", message: /got norm layer/ })
  t.throws(() => modelConfigFields(config, "samba"), { code: "BAD_CHECKPOINT" })
  const rms = { ...config, norm: undefined }
  const { norm: _, ...plain } = rms
  t.is(parameterCount(new PatternModel(config)) - parameterCount(new PatternModel(plain as ModelConfig)), 3 * 16)
})

test("the arguments of MambaByte's own module are a config", (t) => {
  const config = parse(module353)
  t.deepEqual(config, modelConfig({ dim: 1024, layers: 53, vocab: 256, norm: "layer", tied: false }))
  t.deepEqual(parse({ d_model: 1024, num_layers: 53 }), config)
  // As its published 353,628,160 with RMSNorm and tied, and 54 biases of the norms and a head more.
  t.is(parameterCount(new PatternModel(config)), 353_628_160 + 54 * 1024 + 256 * 1024)
  const narrow = { ...config, normEps: 1e-6 }
  t.deepEqual(modelConfigFields(narrow, "original"), { ...module353, norm_eps: 1e-6 })
  t.is(familyOf(config).naming, "original")
  t.deepEqual([ownNaming(config), ownNaming(narrow)], ["original", "selscan"])
  t.deepEqual(parse({ ...module353, n_layer: 2 }).depth, 2, "with n_layer it is the original form")
  t.throws(() => parse({ ...module353, num_layers: "53" }), {
    code: "BAD_CHECKPOINT",
    message: /num_layers to be a whole/,
  })
})

test("tensors of MambaByte's module and of the original form go with either config", (t) => {
  const original = read({ d_model: 16, n_layer: 2, vocab_size: 256, rms_norm: false, tie_embeddings: false })
  const own = read({ d_model: 16, num_layers: 2 })
  t.deepEqual(own.config, original.config)
  for (const [files, embedding] of [
    [original, "backbone.embedding.weight"],
    [own, "mambabyte.token_embedding.weight"],
  ] as const) {
    const names = new Set(tensorsOf(files.family, files.config).map(({ fileName }) => fileName))
    t.true(names.has(embedding))
    for (const config of [original, own]) {
      const family = familyOfTensors(config, names, "m")
      t.is(family.mark, embedding)
      t.notThrows(() => checkNames(match(names, tensorsOf(family, config.config)), "m"))
    }
  }
})

test("a config that contradicts its norms or its head names the tensors", (t) => {
  const names = (fields: object) => {
    const { family, config } = read(fields)
    return tensorsOf(family, config).map(({ fileName }) => fileName)
  }
  const fields = { d_model: 16, n_layer: 1, vocab_size: 256 }
  const check = (file: object, said: object) => () => {
    const { family, config } = read({ ...fields, ...said })
    checkNames(match(names({ ...fields, ...file }), tensorsOf(family, config)), "m")
  }
  const layer = { rms_norm: false }
  t.throws(check(layer, {}), { message: /got backbone\.layers\.0\.norm\.bias, backbone\.norm_f\.bias unexpected/ })
  t.throws(check({}, layer), { message: /norm_f\.bias missing/ })
  t.throws(check({ ssm_cfg: { bias: true } }, {}), { message: /in_proj\.bias, .* unexpected/ })
  t.notThrows(check({ tie_embeddings: false }, {}), "a tied model's file may have the head too")
  const small = read({ ...falcon, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, time_step_rank: 1 })
  const table = tensorsOf(small.family, small.config)
  const headless = table.map(({ fileName }) => fileName).filter((name) => name !== "lm_head.weight")
  t.throws(() => checkNames(match(headless, table), "m"), {
    code: "BAD_CHECKPOINT",
    message: /lm_head\.weight missing/,
  })
  const shapes = new Map(table.map(({ fileName, shape }) => [fileName, { shape }]))
  const other = read({ ...falcon, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, time_step_rank: 2 })
  const message =
    /expected backbone\.layers\.0\.mixer\.x_proj\.weight to be \[34,32\], got \[33,32\]; pair it with its own config/
  t.throws(() => checkShapes(shapes, tensorsOf(other.family, other.config), "m"), { code: "BAD_CHECKPOINT", message })
})

test("sizes of models say their norms", (t) => {
  t.throws(() => modelConfig({ dim: 8, layers: 1, vocab: 8, norm: "batch" as "rms" }), {
    message: /norm is rms or layer, got batch/,
  })
  t.throws(() => modelConfig({ dim: 8, layers: 1, vocab: 8, mixerNormEps: 0 }), {
    message: /mixerNormEps is a number above 0/,
  })
  t.throws(() => new Mamba({ dim: 8, mixerNormEps: -1 }), { message: /mixerNormEps is a number above 0, got -1/ })
  t.deepEqual(modelConfig({ dim: 8, layers: 1, vocab: 8, norm: "rms" }), modelConfig({ dim: 8, layers: 1, vocab: 8 }))
})
