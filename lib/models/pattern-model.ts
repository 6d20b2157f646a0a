/**
 * Language models of residual blocks in a pattern: Mamba, MambaByte, SAMBA, Llama, Mistral and what is between them.
 */
import { expect } from "../errors.ts"
import { checkpoint } from "../graph/checkpoint.ts"
import { current } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { Embedding } from "../layers/embedding.ts"
import { GatedLinearAttention } from "../layers/gated-linear-attention.ts"
import { apply, Layer, type Matrix, matrixOf, type Parameter, type Rows } from "../layers/layer.ts"
import { Linear } from "../layers/linear.ts"
import { Mamba } from "../layers/mamba.ts"
import { normOf } from "../layers/norm.ts"
import { Residual } from "../layers/residual.ts"
import { Retention } from "../layers/retention.ts"
import { SlidingAttention } from "../layers/sliding-attention.ts"
import { SwiGLU } from "../layers/swiglu.ts"
import type { BlockConfig, ModelConfig } from "./config.ts"
import type { LanguageModel } from "./language-model.ts"

/** The layer of a block, in a model of so many residual branches. */
function layerOf(block: BlockConfig, dim: number, branches: number): Layer {
  switch (block.kind) {
    case "mamba":
      return new Mamba({ ...block, dim, branches })
    case "attention":
      return new SlidingAttention({ ...block, dim, branches })
    case "swiglu":
      return new SwiGLU({ ...block, dim, branches })
    case "gla":
      return new GatedLinearAttention({ ...block, dim, branches })
    case "retention":
      return new Retention({ ...block, dim, branches })
  }
}

/**
 * Embedding, residual blocks x + block(norm(x)), a last norm, and a head that is the embedding unless stated. Parameters are named as in
 * state-spaces/mamba, whatever the blocks are: `backbone.embedding.weight`, `backbone.layers.0.norm.weight`,
 * `backbone.layers.0.mixer.in_proj.weight`, …, `backbone.norm_f.weight`, and `lm_head.weight` only when untied; norms of the kind `layer`
 * have a `bias` too.
 *
 * @example
 * const model = new PatternModel(modelPreset("mamba-130m"))
 * parameterCount(model) // 129_135_360
 */
export class PatternModel extends Layer implements LanguageModel {
  readonly config: ModelConfig
  readonly #backbone: Backbone
  readonly #head: Linear | undefined

  constructor(config: ModelConfig) {
    super()
    this.config = config
    this.#backbone = new Backbone(config)
    this.#head = config.tied ? undefined : new Linear({ inputs: config.dim, outputs: config.vocab })
  }

  get vocab(): number {
    return this.config.vocab
  }

  get hasRings(): boolean {
    return this.config.pattern.some(({ kind }) => kind === "attention")
  }

  get contextMax(): number | undefined {
    const limits = this.config.pattern.flatMap((block) =>
      block.kind === "attention" && block.window === 0 ? [block.contextMax] : [],
    )
    return limits.length > 0 ? Math.min(...limits) : undefined
  }

  override parameters(): Record<string, Parameter> {
    return {}
  }

  override children(): Record<string, Layer> {
    return { backbone: this.#backbone, ...(this.#head && { lm_head: this.#head }) }
  }

  override forward(ids: Value, rows: Rows): Value {
    return apply("backbone", this.#backbone, ids, rows)
  }

  head(rows: Rows): Matrix {
    if (this.#head === undefined) return current("head").scope("backbone", () => this.#backbone.table(rows))
    const { vocab, dim } = this.config
    return matrixOf(current("head"), "lm_head.weight", [vocab, dim], rows)
  }
}

class Backbone extends Layer {
  readonly #embedding: Embedding
  readonly #blocks: readonly Residual[]
  readonly #norm: Layer

  constructor({ dim, vocab, depth, pattern, norm, normEps: eps }: ModelConfig) {
    super()
    expect(
      Number.isSafeInteger(depth) && depth >= 1 && pattern.length > 0,
      "BAD_OPTION",
      () => `model: layers is a whole number of at least 1, got ${depth}`,
    )
    this.#embedding = new Embedding({ vocab, dim })
    this.#blocks = Array.from({ length: depth }, (_, i) => {
      const mixer = layerOf(pattern[i % pattern.length]!, dim, depth)
      return new Residual({ dim, mixer, eps, norm: norm ?? "rms" })
    })
    this.#norm = normOf(norm ?? "rms", { dim, eps })
  }

  override parameters(): Record<string, Parameter> {
    return {}
  }

  override children(): Record<string, Layer> {
    const blocks = this.#blocks.map((block, i) => [`layers.${i}`, block])
    return { embedding: this.#embedding, ...Object.fromEntries(blocks), norm_f: this.#norm }
  }

  override forward(ids: Value, rows: Rows): Value {
    let x = apply("embedding", this.#embedding, ids, rows) // (rows, dim)
    this.#blocks.forEach((block, i) => {
      const forward = (hidden: Value) => apply(`layers.${i}`, block, hidden, rows)
      x = rows.recompute ? checkpoint(forward)(x) : forward(x)
    })
    return apply("norm_f", this.#norm, x, rows)
  }

  table(rows: Rows): Matrix {
    return current("head").scope("embedding", () => this.#embedding.table(rows))
  }
}
