/**
 * Llama as transformers writes it: attention over all positions and a gated MLP in every layer. Three tensors hold what is one of ours,
 * the rows q, k and v. Its config has many fields for serving and training, which are ignored; those that change what is computed
 * are refused unless they are off.
 */
import type { AttentionBlock, ModelConfig, SwiGLUBlock } from "../models/config.ts"
import type { Fields } from "./config-fields.ts"
import { patternFamily, type Table } from "./family.ts"
import { blocksOf, depthMost, isAttention, positionsOf } from "./patterns.ts"

/** Larger than any published base. */
const baseMost = 1e12

/** Older files hold the frequencies of the rotary positions, which follow from the base. */
export const rotaryBuffers = /(^|\.)rotary_emb\.inv_freq$/

export const llama = patternFamily({
  name: "Llama",
  naming: "transformers",
  configFile: "config.json",
  mark: "model.embed_tokens.weight",
  ignored: rotaryBuffers,
  recognises: ({ raw }) => raw.model_type === "llama",
  read: (fields) => readTransformer(fields, { window: 0, positions: 2048 }),
  suits: (config) =>
    isTransformer(config) && config.pattern.every((block) => !isAttention(block) || block.window === 0),
  write: (config) => {
    const fields = transformerFields(config, "llama", "LlamaForCausalLM", 2048)
    return { ...fields, attention_bias: false, mlp_bias: false, rope_scaling: null, pretraining_tp: 1 }
  },
  tensors: transformerTensors,
})

/** Attention with positions and without a short convolution, then an MLP, layer by layer. */
export function isTransformer({ pattern }: ModelConfig): boolean {
  const kinds = pattern.map(({ kind }, i) => kind === (i % 2 === 0 ? "attention" : "swiglu"))
  return pattern.length % 2 === 0 && kinds.every(Boolean)
}

/** What the two classes differ in. */
interface Forms {
  readonly window: number
  /** What an absent max_position_embeddings means. */
  readonly positions: number
  /** What an absent num_key_value_heads means; null means the heads, as in every class. */
  readonly kvHeads?: number
}

/** What Llama's and Mistral's files have in common. */
export function readTransformer(fields: Fields, { window, positions, kvHeads: absentKv }: Forms): ModelConfig {
  const { raw } = fields
  const activation = raw.hidden_act ?? "silu"
  fields.require(activation === "silu" || activation === "swish", "hidden_act", '"silu"')
  for (const name of ["attention_bias", "mlp_bias"]) fields.require(!fields.flag(name, false), name, "false")
  for (const place of [fields, fields.optionalObject("rope_parameters")]) {
    place?.require((place.raw.partial_rotary_factor ?? 1) === 1, "partial_rotary_factor", "1")
  }
  const dim = fields.count("hidden_size")
  const heads = fields.count("num_attention_heads")
  const absent = raw.num_key_value_heads === null ? heads : (absentKv ?? heads)
  const kvHeads = fields.count("num_key_value_heads", { absent })
  fields.require(heads % kvHeads === 0, "num_key_value_heads", `a divisor of num_attention_heads, ${heads}`)
  const implied = raw.head_dim === undefined || raw.head_dim === null
  fields.require(!implied || dim % heads === 0, "num_attention_heads", `a divisor of hidden_size, ${dim}`)
  const headDim = fields.count("head_dim", { absent: dim / heads, most: 256 })
  fields.require(headDim % 2 === 0, "head_dim", "even, for the halves of a head turn together")
  const attention: AttentionBlock = {
    kind: "attention",
    heads,
    kvHeads,
    headDim,
    window,
    contextMax: fields.count("max_position_embeddings", { absent: positions }),
    rope: { base: ropeBase(fields), rotary: headDim, interleaved: false },
    conv: 0,
  }
  const mlp: SwiGLUBlock = { kind: "swiglu", inner: fields.count("intermediate_size") }
  return {
    dim,
    vocab: fields.count("vocab_size"),
    depth: 2 * fields.count("num_hidden_layers", { most: depthMost / 2 }),
    pattern: [attention, mlp],
    tied: fields.flag("tie_word_embeddings", false),
    normEps: fields.positive("rms_norm_eps", 1e-6),
  }
}

/** Newer files put the base into rope_parameters, beside a kind of scaling that must be none. */
function ropeBase(fields: Fields): number {
  const parameters = fields.optionalObject("rope_parameters")
  for (const [name, scaling] of [
    ["rope_scaling", fields.optionalObject("rope_scaling")],
    ["rope_parameters", parameters],
  ] as const) {
    const kind = scaling?.raw.rope_type ?? scaling?.raw.type ?? (name === "rope_scaling" ? undefined : "default")
    fields.require(scaling === undefined || kind === "default", name, "without scaling")
  }
  const from = parameters?.raw.rope_theta === undefined ? fields : parameters
  const base = from.positive("rope_theta", 10000, baseMost)
  from.require(base > 1, "rope_theta", "above 1")
  return base
}

export function transformerFields(
  config: ModelConfig,
  type: string,
  architecture: string,
  positions: number,
): Record<string, unknown> {
  const blocks = blocksOf(config)
  const [attention, mlp] = [blocks[0] as AttentionBlock, blocks[1] as SwiGLUBlock]
  return {
    architectures: [architecture],
    model_type: type,
    hidden_size: config.dim,
    intermediate_size: mlp.inner,
    num_hidden_layers: config.depth / 2,
    num_attention_heads: attention.heads,
    num_key_value_heads: attention.kvHeads,
    head_dim: attention.headDim,
    hidden_act: "silu",
    max_position_embeddings: positionsOf(blocks, positions),
    rms_norm_eps: config.normEps,
    rope_theta: attention.rope === false ? 10000 : attention.rope.base,
    tie_word_embeddings: config.tied,
    vocab_size: config.vocab,
  }
}

export function transformerTensors(table: Table, config: ModelConfig): void {
  table.same("model.embed_tokens.weight", "backbone.embedding.weight")
  blocksOf(config).forEach((block, i) => {
    const [theirs, ours] = [`model.layers.${Math.floor(i / 2)}`, `backbone.layers.${i}`]
    if (isAttention(block)) {
      const { heads, kvHeads, headDim } = block
      const [queries, keys] = [heads * headDim, kvHeads * headDim]
      const qkv = `${ours}.mixer.qkv.weight`
      table.same(`${theirs}.input_layernorm.weight`, `${ours}.norm.weight`)
      table.rows(`${theirs}.self_attn.q_proj.weight`, [[qkv, 0, queries]])
      table.rows(`${theirs}.self_attn.k_proj.weight`, [[qkv, queries, keys]])
      table.rows(`${theirs}.self_attn.v_proj.weight`, [[qkv, queries + keys, keys]])
      table.same(`${theirs}.self_attn.o_proj.weight`, `${ours}.mixer.out_proj.weight`)
    } else {
      const renamed = {
        "w1.weight": "gate_proj.weight",
        "w2.weight": "up_proj.weight",
        "w3.weight": "down_proj.weight",
      }
      table.same(`${theirs}.post_attention_layernorm.weight`, `${ours}.norm.weight`)
      table.below(`${theirs}.mlp`, `${ours}.mixer`, renamed)
    }
  })
  table.same("model.norm.weight", "backbone.norm_f.weight")
  table.head("lm_head.weight", "model.embed_tokens.weight")
}
