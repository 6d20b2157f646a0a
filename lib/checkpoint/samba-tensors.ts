/**
 * Layers and tensors of SAMBA's files. One difference to ours is more than a name: the rows of `attn.attn.weight` are, for each kv head,
 * its query heads, its key head, its value head; ours are all of q, then k, then v.
 */
import type { AttentionBlock, BlockConfig, ModelConfig } from "../models/config.ts"
import type { Table } from "./family.ts"
import { blocksOf, isAttention } from "./patterns.ts"

interface Layers {
  /** Mamba blocks alone; or a mixer and an MLP in each layer; or Mamba, attention and an MLP. */
  readonly form: "mamba" | "layers" | "triples"
  /** For each layer the mixer that its flags choose; in a triple that is the attention. */
  readonly mixers: readonly BlockConfig[]
  /** Width of the MLPs, where there are any. */
  readonly mlp?: number
}

/** The layers that blocks make up. A pattern that is none of the forms is taken for layers, and will not read the same. */
export function layersOf(blocks: readonly BlockConfig[]): Layers {
  const every = (period: number, at: number, kind: BlockConfig["kind"]) =>
    blocks.length % period === 0 && blocks.every((block, i) => i % period !== at || block.kind === kind)
  const take = (period: number, at: number) => blocks.filter((_, i) => i % period === at)
  const width = blocks.find((block, i) => i > 0 && block.kind === "swiglu") as { inner: number } | undefined
  const mlp = width && { mlp: width.inner }
  if (every(1, 0, "mamba")) return { form: "mamba", mixers: blocks }
  const triples = every(3, 0, "mamba") && every(3, 1, "attention") && every(3, 2, "swiglu")
  if (triples) return { form: "triples", mixers: take(3, 1), ...mlp }
  return { form: "layers", mixers: take(2, 0), ...mlp }
}

/** Norm and mixer of each block of a layer, below `transformer.h.{i}`. */
const places = {
  mamba: [{ norm: "norm", mixer: "mixer" }],
  layers: [
    { norm: "norm_1", mixer: "attn" },
    { norm: "norm_2", mixer: "mlp" },
  ],
  triples: [
    { norm: "norm_m", mixer: "mb" },
    { norm: "norm_attn", mixer: "attn" },
    { norm: "norm_2", mixer: "mlp" },
  ],
} as const

export function sambaTensors(table: Table, config: ModelConfig): void {
  const blocks = blocksOf(config)
  const inLayer = places[layersOf(blocks).form]
  table.same("transformer.wte.weight", "backbone.embedding.weight")
  blocks.forEach((block, i) => {
    const { norm, mixer } = inLayer[i % inLayer.length]!
    const [layer, ours] = [`transformer.h.${Math.floor(i / inLayer.length)}`, `backbone.layers.${i}`]
    table.same(`${layer}.${norm}.weight`, `${ours}.norm.weight`)
    if (isAttention(block)) attentionTensors(table, `${layer}.${mixer}`, `${ours}.mixer`, block)
    else table.below(block.kind === "swiglu" ? `${layer}.${mixer}.swiglu` : `${layer}.${mixer}`, `${ours}.mixer`)
  })
  table.same("transformer.ln_f.weight", "backbone.norm_f.weight")
  table.head("lm_head.weight", "transformer.wte.weight")
}

function attentionTensors(table: Table, theirs: string, ours: string, block: AttentionBlock): void {
  const { heads, kvHeads, headDim, conv } = block
  const qkv = `${ours}.qkv.weight`
  const group = heads / kvHeads
  const groups = Array.from({ length: kvHeads }, (_, g) => [
    [qkv, g * group * headDim, group * headDim] as const,
    [qkv, (heads + g) * headDim, headDim] as const,
    [qkv, (heads + kvHeads + g) * headDim, headDim] as const,
  ])
  table.rows(`${theirs}.attn.weight`, groups.flat())
  table.same(`${theirs}.proj.weight`, `${ours}.out_proj.weight`)
  if (conv === 0) return
  const [queries, keys] = [heads * headDim, kvHeads * headDim]
  for (const [name, row, rows] of [
    ["q", 0, queries],
    ["k", queries, keys],
    ["v", queries + keys, keys],
  ] as const) {
    table.rows(`${theirs}.${name}_conv1d.weight`, [[`${ours}.conv1d.weight`, row, rows]])
  }
}
