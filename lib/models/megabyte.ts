/**
 * MegaByte: a large model over patches of bytes, and a small one over the bytes of each patch.
 */
import { checkOptions, expect } from "../errors.ts"
import { checkpoint } from "../graph/checkpoint.ts"
import { current } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { Embedding } from "../layers/embedding.ts"
import { FeedForward } from "../layers/feed-forward.ts"
import { normal } from "../layers/init.ts"
import { apply, Layer, type Matrix, matrixOf, type Parameter, type Rows } from "../layers/layer.ts"
import { LayerNorm } from "../layers/layer-norm.ts"
import { Linear } from "../layers/linear.ts"
import { RMSNorm } from "../layers/rms-norm.ts"
import { ShiftedResidual } from "../layers/shifted-residual.ts"
import { checkSizes } from "../layers/sizes.ts"
import { SlidingAttention } from "../layers/sliding-attention.ts"
import { cast } from "../ops/cast.ts"
import { gatherRows } from "../ops/columns.ts"
import { add } from "../ops/elementwise.ts"
import { embedding } from "../ops/embedding.ts"
import { fold, patchRows } from "../ops/patches.ts"
import type { LanguageModel } from "./language-model.ts"
import { type Begun, type Local, Patches } from "./patches.ts"

/** Everything that decides a MegaByte's parameters and what it computes. Pairs are of the global and the local stage. */
export interface MegaByteConfig {
  readonly kind: "megabyte"
  readonly vocab: number
  readonly dims: readonly [number, number]
  readonly depths: readonly [number, number]
  /** Patches that a sequence can have, and bytes of one. */
  readonly patches: number
  readonly patch: number
  readonly headDim: number
  readonly heads: number
  /** Columns inside the MLPs over dim. */
  readonly ffMult: number
  /** Rotary positions in attention. */
  readonly relPos: boolean
  /** Learned positions, added to what goes into a stage. */
  readonly posEmb: boolean
  /** What else a file of ours says about the model, such as how it was trained. */
  readonly extra?: Readonly<Record<string, unknown>>
}

type Sizes = "vocab" | "dims" | "depths" | "patches" | "patch"
/** What people write: defaults are those of lucidrains/MEGABYTE-pytorch. */
export type MegaByteSize = Pick<MegaByteConfig, Sizes> & Partial<Omit<MegaByteConfig, Sizes | "kind">>

const depthMost = 4096
const known = [
  ...["kind", "vocab", "dims", "depths", "patches", "patch", "headDim", "heads", "ffMult"],
  ...["relPos", "posEmb", "extra"],
]

/**
 * The full configuration of a size.
 * @throws BAD_OPTION for a number out of its range, and odd heads where positions turn them
 * @example megabyteConfig({ vocab: 256, dims: [512, 256], depths: [6, 2], patches: 1024, patch: 8 })
 */
export function megabyteConfig(size: MegaByteSize): MegaByteConfig {
  checkOptions("MegaByte", size, known)
  const filled = { headDim: 64, heads: 8, ffMult: 4, relPos: false, posEmb: false, ...size, kind: "megabyte" as const }
  for (const [name, pair] of [
    ["dims", filled.dims],
    ["depths", filled.depths],
  ] as const) {
    expect(
      Array.isArray(pair) && pair.length === 2,
      "BAD_OPTION",
      () => `MegaByte: ${name} are two, of the global and the local stage, got ${JSON.stringify(pair)}`,
    )
    checkSizes("MegaByte", { [`${name}[0]`]: pair[0], [`${name}[1]`]: pair[1] })
  }
  const { vocab, dims, depths, patches, patch, headDim, heads, ffMult, relPos } = filled
  checkSizes("MegaByte", { vocab, patches, patch, headDim, heads, ffMult })
  for (const [name, value, least, most] of [
    ["dims[0]", dims[0], 2, 2 ** 20],
    ["dims[1]", dims[1], 2, 2 ** 20],
    ["depths[0]", depths[0], 1, depthMost],
    ["depths[1]", depths[1], 1, depthMost],
    ["patch", patch, 1, 2 ** 12],
    ["patches", patches, 1, 2 ** 24],
    ["headDim", headDim, 1, 256],
  ] as const) {
    const inside = value >= least && value <= most
    expect(inside, "BAD_OPTION", () => `MegaByte: ${name} is a whole number from ${least} to ${most}, got ${value}`)
  }
  expect(
    !relPos || headDim % 2 === 0,
    "BAD_OPTION",
    () => `MegaByte: headDim is even where relPos turns its halves, got ${headDim}`,
  )
  return filled
}

/** The square of the reference's lower bound of 10⁻⁸; what that changes is in the words of `MegaByte`. */
const eps = 1e-16

/**
 * Bytes in patches of P. The global stage has a row for each patch: a start, then the embedding of each patch (its bytes' embeddings
 * side by side, normed, projected, normed). What it says of a patch is projected to P rows and added to the bytes of that patch in the
 * local stage, which sees a start and the bytes of its own patch alone. Both stages are pre-norm Transformers whose rows are shifted
 * by half before each block (layers/shifted-residual.ts).
 *
 *   global[m] = patch(bytes of m − 1) + pos[m − 1]      global[0] = start      local[m, i] = byte + pos[i] + (project(global)[m])[i]
 *
 * A sequence begins with a row that carries no byte; rows are numbered, and cut into runs, as models/patches.ts says. Runs inside a patch
 * leave the global stage out: that is what makes the model fast. Attention keeps the keys of all patches, and of the bytes of one.
 *
 * Parameters: `token_embs.0.weight`, of patches `token_embs.1.{0,2,3,4}.*`, `start_tokens.{0,1}`, `pos_embs.{0,1}.weight`,
 * `transformers.{0,1}.layers.N.0` (attention) and `.1` (MLP), each `norm.weight` and `mixer.*`, `transformers.{0,1}.norm.weight`,
 * `to_next_transformer_projections.0.1.*`, `to_logits.*`.
 *
 * RMSNorm's bound of 10⁻⁸ is taken as eps = 10⁻¹⁶ inside the root: for rows of norm √dim·r the two differ by a factor of √(1 + 10⁻¹⁶/r²),
 * which f32 does not see above r = 3·10⁻⁵.
 * @see Yu et al. 2023, arXiv:2305.07185, §2; lucidrains/MEGABYTE-pytorch, whose form it has, with two stages
 * @example new MegaByte(megabyteConfig({ vocab: 256, dims: [512, 256], depths: [6, 2], patches: 1024, patch: 8, posEmb: true }))
 */
export class MegaByte extends Layer implements LanguageModel {
  readonly config: MegaByteConfig
  readonly patches: Patches
  readonly #bytes: Embedding
  readonly #patch: PatchEmbedding
  readonly #stages: readonly [Stage, Stage]
  readonly #positions: readonly Embedding[]
  readonly #project: Linear
  readonly #head: Linear

  constructor(size: MegaByteSize) {
    super()
    this.config = megabyteConfig(size)
    const { vocab, dims, patch, patches, posEmb } = this.config
    this.patches = new Patches(patch)
    this.#bytes = new Embedding({ vocab, dim: dims[1] })
    this.#patch = new PatchEmbedding(this.config)
    this.#stages = [new Stage(this.config, 0, patches), new Stage(this.config, 1, patch + 1)]
    this.#positions = posEmb
      ? [new Embedding({ vocab: patches, dim: dims[0] }), new Embedding({ vocab: patch, dim: dims[1] })]
      : []
    this.#project = new Linear({ inputs: dims[0], outputs: patch * dims[1], bias: true })
    this.#head = new Linear({ inputs: dims[1], outputs: vocab, bias: true })
  }

  get vocab(): number {
    return this.config.vocab
  }

  get hasRings(): boolean {
    return true
  }

  get contextMax(): number {
    return this.config.patches * this.config.patch
  }

  override parameters(): Record<string, Parameter> {
    const { dims } = this.config
    const start = (stage: 0 | 1): Parameter => ({ shape: [1, dims[stage]], init: normal(0.02), decay: false })
    return { "start_tokens.0": start(0), "start_tokens.1": start(1) }
  }

  override children(): Record<string, Layer> {
    return {
      "token_embs.0": this.#bytes,
      "token_embs.1": this.#patch,
      ...Object.fromEntries(this.#positions.map((table, stage) => [`pos_embs.${stage}`, table])),
      "transformers.0": this.#stages[0],
      "transformers.1": this.#stages[1],
      "to_next_transformer_projections.0.1": this.#project,
      to_logits: this.#head,
    }
  }

  /** ids: i32 (rows), −1 in a start row too; `rows.patches` says what kind of run it is. */
  override forward(ids: Value, rows: Rows): Value {
    const { begun, local } = this.patches.declare(current("MegaByte"), ids, rows)
    const projected = begun && this.#global(begun, rows) // (patches, patch·dims[1])
    const hidden = this.#local(local, projected, rows) // (rows of the stage, dims[1])
    return local.index ? gatherRows({ x: hidden, index: local.index }).y : hidden
  }

  #global(begun: Begun, rows: Rows): Value {
    const patches = apply("token_embs.1", this.#patch, begun.bytes, rows) // (patches, dims[0])
    const read = gatherRows({ x: patches, index: begun.index }).y
    const x = this.#stand(0, read, begun, rows)
    const hidden = apply("transformers.0", this.#stages[0], x, { ...rows, segments: begun.segments })
    return stream(apply("to_next_transformer_projections.0.1", this.#project, hidden, rows))
  }

  #local(local: Local, projected: Value | undefined, rows: Rows): Value {
    const { patch, dims } = this.config
    const carried = this.state("patch", rows, [patch * dims[1]])
    const spread = { x: projected, segments: local.segments, carried }
    const given = patchRows(spread, { rows: local.ids.shape[0]!, patch }).y // (rows of the stage, dims[1])
    const bytes = apply("token_embs.0", this.#bytes, local.ids, rows)
    const x = this.#stand(1, add({ a: bytes, b: given }).y, local, rows)
    const rings = local.rings && rows.rings && { ...rows.rings, index: local.rings }
    const { rings: _, ...rest } = rows
    return apply("transformers.1", this.#stages[1], x, { ...rest, segments: local.segments, ...(rings && { rings }) })
  }

  /** Adds the start's token and the learned positions where there are any. */
  #stand(stage: 0 | 1, x: Value, { starts, places }: { starts: Value | undefined; places: Value }, rows: Rows): Value {
    const weight = starts && this.weight(`start_tokens.${stage}`, rows)
    const begun = starts && weight ? add({ a: x, b: embedding({ ids: starts, weight }).y }).y : x
    const table = this.#positions[stage]
    return table ? add({ a: begun, b: apply(`pos_embs.${stage}`, table, places, rows) }).y : begun
  }

  /** Keys of patches stand at their own positions, which are as many as there can be; those of bytes make way for the next patch. */
  overwrites(ring: string, length: number, end: number): boolean {
    return ring.startsWith("transformers.1.") && this.patches.leaves(length, end)
  }

  head(rows: Rows): Matrix {
    const { vocab, dims } = this.config
    return matrixOf(current("head"), "to_logits.weight", [vocab, dims[1]], rows)
  }

  headBias(): Value {
    return current("head").weight("to_logits.bias", "f32", [this.config.vocab])
  }
}

/** What is added up is f32, however activations are stored. */
const stream = (x: Value): Value => (x.dtype === "f32" ? x : cast({ x }, { dtype: "f32" }).y)

/** Bytes of a patch to one row: embeddings side by side (0), LayerNorm (2), linear (3), LayerNorm (4). */
class PatchEmbedding extends Layer {
  readonly #bytes: Embedding
  readonly #norms: readonly [LayerNorm, LayerNorm]
  readonly #linear: Linear

  constructor({ vocab, dims, patch }: MegaByteConfig) {
    super()
    const width = patch * dims[1]
    this.#bytes = new Embedding({ vocab, dim: dims[1] })
    this.#norms = [new LayerNorm({ dim: width }), new LayerNorm({ dim: dims[0] })]
    this.#linear = new Linear({ inputs: width, outputs: dims[0], bias: true })
  }

  override parameters(): Record<string, Parameter> {
    return {}
  }

  override children(): Record<string, Layer> {
    return { 0: this.#bytes, 2: this.#norms[0], 3: this.#linear, 4: this.#norms[1] }
  }

  /** ids: i32 (patches·patch) → f32 (patches, dims[0]), the stream that the stage goes on with. */
  override forward(ids: Value, rows: Rows): Value {
    const bytes = apply("0", this.#bytes, ids, rows) // (patches·patch, dims[1])
    const side = fold({ x: bytes }, { width: this.#norms[0].dim }).y // (patches, patch·dims[1])
    const projected = apply("3", this.#linear, apply("2", this.#norms[0], side, rows), rows)
    return stream(apply("4", this.#norms[1], projected, rows))
  }
}

/** Blocks of attention and MLP, and a last norm. */
class Stage extends Layer {
  readonly #blocks: readonly ShiftedResidual[]
  readonly #norm: RMSNorm

  constructor({ dims, depths, heads, headDim, ffMult, relPos }: MegaByteConfig, stage: 0 | 1, contextMax: number) {
    super()
    const [dim, depth] = [dims[stage], depths[stage]]
    const sizes = { dim, branches: 2 * depth }
    const rope = relPos ? {} : (false as const)
    const mixers = Array.from({ length: depth }, () => [
      new SlidingAttention({ ...sizes, heads, headDim, window: 0, contextMax, rope }),
      new FeedForward({ ...sizes, inner: ffMult * dim }),
    ])
    this.#blocks = mixers.flat().map((mixer) => new ShiftedResidual({ dim, mixer, eps }))
    this.#norm = new RMSNorm({ dim, eps })
  }

  override parameters(): Record<string, Parameter> {
    return {}
  }

  override children(): Record<string, Layer> {
    const blocks = this.#blocks.map((block, i) => [`layers.${Math.floor(i / 2)}.${i % 2}`, block])
    return { ...Object.fromEntries(blocks), norm: this.#norm }
  }

  override forward(x: Value, rows: Rows): Value {
    let hidden = x // (rows, dim)
    for (const [name, block] of Object.entries(this.children())) {
      const forward = (before: Value) => apply(name, block, before, rows)
      hidden = rows.recompute && block !== this.#norm ? checkpoint(forward)(hidden) : forward(hidden)
    }
    return hidden
  }
}
