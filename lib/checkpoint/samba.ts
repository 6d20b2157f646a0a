/**
 * SAMBA and the models that its paper compares it with, as microsoft/Samba (lit_gpt) writes them: lit_config.json, whose flags say
 * which mixer each of its n_layer layers has, and an MLP after it. We write the flags out as a pattern of blocks; `samba-tensors.ts`
 * has the names.
 *
 * An absent field means what it means there, which is often a model that we refuse (bias and parallel_residual are true, the norm is
 * LayerNorm). The sizes of Mamba, of gated linear attention and of retention are fixed in that code.
 */
import type { AttentionBlock, BlockConfig, ModelConfig } from "../models/config.ts"
import type { Fields } from "./config-fields.ts"
import { patternFamily } from "./family.ts"
import { depthMost, patternOf } from "./patterns.ts"
import { sambaTensors } from "./samba-tensors.ts"
import { neverFull, writeSamba } from "./samba-writer.ts"

export const samba = patternFamily({
  name: "SAMBA",
  naming: "samba",
  configFile: "lit_config.json",
  mark: "transformer.wte.weight",
  // GPT-2 has the two fields too, and a model_type.
  recognises: ({ raw }) => raw.model_type === undefined && raw.n_embd !== undefined && raw.n_layer !== undefined,
  read: (fields) => (fields.flag("mamba", false) ? readMamba(fields) : readLayers(fields)),
  suits: () => true,
  write: writeSamba,
  tensors: sambaTensors,
})

/** A stack of Mamba blocks, which looks at few of the fields. */
function readMamba(fields: Fields): ModelConfig {
  fields.require(fields.flag("rms_norm", true), "rms_norm", "true, for LayerNorm is not supported")
  const dim = fields.count("n_embd")
  return {
    ...shared(fields, dim),
    depth: fields.count("n_layer", { absent: 16, most: depthMost }),
    pattern: [mambaBlock(dim)],
    tied: true,
  }
}

const shared = (fields: Fields, dim: number) => ({
  dim,
  vocab: vocabOf(fields),
  normEps: fields.positive("norm_eps", 1e-5),
})

function vocabOf(fields: Fields): number {
  const vocab = fields.count("vocab_size", { absent: 50254 })
  const padding = fields.count("padding_multiple", { absent: 512 })
  return fields.count("padded_vocab_size", { absent: Math.ceil(vocab / padding) * padding, least: vocab })
}

function readLayers(fields: Fields): ModelConfig {
  const off = ["use_mega", "shared_attention_norm"]
  for (const name of off) fields.require(!fields.flag(name, false), name, "false")
  for (const name of ["parallel_residual", "bias"]) fields.require(!fields.flag(name, true), name, "false")
  const norm = fields.raw._norm_class ?? "LayerNorm"
  fields.require(norm === "FusedRMSNorm" || norm === "RMSNorm", "_norm_class", '"FusedRMSNorm" or "RMSNorm"')
  fields.require((fields.raw.condense_ratio ?? 1) === 1, "condense_ratio", "1")
  fields.require(fields.flag("mlp", true), "mlp", "true")
  fields.require(fields.raw._mlp_class === "LLaMAMLP", "_mlp_class", '"LLaMAMLP"')
  const dim = fields.count("n_embd", { absent: 4096 })
  const layers = fields.count("n_layer", { absent: 16, most: Math.floor(depthMost / 3) })
  const mlp: BlockConfig = { kind: "swiglu", inner: fields.count("intermediate_size") }
  const mixers = mixersOf(fields, dim)
  const blocks = Array.from({ length: layers }, (_, i) => [...mixers(i), mlp]).flat()
  return {
    ...shared(fields, dim),
    depth: blocks.length,
    pattern: patternOf(blocks),
    tied: fields.flag("mamba_init", false),
  }
}

const mambaBlock = (dim: number): BlockConfig => ({
  kind: "mamba",
  state: 16,
  conv: 4,
  inner: 2 * dim,
  rank: Math.ceil(dim / 16),
  convBias: true,
  bias: false,
})

/** The blocks of a layer before its MLP, by the layer's index. */
function mixersOf(fields: Fields, dim: number): (layer: number) => BlockConfig[] {
  const attention = attentionOf(fields, dim)
  if (fields.flag("mamba_swa_mlp", false)) return (layer) => [mambaBlock(dim), attention(layer)]
  const instead: BlockConfig = fields.flag("abl_mamba", false) ? { kind: "swiglu", inner: 2 * dim } : mambaBlock(dim)
  const at = attentionPositions(fields)
  if (at !== undefined) return (layer) => [at.includes(layer) ? attention(layer) : instead]
  const every = (name: string) => {
    const period = fields.count(name, { absent: -1, least: -(2 ** 24) })
    return (layer: number) => period > 0 && layer % period === 0
  }
  const [isMamba, isRetention, isGla] = [every("mb_per_layer"), every("ret_per_layer"), every("gla_per_layer")]
  return (layer) => {
    if (isMamba(layer)) return [instead]
    if (isRetention(layer)) return [retentionBlock(fields)]
    if (isGla(layer)) return [glaBlock(fields, dim)]
    return [attention(layer)]
  }
}

function retentionBlock(fields: Fields): BlockConfig {
  const heads = Math.floor(fields.count("n_head", { absent: 32 }) / 2)
  fields.require(heads >= 1, "n_head", "at least 2, two for each head of retention")
  return { kind: "retention", heads, expandK: 1, expandV: 2 }
}

function glaBlock(fields: Fields, dim: number): BlockConfig {
  const heads = Math.floor(dim / 384)
  fields.require(heads >= 1, "n_embd", "at least 384, for a head of gated linear attention")
  return { kind: "gla", heads, expandK: 0.5, expandV: 1 }
}

/** The layers with attention, `[1, 5]` as Python writes it; all others are Mamba. undefined where the field is not given. */
function attentionPositions(fields: Fields): readonly number[] | undefined {
  const text = fields.raw.attn_layer_pos ?? undefined
  if (text === undefined) return undefined
  // Spaces apart, which must not join two numbers: then the pattern has one way to match.
  const spaced = typeof text === "string" && !/\d\s+\d/.test(text)
  const list = spaced && /^\[(?:\d{1,4}(?:,\d{1,4})*,?)?\]$/.test(text.replaceAll(/\s/g, ""))
  fields.require(list, "attn_layer_pos", 'a list of layers in text, such as "[1, 5]"')
  const layers = (text as string).match(/\d+/g)?.map(Number) ?? []
  const most = fields.count("n_layer", { absent: 16 }) - 1
  fields.require(
    layers.every((layer) => layer <= most),
    "attn_layer_pos",
    `layers from 0 to ${most}`,
  )
  return layers
}

/** Attention over local_window keys, except in the last of every full_per_layer layers. */
function attentionOf(fields: Fields, dim: number): (layer: number) => AttentionBlock {
  const heads = fields.count("n_head", { absent: 32 })
  fields.require(dim % heads === 0, "n_head", `a divisor of n_embd, ${dim}`)
  const kvHeads = fields.count("n_query_groups", { absent: heads })
  fields.require(heads % kvHeads === 0, "n_query_groups", `a divisor of n_head, ${heads}`)
  const headDim = dim / heads
  const window = fields.count("local_window", { absent: -1, least: -1 })
  fields.require(window !== 0, "local_window", "at least 1, the query's own key, or -1 for no window")
  const period = fields.count("full_per_layer", { absent: neverFull })
  const block = {
    kind: "attention",
    heads,
    kvHeads,
    headDim,
    contextMax: fields.count("block_size", { absent: 4096 }),
    rope: ropeOf(fields, headDim),
    conv: fields.flag("sc_attn", false) ? 4 : 0,
  } as const
  return (layer) => ({ ...block, window: window > 0 && layer % period < period - 1 ? window : 0 })
}

function ropeOf(fields: Fields, headDim: number): AttentionBlock["rope"] {
  if (fields.flag("nope", false)) return false
  const rotary = Math.floor(fields.positive("rotary_percentage", 0.25, 1) * headDim)
  const even = rotary >= 2 && rotary % 2 === 0
  fields.require(even, "rotary_percentage", `a share of the head's ${headDim} columns that is an even number`)
  return { base: 10000, rotary, interleaved: false }
}
