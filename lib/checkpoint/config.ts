/**
 * config.json of Mamba models, in both public forms, as one `MambaConfig`.
 *
 * The original form (state-spaces) has d_model, n_layer and ssm_cfg and no model_type; its vocab_size is rounded up to
 * pad_vocab_size_multiple for the weights. The transformers form has model_type "mamba", hidden_size and the padded vocab_size,
 * often with leftovers of the original form, which mean nothing. Fields that say nothing about the weights are ignored;
 * fields that ask for another architecture are refused.
 */
import { readFile, stat } from "node:fs/promises"
import { expect, SelscanError } from "../errors.ts"
import { Fields } from "./config-fields.ts"

/** What the weights of a Mamba model look like and how they are used. */
export interface MambaConfig {
  readonly dim: number
  readonly layers: number
  /** Rows of the embedding, padding included. */
  readonly vocab: number
  /** States per channel of the scan, 1–64. */
  readonly state: number
  /** Width of the causal convolution, 2–4. */
  readonly conv: number
  readonly expand: number
  /** Channels inside a block: ⌊expand · dim⌋, unless a file says otherwise. */
  readonly inner: number
  /** Width of the projection that delta comes from; ⌈dim / 16⌉ when a file says "auto". */
  readonly rank: number
  readonly convBias: boolean
  readonly projBias: boolean
  readonly normEps: number
  /** The head is the embedding. */
  readonly tied: boolean
  readonly residualF32: boolean
  /** The free-form "selscan" object of our own files, as it was; absent in others. */
  readonly extra?: Readonly<Record<string, unknown>>
}

export type ConfigForm = "original" | "transformers"

/** mamba_ssm fixes it in code: its config has no field for it. */
const originalEps = 1e-5
const originalPadding = 8
/** Far above the deepest model; a table of tensors has about ten rows per layer. */
const layersMax = 4096
/** A config has a few hundred bytes. */
const fileBytesMax = 1 << 20

/**
 * Reads a config.json.
 * @throws SelscanError NOT_FOUND when there is no file, else as `parseMambaConfig`
 */
export async function readMambaConfig(path: string): Promise<MambaConfig> {
  try {
    const { size } = await stat(path)
    expect(size <= fileBytesMax, "BAD_CHECKPOINT", () => {
      return `${path}: expected a config of at most ${fileBytesMax} bytes, got ${size}; give the model's config.json`
    })
    return parseMambaConfig(await readFile(path, "utf8"), path)
  } catch (cause) {
    if (cause instanceof SelscanError) throw cause
    const { code, message } = cause as NodeJS.ErrnoException
    const reason = code === "ENOENT" ? "NOT_FOUND" : "BAD_CHECKPOINT"
    throw new SelscanError(
      reason,
      `${path}: expected a config.json, got ${message}; check the path`,
      { path },
      { cause },
    )
  }
}

/**
 * Reads the text of a config.json; `where` names the file in errors.
 * @throws SelscanError BAD_CHECKPOINT when it is no JSON object, lacks a field, or describes a model that is not Mamba
 */
export function parseMambaConfig(text: string, where: string): MambaConfig {
  const fields = Fields.parse(text, where)
  const config = formOf(fields) === "transformers" ? fromTransformers(fields) : fromOriginal(fields)
  const extra = fields.optionalObject("selscan")
  return extra ? { ...config, extra: extra.raw } : config
}

/**
 * The fields of a config.json, in either form; `JSON.stringify` them.
 * @throws SelscanError BAD_CHECKPOINT when the original form has no way to say what the config says
 */
export function mambaConfigFields(config: MambaConfig, form: ConfigForm): Record<string, unknown> {
  const fields = form === "transformers" ? toTransformers(config) : toOriginal(config)
  return config.extra ? { ...fields, selscan: config.extra } : fields
}

function formOf(fields: Fields): ConfigForm {
  const type = fields.raw.model_type
  if (type === undefined && fields.raw.d_model !== undefined) return "original"
  fields.require(type === "mamba", "model_type", '"mamba", or d_model of the original form')
  const architectures = JSON.stringify(fields.raw.architectures ?? [])
  // A quantised Falcon file calls itself mamba; its norms on delta, B and C give it away.
  const falcon = architectures.includes("FalconMamba") || fields.raw.mixer_rms_eps !== undefined
  if (falcon) fields.refuse("a plain Mamba", "Falcon-Mamba")
  return "transformers"
}

function fromOriginal(fields: Fields): MambaConfig {
  const ssm = fields.optionalObject("ssm_cfg") ?? fields.empty("ssm_cfg")
  fields.require(fields.raw.rms_norm !== false, "rms_norm", "true, for LayerNorm is not supported")
  fields.require(
    [undefined, null, 0].includes(fields.raw.d_intermediate as null),
    "d_intermediate",
    "0, without MLP layers",
  )
  const attention = fields.raw.attn_layer_idx ?? []
  fields.require(Array.isArray(attention) && attention.length === 0, "attn_layer_idx", "[], without attention layers")
  ssm.require((ssm.raw.layer ?? "Mamba1") === "Mamba1", "layer", '"Mamba1"')

  const dim = fields.count("d_model")
  const padding = fields.count("pad_vocab_size_multiple", { absent: originalPadding })
  const expand = ssm.positive("expand", 2)
  return checkSizes(fields, {
    dim,
    layers: fields.count("n_layer", { most: layersMax }),
    vocab: Math.ceil(fields.count("vocab_size") / padding) * padding,
    state: ssm.count("d_state", { absent: 16, most: 64 }),
    conv: ssm.count("d_conv", { absent: 4, least: 2, most: 4 }),
    expand,
    inner: Math.floor(expand * dim),
    rank: rankOf(ssm, "dt_rank", dim),
    convBias: ssm.flag("conv_bias", true),
    projBias: ssm.flag("bias", false),
    normEps: originalEps,
    tied: fields.flag("tie_embeddings", true),
    residualF32: fields.flag("residual_in_fp32", true),
  })
}

function fromTransformers(fields: Fields): MambaConfig {
  const activation = fields.raw.hidden_act ?? "silu"
  fields.require(activation === "silu" || activation === "swish", "hidden_act", '"silu"')
  const dim = fields.count("hidden_size")
  const stated = fields.positive("expand", 2)
  // Where both are stated and differ, the weights have intermediate_size. A leftover d_inner is often wrong.
  const inner = fields.count("intermediate_size", { absent: Math.floor(stated * dim) })
  return checkSizes(fields, {
    dim,
    layers: fields.count("num_hidden_layers", { most: layersMax }),
    vocab: fields.count("vocab_size"),
    state: fields.count("state_size", { absent: 16, most: 64 }),
    conv: fields.count("conv_kernel", { absent: 4, least: 2, most: 4 }),
    expand: inner === Math.floor(stated * dim) ? stated : inner / dim,
    inner,
    rank: rankOf(fields, "time_step_rank", dim),
    convBias: fields.flag("use_conv_bias", true),
    projBias: fields.flag("use_bias", true), // the class's default; the published files say false
    normEps: fields.positive("layer_norm_epsilon", 1e-5),
    tied: fields.flag("tie_word_embeddings", true),
    residualF32: fields.flag("residual_in_fp32", true),
  })
}

function rankOf(fields: Fields, name: string, dim: number): number {
  return fields.raw[name] === "auto" ? Math.ceil(dim / 16) : fields.count(name, { absent: Math.ceil(dim / 16) })
}

/** Each size has its limit; their product must stay one that a tensor can have. */
function checkSizes(fields: Fields, config: MambaConfig): MambaConfig {
  if (!(config.inner >= 1)) fields.refuse("at least one inner channel", `expand ${config.expand}`)
  const largest = Math.max(config.vocab * config.dim, 2 * config.inner * config.dim)
  if (!(largest <= 2 ** 40)) fields.refuse("matrices of at most 2^40 elements", `${largest}`)
  return config
}

function toOriginal(config: MambaConfig): Record<string, unknown> {
  const { dim, vocab, inner, expand, normEps } = config
  const say = (what: string) =>
    `config.json: expected a config that the original form can say, got ${what}; write the transformers form`
  expect(normEps === originalEps, "BAD_CHECKPOINT", () => say(`normEps ${normEps}`))
  expect(Math.floor(expand * dim) === inner, "BAD_CHECKPOINT", () => say(`inner ${inner} with expand ${expand}`))
  return {
    d_model: dim,
    d_intermediate: 0,
    n_layer: config.layers,
    vocab_size: vocab,
    ssm_cfg: {
      layer: "Mamba1",
      d_state: config.state,
      d_conv: config.conv,
      expand,
      dt_rank: config.rank,
      conv_bias: config.convBias,
      bias: config.projBias,
    },
    attn_layer_idx: [],
    attn_cfg: {},
    rms_norm: true,
    residual_in_fp32: config.residualF32,
    fused_add_norm: true,
    pad_vocab_size_multiple: vocab % originalPadding === 0 ? originalPadding : 1,
    tie_embeddings: config.tied,
  }
}

function toTransformers(config: MambaConfig): Record<string, unknown> {
  return {
    architectures: ["MambaForCausalLM"],
    model_type: "mamba",
    hidden_size: config.dim,
    num_hidden_layers: config.layers,
    vocab_size: config.vocab,
    state_size: config.state,
    conv_kernel: config.conv,
    expand: config.expand,
    intermediate_size: config.inner,
    time_step_rank: config.rank,
    use_conv_bias: config.convBias,
    use_bias: config.projBias,
    hidden_act: "silu",
    layer_norm_epsilon: config.normEps,
    tie_word_embeddings: config.tied,
    residual_in_fp32: config.residualF32,
  }
}
