/**
 * Mamba, in both public forms.
 *
 * The original form (state-spaces) has d_model, n_layer and ssm_cfg and no model_type; its vocab_size is rounded up to
 * pad_vocab_size_multiple for the weights; rms_norm false means LayerNorm with a bias, as some MambaByte have it. The transformers form has model_type "mamba", hidden_size and the padded vocab_size,
 * often with leftovers of the original form, which mean nothing. Fields that say nothing about what is computed are ignored
 * (residual_in_fp32: our residual stream is always f32); fields that ask for another architecture are refused.
 */
import type { MambaBlock, ModelConfig } from "../models/config.ts"
import type { Fields } from "./config-fields.ts"
import { patternFamily, type Table } from "./family.ts"
import { blocksOf, depthMost, factorOf } from "./patterns.ts"

/** mamba_ssm fixes it in code: its config has no field for it. */
const originalEps = 1e-5
const originalPadding = 8

export const onlyMamba = (config: ModelConfig) => config.pattern.every(({ kind }) => kind === "mamba")

export const mambaOriginal = patternFamily({
  name: "Mamba",
  naming: "original",
  configFile: "config.json",
  mark: "backbone.embedding.weight",
  // MambaByte's own module says num_layers.
  recognises: ({ raw }) =>
    raw.model_type === undefined &&
    raw.d_model !== undefined &&
    (raw.n_layer !== undefined || raw.num_layers === undefined),
  read: readOriginal,
  suits: onlyMamba,
  write: writeOriginal,
  tensors: (table) => backbone(table, "embedding"),
})

export const mambaTransformers = patternFamily({
  name: "Mamba",
  naming: "transformers",
  configFile: "config.json",
  mark: "backbone.embeddings.weight",
  recognises: ({ raw }) => raw.model_type === "mamba" && !isFalcon(raw),
  // use_bias: the class's default; the published files say false.
  read: (fields) => readTransformers(fields, { use_bias: true }),
  suits: onlyMamba,
  write: (config) => transformersFields(config, "mamba", "MambaForCausalLM"),
  tensors: (table) => backbone(table, "embeddings"),
})

/** Whether a file of transformers is Falcon-Mamba's: a quantised one calls itself mamba, and its class or its norms give it away. */
export const isFalcon = (raw: Fields["raw"]): boolean =>
  raw.model_type === "falcon_mamba" ||
  (raw.model_type === "mamba" &&
    (raw.mixer_rms_eps !== undefined || JSON.stringify(raw.architectures ?? []).includes("FalconMamba")))

/** Our names are the original ones; transformers has its own for the embedding. */
export function backbone(table: Table, embedding: string): void {
  table.same(`backbone.${embedding}.weight`, "backbone.embedding.weight")
  table.below("backbone.layers", "backbone.layers")
  table.below("backbone.norm_f", "backbone.norm_f")
  table.head("lm_head.weight", `backbone.${embedding}.weight`)
}

function readOriginal(fields: Fields): ModelConfig {
  const ssm = fields.optionalObject("ssm_cfg") ?? fields.empty("ssm_cfg")
  const mlp = fields.raw.d_intermediate ?? 0
  fields.require(mlp === 0, "d_intermediate", "0, without MLP layers")
  const attention = fields.raw.attn_layer_idx ?? []
  fields.require(Array.isArray(attention) && attention.length === 0, "attn_layer_idx", "[], without attention layers")
  ssm.require((ssm.raw.layer ?? "Mamba1") === "Mamba1", "layer", '"Mamba1"')

  const dim = fields.count("d_model")
  const padding = fields.count("pad_vocab_size_multiple", { absent: originalPadding })
  const block: MambaBlock = {
    kind: "mamba",
    state: ssm.count("d_state", { absent: 16, most: 64 }),
    conv: ssm.count("d_conv", { absent: 4, least: 2, most: 4 }),
    inner: Math.floor(ssm.positive("expand", 2) * dim),
    rank: rankOf(ssm, "dt_rank", dim),
    convBias: ssm.flag("conv_bias", true),
    bias: ssm.flag("bias", false),
  }
  return {
    dim,
    vocab: Math.ceil(fields.count("vocab_size") / padding) * padding,
    depth: fields.count("n_layer", { most: depthMost }),
    pattern: [block],
    tied: fields.flag("tie_embeddings", true),
    normEps: originalEps,
    ...(!fields.flag("rms_norm", true) && { norm: "layer" }),
  }
}

/** What Mamba's and Falcon-Mamba's files have in common; `absent` is what a class takes for fields that a file lacks. */
export function readTransformers(
  fields: Fields,
  absent: { readonly use_bias: boolean },
  own: Partial<MambaBlock> = {},
): ModelConfig {
  const activation = fields.raw.hidden_act ?? "silu"
  fields.require(activation === "silu" || activation === "swish", "hidden_act", '"silu"')
  const dim = fields.count("hidden_size")
  const block: MambaBlock = {
    kind: "mamba",
    state: fields.count("state_size", { absent: 16, most: 64 }),
    conv: fields.count("conv_kernel", { absent: 4, least: 2, most: 4 }),
    // Where both are stated and differ, the weights have intermediate_size. A leftover d_inner is often wrong.
    inner: fields.count("intermediate_size", { absent: Math.floor(fields.positive("expand", 2) * dim) }),
    rank: rankOf(fields, "time_step_rank", dim),
    convBias: fields.flag("use_conv_bias", true),
    bias: fields.flag("use_bias", absent.use_bias),
    ...own,
  }
  return {
    dim,
    vocab: fields.count("vocab_size"),
    depth: fields.count("num_hidden_layers", { most: depthMost }),
    pattern: [block],
    tied: fields.flag("tie_word_embeddings", true),
    normEps: fields.positive("layer_norm_epsilon", 1e-5),
  }
}

function rankOf(fields: Fields, name: string, dim: number): number {
  return fields.raw[name] === "auto" ? Math.ceil(dim / 16) : fields.count(name, { absent: Math.ceil(dim / 16) })
}

function writeOriginal(config: ModelConfig): Record<string, unknown> {
  const { dim, vocab, depth, tied } = config
  const block = blocksOf(config)[0] as MambaBlock
  return {
    d_model: dim,
    d_intermediate: 0,
    n_layer: depth,
    vocab_size: vocab,
    ssm_cfg: {
      layer: "Mamba1",
      d_state: block.state,
      d_conv: block.conv,
      expand: factorOf(block.inner, dim),
      dt_rank: block.rank,
      conv_bias: block.convBias,
      bias: block.bias,
    },
    attn_layer_idx: [],
    attn_cfg: {},
    rms_norm: config.norm === undefined,
    residual_in_fp32: true,
    fused_add_norm: true,
    pad_vocab_size_multiple: vocab % originalPadding === 0 ? originalPadding : 1,
    tie_embeddings: tied,
  }
}

export function transformersFields(config: ModelConfig, type: string, architecture: string): Record<string, unknown> {
  const block = blocksOf(config)[0] as MambaBlock
  return {
    architectures: [architecture],
    model_type: type,
    hidden_size: config.dim,
    num_hidden_layers: config.depth,
    vocab_size: config.vocab,
    state_size: block.state,
    conv_kernel: block.conv,
    expand: factorOf(block.inner, config.dim),
    intermediate_size: block.inner,
    time_step_rank: block.rank,
    use_conv_bias: block.convBias,
    use_bias: block.bias,
    hidden_act: "silu",
    layer_norm_epsilon: config.normEps,
    tie_word_embeddings: config.tied,
    residual_in_fp32: true,
  }
}
