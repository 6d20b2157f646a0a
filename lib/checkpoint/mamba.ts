/**
 * Mamba, in both public forms.
 *
 * The original form (state-spaces) has d_model, n_layer and ssm_cfg and no model_type; its vocab_size is rounded up to
 * pad_vocab_size_multiple for the weights. The transformers form has model_type "mamba", hidden_size and the padded vocab_size,
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

const onlyMamba = (config: ModelConfig) => config.pattern.every(({ kind }) => kind === "mamba")

export const mambaOriginal = patternFamily({
  name: "Mamba",
  naming: "original",
  configFile: "config.json",
  mark: "backbone.embedding.weight",
  recognises: ({ raw }) => raw.model_type === undefined && raw.d_model !== undefined,
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
  recognises: ({ raw }) => raw.model_type === "mamba",
  read: readTransformers,
  suits: onlyMamba,
  write: writeTransformers,
  tensors: (table) => backbone(table, "embeddings"),
})

/** Our names are the original ones; transformers has its own for the embedding. */
function backbone(table: Table, embedding: string): void {
  table.same(`backbone.${embedding}.weight`, "backbone.embedding.weight")
  table.below("backbone.layers", "backbone.layers")
  table.same("backbone.norm_f.weight", "backbone.norm_f.weight")
  table.head("lm_head.weight", `backbone.${embedding}.weight`)
}

function readOriginal(fields: Fields): ModelConfig {
  const ssm = fields.optionalObject("ssm_cfg") ?? fields.empty("ssm_cfg")
  fields.require(fields.raw.rms_norm !== false, "rms_norm", "true, for LayerNorm is not supported")
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
  }
}

function readTransformers(fields: Fields): ModelConfig {
  const architectures = JSON.stringify(fields.raw.architectures ?? [])
  // A quantised Falcon file calls itself mamba; its norms on delta, B and C give it away.
  const falcon = architectures.includes("FalconMamba") || fields.raw.mixer_rms_eps !== undefined
  if (falcon) fields.refuse("a plain Mamba", "Falcon-Mamba")
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
    bias: fields.flag("use_bias", true), // the class's default; the published files say false
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
    rms_norm: true,
    residual_in_fp32: true,
    fused_add_norm: true,
    pad_vocab_size_multiple: vocab % originalPadding === 0 ? originalPadding : 1,
    tie_embeddings: tied,
  }
}

function writeTransformers(config: ModelConfig): Record<string, unknown> {
  const block = blocksOf(config)[0] as MambaBlock
  return {
    architectures: ["MambaForCausalLM"],
    model_type: "mamba",
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
