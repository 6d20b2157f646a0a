/** A pattern of blocks in the flags of lit_config.json: the fields whose reading comes nearest to it. */
import type { AttentionBlock, BlockConfig, ModelConfig } from "../models/config.ts"
import { blocksOf, factorOf, isAttention, positionsOf } from "./patterns.ts"
import { layersOf } from "./samba-tensors.ts"

/** Larger than any n_layer: every layer is local. */
export const neverFull = 1000000

/** What a model without attention writes there. */
const blockSize = 4096

export function writeSamba(config: ModelConfig): Record<string, unknown> {
  const { dim, vocab, tied, normEps } = config
  const blocks = blocksOf(config)
  const { form, mixers, mlp } = layersOf(blocks)
  const attention = blocks.find(isAttention)
  return {
    org: "selscan",
    name: "selscan",
    block_size: positionsOf(blocks, blockSize),
    vocab_size: vocab,
    padding_multiple: 1,
    padded_vocab_size: vocab,
    n_layer: mixers.length,
    n_head: headsOf(blocks),
    n_embd: dim,
    rotary_percentage: attention?.rope ? factorOf(attention.rope.rotary, attention.headDim) : 1,
    parallel_residual: false,
    bias: false,
    mlp: true,
    ...windowFields(mixers),
    ...mixerFields(form === "layers" ? mixers : [], dim),
    nope: attention?.rope === false,
    mamba: form === "mamba",
    sc_attn: (attention?.conv ?? 0) > 0,
    rms_norm: true,
    residual_in_fp32: true,
    fused_add_norm: true,
    mamba_init: tied,
    use_mega: false,
    mamba_swa_mlp: form === "triples",
    n_query_groups: attention?.kvHeads ?? headsOf(blocks),
    shared_attention_norm: false,
    _norm_class: "FusedRMSNorm",
    norm_eps: normEps,
    _mlp_class: "LLaMAMLP",
    intermediate_size: mlp ?? 4 * dim,
    condense_ratio: 1,
  }
}

/** Retention has half as many heads as n_head says. */
function headsOf(blocks: readonly BlockConfig[]): number {
  const attention = blocks.find(isAttention)
  if (attention) return attention.heads
  const retention = blocks.find((block) => block.kind === "retention")
  return retention ? 2 * retention.heads : 1
}

/** The window, and which layers have none. */
function windowFields(mixers: readonly BlockConfig[]): Record<string, unknown> {
  const attention = mixers.flatMap((block, i) => (isAttention(block) ? [{ layer: i, full: block.window === 0 }] : []))
  const window = mixers.find((block): block is AttentionBlock => isAttention(block) && block.window > 0)?.window ?? -1
  const periods = mixers.map((_, i) => i + 1)
  const fits = (period: number) => attention.every(({ layer, full }) => full === (layer % period === period - 1))
  const full = window > 0 && attention.some(({ full }) => full) ? periods.find(fits) : undefined
  return { local_window: window, full_per_layer: full ?? neverFull }
}

/** Which layers have another mixer than attention, and what it is. */
function mixerFields(mixers: readonly BlockConfig[], dim: number): Record<string, unknown> {
  const other = mixers.find((block) => !isAttention(block))
  const periods = mixers.map((_, i) => i + 1)
  const fits = (period: number) => mixers.every((block, i) => isAttention(block) === i % period > 0)
  const period = other && periods.find(fits)
  const fields = {
    mb_per_layer: -1,
    ret_per_layer: -1,
    gla_per_layer: -1,
    attn_layer_pos: null,
    abl_mamba: other?.kind === "swiglu" && other.inner === 2 * dim,
  }
  if (other === undefined) return fields
  if (other.kind === "retention") return { ...fields, ret_per_layer: period ?? 1 }
  if (other.kind === "gla") return { ...fields, gla_per_layer: period ?? 1 }
  if (period !== undefined) return { ...fields, mb_per_layer: period }
  const positions = mixers.flatMap((block, i) => (isAttention(block) ? [i] : []))
  return { ...fields, attn_layer_pos: `[${positions.join(", ")}]` }
}
