/**
 * Models as data: sizes, and a pattern of blocks that is repeated over the depth.
 */
import { checkOptions, expect, suggestion } from "../errors.ts"
import type { NormKind } from "../layers/norm.ts"
import type { RopeOptions } from "../layers/sliding-attention.ts"

/** The state-space block of Mamba (layers/mamba.ts). */
export interface MambaBlock {
  readonly kind: "mamba"
  readonly state: number
  readonly conv: number
  readonly inner: number
  readonly rank: number
  readonly convBias: boolean
  /** Biases of its two projections. */
  readonly bias: boolean
  /** eps of RMS norms without weights on Δ's low-rank input, B and C, as Falcon-Mamba has them; absent where there are none. */
  readonly mixerNormEps?: number
}

/** Attention over the last `window` keys, or over all of at most `contextMax` where window is 0 (layers/sliding-attention.ts). */
export interface AttentionBlock {
  readonly kind: "attention"
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly window: number
  readonly contextMax: number
  readonly rope: Required<RopeOptions> | false
  readonly conv: number
}

/** The gated MLP (layers/swiglu.ts). */
export interface SwiGLUBlock {
  readonly kind: "swiglu"
  readonly inner: number
}

/** Gated linear attention (layers/gated-linear-attention.ts). */
export interface GLABlock {
  readonly kind: "gla"
  readonly heads: number
  readonly expandK: number
  readonly expandV: number
}

/** Multi-scale retention (layers/retention.ts). */
export interface RetentionBlock {
  readonly kind: "retention"
  readonly heads: number
  readonly expandK: number
  readonly expandV: number
}

export type BlockConfig = MambaBlock | AttentionBlock | SwiGLUBlock | GLABlock | RetentionBlock

/** Everything that decides a model's parameters and what they compute. */
export interface ModelConfig {
  readonly dim: number
  /** Rows of the embedding, padding included. */
  readonly vocab: number
  /** Blocks in all, each y = x + block(norm(x)): a multiple of the pattern. */
  readonly depth: number
  /** Block i of the model is pattern[i mod length]. */
  readonly pattern: readonly BlockConfig[]
  /** The head is the embedding. */
  readonly tied: boolean
  readonly normEps: number
  /** What normalises the stream: LayerNorm with a bias, or where this is absent RMSNorm. */
  readonly norm?: "layer"
  /** What else a file of ours says about the model, such as how it was trained. */
  readonly extra?: Readonly<Record<string, unknown>>
}

/** Blocks by the names that patterns are written in; `sliding` and `full` are attention with and without a window. */
export type BlockName = "mamba" | "sliding" | "full" | "swiglu" | "gla" | "retention"

/** Sizes of blocks. Whatever a pattern's entry leaves open comes from the model's, then from the defaults. */
export interface BlockSize {
  /** States per channel of the scan. Default 16 (Mamba §3.6). */
  readonly state?: number
  /** Taps of Mamba's convolution. Default 4. */
  readonly conv?: number
  /** Width inside a Mamba block over dim. Default 2 (Mamba §3.4). */
  readonly expand?: number
  /** Width inside a Mamba block, where it is not ⌊expand·dim⌋. */
  readonly inner?: number
  /** Rank of the projection of Δ. Default ⌈dim/16⌉. */
  readonly rank?: number
  /** Default true. */
  readonly convBias?: boolean
  /** Biases of Mamba's two projections. Default false. */
  readonly projBias?: boolean
  /** eps of RMS norms without weights on Mamba's Δ, B and C. Default: none of them (Falcon-Mamba has 1e-6). */
  readonly mixerNormEps?: number
  /** Query heads of attention; retention has half as many. Default dim/64, at least 1. In an entry of `gla` its own: default dim/384. */
  readonly heads?: number
  /** Heads of k and v. Default heads. */
  readonly kvHeads?: number
  /** Default dim/heads. */
  readonly headDim?: number
  /** Keys that `sliding` sees. Default 2048 (SAMBA §2.2). */
  readonly window?: number
  /** Positions that `full` can have. Default 4096. */
  readonly contextMax?: number
  /** Default base 10000 on all of a head, halves as pairs. */
  readonly rope?: RopeOptions | false
  /** Taps of the short convolution on q, k and v; 0 is none. Default 0. */
  readonly shortConv?: number
  /** Width inside `swiglu`. Default 8·dim/3 rounded up to a multiple of 64. */
  readonly mlp?: number
}

/** What people write: sizes, and the pattern by names. Default pattern: Mamba blocks alone. */
export interface ModelSize extends BlockSize {
  readonly dim: number
  /** Blocks in all, mixers and MLPs alike. */
  readonly layers: number
  readonly vocab: number
  readonly pattern?: readonly (BlockName | ({ readonly block: BlockName } & BlockSize))[]
  /** Default true. */
  readonly tied?: boolean
  /** Default 1e-5. */
  readonly normEps?: number
  /** RMSNorm, or LayerNorm with a bias (MambaByte's own module). Default "rms". */
  readonly norm?: NormKind
  readonly extra?: Readonly<Record<string, unknown>>
}

/** SAMBA's pattern (§2.1). */
export const sambaPattern = ["mamba", "swiglu", "sliding", "swiglu"] as const satisfies readonly BlockName[]

const attentionSizes = ["heads", "kvHeads", "headDim", "rope", "shortConv"] as const
/** What a block reads of its sizes: an entry of a pattern that states another would mean nothing by it. */
const sizesOf: Readonly<Record<BlockName, readonly (keyof BlockSize)[]>> = {
  mamba: ["state", "conv", "expand", "inner", "rank", "convBias", "projBias", "mixerNormEps"],
  sliding: [...attentionSizes, "window"],
  full: [...attentionSizes, "contextMax"],
  swiglu: ["mlp"],
  gla: ["heads"],
  retention: ["heads"],
}
const modelSizes = [
  ...["dim", "layers", "vocab", "pattern", "tied", "normEps", "norm", "extra"],
  ...Object.values(sizesOf).flat(),
]
const depthMost = 4096

/**
 * The full configuration of a size.
 * @throws BAD_OPTION for a name that is none, a number out of its range, heads that do not divide, or a pattern that does not fit
 * @example modelConfig({ dim: 256, layers: 8, vocab: 256, pattern: sambaPattern, heads: 4, window: 128 })
 */
export function modelConfig(size: ModelSize): ModelConfig {
  checkOptions("model", size, modelSizes)
  const { dim, layers, vocab, pattern = ["mamba"], tied = true, normEps = 1e-5, norm = "rms", extra, ...shared } = size
  for (const [name, value] of Object.entries({ dim, layers, vocab })) whole("model", name, value)
  flag("model", "tied", tied)
  expect(layers <= depthMost, "BAD_OPTION", () => `model: layers is at most ${depthMost}, got ${layers}`)
  expect(Array.isArray(pattern), "BAD_OPTION", () => `model: pattern is an array of blocks, got ${pattern}`)
  expect(
    pattern.length > 0 && layers % pattern.length === 0,
    "BAD_OPTION",
    () =>
      `model: a pattern fits into the layers a whole number of times, got ${pattern.length} blocks for ${layers} layers`,
  )
  expect(
    Number.isFinite(normEps) && normEps > 0,
    "BAD_OPTION",
    () => `model: normEps is a number above 0, got ${normEps}`,
  )
  expect(norm === "rms" || norm === "layer", "BAD_OPTION", () => `model: norm is rms or layer, got ${norm}`)
  const blocks = pattern.map((entry, i) => blockOf(`model: pattern[${i}]`, dim, defined(shared), entry))
  const layerNorm = norm === "layer" && { norm }
  return { dim, vocab, depth: layers, pattern: blocks, tied, normEps, ...layerNorm, ...(extra && { extra }) }
}

/** `own` is what the pattern's entry itself states. */
type Make = (dim: number, size: BlockSize, own: BlockSize) => BlockConfig

const makers: Readonly<Record<BlockName, Make>> = {
  mamba,
  sliding: (dim, size) => attention(dim, size, size.window ?? 2048),
  full: (dim, size) => attention(dim, size, 0),
  swiglu: (dim, { mlp = Math.ceil((8 * dim) / 3 / 64) * 64 }) => ({ kind: "swiglu", inner: mlp }),
  // Yang et al. 2023 with the sizes of SAMBA's comparison (lit_gpt: heads of 384 value columns).
  gla: (dim, _, { heads = Math.max(1, Math.floor(dim / 384)) }) => ({ kind: "gla", heads, expandK: 0.5, expandV: 1 }),
  retention: (dim, { heads }) => ({
    kind: "retention",
    heads: Math.max(1, Math.floor((heads ?? defaultHeads(dim)) / 2)),
    expandK: 1,
    expandV: 2,
  }),
}

function mamba(dim: number, size: BlockSize): BlockConfig {
  const { state = 16, conv = 4, expand = 2, rank = Math.ceil(dim / 16), convBias = true, projBias: bias = false } = size
  const { inner = Math.floor(expand * dim), mixerNormEps } = size
  expect(
    mixerNormEps === undefined || (Number.isFinite(mixerNormEps) && mixerNormEps > 0),
    "BAD_OPTION",
    () => `model: mixerNormEps is a number above 0, got ${mixerNormEps}`,
  )
  const norms = mixerNormEps !== undefined && { mixerNormEps }
  return { kind: "mamba", state, conv, inner, rank, convBias, bias, ...norms }
}

const defaultHeads = (dim: number) => Math.max(1, Math.floor(dim / 64))

function attention(dim: number, size: BlockSize, window: number): AttentionBlock {
  const { heads = defaultHeads(dim), kvHeads = heads, headDim = dim / heads, contextMax = 4096, shortConv = 0 } = size
  const given = size.rope ?? {}
  const rope = given !== false && { base: 10000, rotary: headDim, interleaved: false, ...defined(given) }
  return { kind: "attention", heads, kvHeads, headDim, window, contextMax, rope, conv: shortConv }
}

function blockOf(
  where: string,
  dim: number,
  shared: BlockSize,
  entry: NonNullable<ModelSize["pattern"]>[number],
): BlockConfig {
  const names = Object.keys(makers)
  expect(
    typeof entry === "string" || typeof entry?.block === "string",
    "BAD_OPTION",
    () =>
      `${where}: a block is a name or an object with its name as block, got ${entry}; known are ${names.join(", ")}`,
  )
  const { block, ...own } = typeof entry === "string" ? { block: entry } : entry
  expect(names.includes(block), "BAD_OPTION", () => `${where}: unknown block ${block}, ${suggestion(block, names)}`)
  checkOptions(where, own, sizesOf[block])
  const stated: BlockSize = defined(own)
  const size = { ...shared, ...stated }
  for (const name of ["convBias", "projBias"] as const) flag(where, name, size[name] ?? false)
  const { rope = {} } = size
  expect(
    rope === false || (typeof rope === "object" && rope !== null),
    "BAD_OPTION",
    () => `${where}: rope is false or an object of its options, got ${rope}`,
  )
  const config = makers[block](dim, size, stated)
  expect(
    block !== "sliding" || (config as AttentionBlock).window >= 1,
    "BAD_OPTION",
    () =>
      `${where}: window is at least 1, the query's own key, got ${(config as AttentionBlock).window}; name the block full for no window`,
  )
  return config
}

/** The options without those that are undefined, which would hide a default. */
const defined = (options: object) =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined))

/** Text such as "false" would count as true. */
function flag(where: string, name: string, value: unknown): void {
  expect(typeof value === "boolean", "BAD_OPTION", () => `${where}: ${name} is true or false, got ${value}`)
}

/** Holds a number to be a whole one of at least 1. */
function whole(where: string, name: string, value: unknown): void {
  expect(
    Number.isSafeInteger(value) && (value as number) >= 1,
    "BAD_OPTION",
    () => `${where}: ${name} is a whole number of at least 1, got ${value}`,
  )
}
