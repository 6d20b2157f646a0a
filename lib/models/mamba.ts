/**
 * Mamba and MambaByte language models: embedding, residual Mamba blocks, a last norm, and a head that is the embedding
 * unless stated. MambaByte is the same network over the 256 bytes.
 */

import type { MambaConfig } from "../checkpoint/config.ts"
import { checkOptions, expect, suggestion } from "../errors.ts"
import { checkpoint } from "../graph/checkpoint.ts"
import { current } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { Embedding } from "../layers/embedding.ts"
import { apply, Layer, type Parameter, type Rows } from "../layers/layer.ts"
import { Linear } from "../layers/linear.ts"
import { Mamba } from "../layers/mamba.ts"
import { Residual } from "../layers/residual.ts"
import { RMSNorm } from "../layers/rms-norm.ts"
import type { LanguageModel } from "./language-model.ts"

/** What distinguishes one Mamba model from another; the rest has the paper's defaults. */
export type MambaSize = Pick<MambaConfig, "dim" | "layers" | "vocab"> & Partial<MambaConfig>

/**
 * Sizes of the published models (Mamba: the repository's configurations, vocabulary 50277 padded to a multiple of 8;
 * MambaByte: arXiv 2401.13660 §A).
 */
export const mambaPresets = {
  "mamba-130m": { dim: 768, layers: 24, vocab: 50280 },
  "mamba-370m": { dim: 1024, layers: 48, vocab: 50280 },
  "mamba-790m": { dim: 1536, layers: 48, vocab: 50280 },
  "mamba-1.4b": { dim: 2048, layers: 48, vocab: 50280 },
  "mamba-2.8b": { dim: 2560, layers: 64, vocab: 50280 },
  "mambabyte-353m": { dim: 1024, layers: 53, vocab: 256 },
  "mambabyte-972m": { dim: 1792, layers: 48, vocab: 256 },
  "mambabyte-1.6b": { dim: 2304, layers: 48, vocab: 256 },
} as const satisfies Record<string, MambaSize>

export type MambaPreset = keyof typeof mambaPresets

const flags = { convBias: true, projBias: false, normEps: 1e-5, tied: true, residualF32: true }
const sizes = ["dim", "layers", "vocab", "state", "conv", "expand", "inner", "rank", "extra"]

/** The full configuration of a size, with the defaults of Mamba's code. Throws BAD_OPTION for a name that is none of it. */
export function mambaConfig(size: MambaSize): MambaConfig {
  checkOptions("model", size, [...sizes, ...Object.keys(flags)])
  const given = Object.fromEntries(Object.entries(size).filter(([, value]) => value !== undefined)) as MambaSize
  const { dim, expand = 2, conv = 4, state = 16 } = given
  return {
    ...flags,
    ...given,
    conv,
    state,
    expand,
    inner: given.inner ?? Math.floor(expand * dim),
    rank: given.rank ?? Math.ceil(dim / 16),
  }
}

/** The configuration of a preset by name. Throws BAD_OPTION, with a suggestion, for a name that is none. */
export function mambaPreset(name: string): MambaConfig {
  const known = Object.keys(mambaPresets)
  expect(known.includes(name), "BAD_OPTION", () => `preset: unknown preset ${name}, ${suggestion(name, known)}`)
  return mambaConfig(mambaPresets[name as MambaPreset])
}

/**
 * A Mamba language model. Parameter names are those of state-spaces/mamba: `backbone.embedding.weight`,
 * `backbone.layers.0.mixer.in_proj.weight`, …, `backbone.norm_f.weight`, and `lm_head.weight` only when untied.
 *
 * @example
 * const model = new MambaModel(mambaPreset("mamba-130m"))
 * parameterCount(model) // 129_135_360
 */
export class MambaModel extends Layer implements LanguageModel {
  readonly config: MambaConfig
  readonly #backbone: Backbone
  readonly #head: Linear | undefined

  constructor(config: MambaConfig) {
    super()
    this.config = config
    this.#backbone = new Backbone(config)
    this.#head = config.tied ? undefined : new Linear({ inputs: config.dim, outputs: config.vocab })
  }

  get vocab(): number {
    return this.config.vocab
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

  head(rows: Rows): Value {
    if (this.#head === undefined) return current("head").scope("backbone", () => this.#backbone.table(rows))
    const { vocab, dim } = this.config
    return current("head").weight("lm_head.weight", rows.matrixDtype, [vocab, dim])
  }
}

class Backbone extends Layer {
  readonly #embedding: Embedding
  readonly #blocks: readonly Residual[]
  readonly #norm: RMSNorm

  constructor(config: MambaConfig) {
    super()
    const { dim, vocab, layers, normEps: eps } = config
    expect(
      Number.isSafeInteger(layers) && layers >= 1,
      "BAD_OPTION",
      () => `model: layers is a whole number of at least 1, got ${layers}`,
    )
    this.#embedding = new Embedding({ vocab, dim })
    const mixer = () => new Mamba({ ...config, bias: config.projBias, branches: layers })
    this.#blocks = Array.from({ length: layers }, () => new Residual({ dim, mixer: mixer(), eps }))
    this.#norm = new RMSNorm({ dim, eps })
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

  table(rows: Rows): Value {
    return current("head").scope("embedding", () => this.#embedding.table(rows))
  }
}
