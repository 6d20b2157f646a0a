/** Patterns of blocks as config files need them: written out, found again, judged and compared. */
import type { AttentionBlock, BlockConfig, ModelConfig } from "../models/config.ts"
import type { Fields } from "./config-fields.ts"

/** Far above the deepest model. */
export const depthMost = 4096
/** No kernel takes larger heads, states or convolutions. */
const headDimMost = 256

/** Every block of a model, in order. */
export function blocksOf({ pattern, depth }: ModelConfig): readonly BlockConfig[] {
  return Array.from({ length: depth }, (_, i) => pattern[i % pattern.length]!)
}

/** The shortest pattern that repeats to these blocks. */
export function patternOf(blocks: readonly BlockConfig[]): readonly BlockConfig[] {
  const keys = blocks.map((block) => JSON.stringify(block))
  const repeats = (length: number) => keys.length % length === 0 && keys.every((key, i) => key === keys[i % length])
  const length = blocks.findIndex((_, i) => repeats(i + 1)) + 1
  return blocks.slice(0, length)
}

/** `mamba, swiglu, sliding, swiglu`: a pattern by the names that it is written in, for messages. */
export function patternNames(pattern: readonly BlockConfig[]): string {
  const names = pattern.map((block) =>
    block.kind === "attention" ? (block.window > 0 ? "sliding" : "full") : block.kind,
  )
  return names.length > 8 ? `${names.slice(0, 8).join(", ")}, …` : names.join(", ")
}

export const isAttention = (block: BlockConfig): block is AttentionBlock => block.kind === "attention"

/** Positions that a config file states once for all blocks: those of the blocks that have no window, if any. */
export function positionsOf(blocks: readonly BlockConfig[], absent: number): number {
  const attention = blocks.filter(isAttention)
  return (attention.find(({ window }) => window === 0) ?? attention[0])?.contextMax ?? absent
}

/** The configuration with other positions for blocks that have no window. */
export function withContext(config: ModelConfig, contextMax: number): ModelConfig {
  const pattern = config.pattern.map((block) =>
    isAttention(block) && block.window === 0 ? { ...block, contextMax } : block,
  )
  return { ...config, pattern }
}

/** A factor that gives `whole` when it is multiplied by `size` and cut to a whole number, as readers of factors do. */
export function factorOf(whole: number, size: number): number {
  const exact = whole / size
  return Math.floor(exact * size) === whole ? exact : (whole + 0.5) / size
}

/**
 * What a model says that another does not, as `window 16 of block 2`; undefined where both compute the same. The positions of a block
 * that has a window limit nothing, and are not compared.
 */
export function difference(wanted: ModelConfig, got: ModelConfig): string | undefined {
  for (const name of ["dim", "vocab", "depth", "tied", "normEps"] as const) {
    if (wanted[name] !== got[name]) return `${name} ${wanted[name]}`
  }
  if (wanted.norm !== got.norm) return `norm ${wanted.norm ?? "rms"}`
  const theirs = blocksOf(got)
  for (const [i, block] of blocksOf(wanted).entries()) {
    const other = theirs[i]!
    if (block.kind !== other.kind) return `the kind ${block.kind} of block ${i}`
    for (const name of Object.keys({ ...block, ...other })) {
      if (name === "contextMax" && isAttention(block) && block.window > 0) continue
      const [ours, its] = [block, other].map((one) => (one as unknown as Record<string, unknown>)[name])
      if (canonical(ours) !== canonical(its)) return `${name} ${JSON.stringify(ours) ?? "none"} of block ${i}`
    }
  }
  return undefined
}

/** Text that does not depend on the order of fields. */
function canonical(value: unknown): string | undefined {
  if (typeof value !== "object" || value === null) return JSON.stringify(value)
  return JSON.stringify(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** Holds a model that was read to what its layers can be: no config of a file gets further than here when they cannot. */
export function checkModel(fields: Fields, config: ModelConfig): void {
  const { dim, vocab, depth, pattern } = config
  const fits = depth <= depthMost && depth % pattern.length === 0
  if (!fits)
    fields.refuse(
      `a pattern that fits into at most ${depthMost} blocks`,
      `${pattern.length} blocks for a depth of ${depth}`,
    )
  const widest = pattern.map((block) => checkBlock(fields, block, dim))
  const largest = Math.max(vocab, ...widest) * dim
  // Each size has its limit; a product must stay one that a tensor can have.
  if (!(largest <= 2 ** 40)) fields.refuse("matrices of at most 2^40 elements", `${largest}`)
}

/** Rows of the block's widest matrix over dim columns. */
function checkBlock(fields: Fields, block: BlockConfig, dim: number): number {
  const hold = (condition: boolean, expected: string, got: string) => condition || fields.refuse(expected, got)
  switch (block.kind) {
    case "mamba":
      hold(block.inner >= 1, "at least one inner channel", `${block.inner}`)
      return Math.max(2 * block.inner, (block.inner * (block.rank + 2 * block.state)) / dim)
    case "swiglu":
      return block.inner
    case "attention": {
      const { heads, kvHeads, headDim, rope } = block
      hold(heads % kvHeads === 0, "kv heads that divide the heads", `${kvHeads} for ${heads}`)
      hold(headDim <= headDimMost, `heads of at most ${headDimMost} columns`, `${headDim}`)
      if (rope) {
        const turns = rope.rotary % 2 === 0 && rope.rotary >= 2 && rope.rotary <= headDim
        hold(turns, `an even number of rotary columns, from 2 to the head's ${headDim}`, `${rope.rotary}`)
        hold(rope.base > 1, "a rotary base above 1", `${rope.base}`)
      }
      return (heads + 2 * kvHeads) * headDim
    }
    default: {
      const { kind, heads } = block
      const [keys, values] = [Math.floor(dim * block.expandK), Math.floor(dim * block.expandV)]
      const divide = keys >= heads && values >= heads && keys % heads === 0 && values % heads === 0
      hold(divide, `${kind} heads that divide its keys and values`, `${heads} for ${keys} and ${values}`)
      const fit = keys <= 256 * heads && values <= 512 * heads
      hold(fit, `${kind} heads of at most 256 keys and 512 values`, `${keys / heads} and ${values / heads}`)
      hold(
        kind === "gla" || (keys / heads) % 2 === 0,
        "an even number of keys in a head of retention",
        `${keys / heads}`,
      )
      return Math.max(keys, values)
    }
  }
}
