import { posix, win32 } from "node:path"
import test, { type ExecutionContext } from "ava"
import fc from "fast-check"
import { modelConfigFields, parseConfig, tensorsOf } from "../../lib/checkpoint/families.ts"
import { parseIndex } from "../../lib/checkpoint/shards.ts"
import { SelscanError } from "../../lib/errors.ts"
import { modelPreset } from "../../lib/models/presets.ts"
import { llama, mistral, samba } from "./published.ts"

/** `SELSCAN_FUZZ=1000000` for a long run with another seed each time. */
const long = Number(process.env.SELSCAN_FUZZ ?? 0)
const runs = (numRuns: number, seed: number) => (long > 0 ? { numRuns: long } : { numRuns, seed })

const small = { n_layer: 3, num_hidden_layers: 2 }
const bases: readonly Record<string, unknown>[] = [
  { d_model: 8, n_layer: 1, vocab_size: 9, ssm_cfg: {}, attn_layer_idx: [], tie_embeddings: true },
  { model_type: "mamba", hidden_size: 8, num_hidden_layers: 1, vocab_size: 9, expand: 2, time_step_rank: 1 },
  { model_type: "falcon_mamba", hidden_size: 8, num_hidden_layers: 1, vocab_size: 9, mixer_rms_eps: 1e-6 },
  { d_model: 8, num_layers: 1, vocab_size: 9, norm_eps: 1e-5 },
  { ...samba, ...small },
  { ...samba, ...small, mamba: true },
  { ...samba, ...small, mamba_swa_mlp: true, nope: true },
  { ...llama, ...small },
  { ...mistral, ...small },
  { ...modelConfigFields(modelPreset("samba-421m"), "selscan"), depth: 4 },
]

const value = fc.oneof(
  { weight: 3, arbitrary: fc.integer({ min: -1, max: 70 }) },
  { weight: 2, arbitrary: fc.constantFrom<unknown>("auto", "[1]", null, 1e308, 0.5, true, false, {}, [], "silu") },
  { weight: 1, arbitrary: fc.jsonValue() },
)

/** Whatever is accepted is a model that can be made and written in our form again; nothing but BAD_CHECKPOINT refuses the rest. */
function survives(t: ExecutionContext, json: string): "read" | "refused" {
  try {
    const { family, config } = parseConfig(json, "config.json")
    if (!("pattern" in config)) return "read"
    const { dim, vocab, depth, pattern, normEps } = config
    const sizes = [dim, vocab, depth, pattern.length]
    if (!sizes.every((size) => Number.isSafeInteger(size) && size > 0) || !(normEps > 0)) t.fail(json)
    if (depth <= 64 && tensorsOf(family, config).length < 3) t.fail(json)
    const again = parseConfig(JSON.stringify(modelConfigFields(config, "selscan")), "config.json").config
    t.deepEqual(again, config)
    return "read"
  } catch (error) {
    if (!(error instanceof SelscanError) || error.code !== "BAD_CHECKPOINT") throw error
    if (/\n/.test(error.message) || error.message.length > 1000) t.fail(error.message)
    return "refused"
  }
}

for (const [i, base] of bases.entries()) {
  test(`any change of fields of configuration ${i} is a config or a BAD_CHECKPOINT`, (t) => {
    const names = fc.constantFrom(
      ...Object.keys(base),
      "ssm_cfg",
      "selscan",
      "rope_scaling",
      "head_dim",
      "use_bias",
      "rope_theta",
      "quantization_config",
      "architectures",
      "mixer_rms_eps",
      "rms_norm",
      "norm",
    )
    const changes = fc.dictionary(names, value, { minKeys: 1, maxKeys: 3 })
    const outcomes = new Set<string>()
    const property = fc.property(changes, (changed) => {
      outcomes.add(survives(t, JSON.stringify({ ...base, ...changed })))
    })
    fc.assert(property, runs(1000, 20 + i))
    t.deepEqual([...outcomes].sort(), ["read", "refused"])
  })
}

test("any change of a block of ours is a config or a BAD_CHECKPOINT", (t) => {
  const base = bases.at(-1)! as { pattern: object[] }
  const names = fc.constantFrom(
    "kind",
    "state",
    "inner",
    "heads",
    "kvHeads",
    "headDim",
    "window",
    "rope",
    "conv",
    "rank",
    "bias",
    "mixerNormEps",
  )
  const kind = fc.constantFrom<unknown>("mamba", "attention", "swiglu", "gla", "retention")
  const change = fc.dictionary(names, fc.oneof(value, kind, fc.constant({ base: 10, rotary: 4, interleaved: true })), {
    maxKeys: 3,
  })
  const property = fc.property(fc.nat({ max: 3 }), change, (at, changed) => {
    const pattern = base.pattern.map((block, i) => (i === at ? { ...block, ...changed } : block))
    survives(t, JSON.stringify({ ...base, pattern }))
  })
  fc.assert(property, runs(2000, 30))
  t.pass()
})

test("any text as a config file is a config or a BAD_CHECKPOINT", (t) => {
  const fields = [
    "d_model",
    "n_layer",
    "vocab_size",
    "model_type",
    "hidden_size",
    "n_embd",
    "pattern",
    "depth",
    "mamba",
    "num_layers",
    "rms_norm",
  ]
  const object = fc.dictionary(
    fc.constantFrom(...fields),
    fc.oneof(value, fc.constantFrom("mamba", "falcon_mamba", "llama", "selscan", "mistral")),
  )
  const text = fc.oneof(
    object.map((fields) => JSON.stringify(fields)),
    fc.json(),
    fc.string(),
  )
  const property = fc.property(text, (json) => void survives(t, json))
  fc.assert(property, runs(5000, 9))
  t.pass()
})

test("any text as an index of shards is an index of plain names or a BAD_CHECKPOINT", (t) => {
  const name = fc.oneof(
    fc.string(),
    fc
      .array(fc.constantFrom("..", "/", "\\", "a", ".", "-", "\0", "model", ".safetensors", "C:", "%2e"), {
        maxLength: 6,
      })
      .map((parts) => parts.join("")),
  )
  const map = fc.dictionary(
    fc.string(),
    fc.oneof(
      name,
      name.map((text) => `${text}.safetensors`),
      name.map((text) => `${text}.bin`),
      fc.jsonValue(),
    ),
    { maxKeys: 4 },
  )
  const text = fc.oneof(
    map.map((weight_map) => JSON.stringify({ weight_map })),
    fc.json(),
    fc.string(),
  )
  const extension = fc.constantFrom("safetensors" as const, "bin" as const)
  const property = fc.property(text, extension, (json, extension) => {
    try {
      for (const file of parseIndex(json, "index", extension).values()) {
        const inside = posix.basename(file) === file && win32.basename(file) === file && file !== ".."
        if (!inside || !file.endsWith(`.${extension}`)) t.fail(file)
      }
    } catch (error) {
      if (!(error instanceof SelscanError) || error.code !== "BAD_CHECKPOINT") throw error
      if (/\n/.test(error.message)) t.fail(error.message)
    }
  })
  fc.assert(property, runs(5000, 31))
  t.pass()
})
