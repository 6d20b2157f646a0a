/**
 * What GatedLinearAttention and Retention share: the sizes of their heads, their projections, and the way out.
 */
import { expect } from "../errors.ts"
import type { Value } from "../graph/value.ts"
import { gatedHeadNorm } from "../ops/head-norm.ts"
import { tailRows } from "../ops/linear-attention.ts"
import { constant, uniform } from "./init.ts"
import { apply, Layer, type Parameter, type Rows } from "./layer.ts"
import { Linear } from "./linear.ts"
import { checkSizes } from "./sizes.ts"

/** Sizes of a mixer with a matrix of keys × values for each head. */
export interface LinearAttentionSizes {
  readonly dim: number
  readonly heads: number
  /** Columns of all keys over dim. */
  readonly expandK: number
  /** Columns of all values over dim. */
  readonly expandV: number
  /** Of the norm after the heads. */
  readonly eps: number
  /** Residual branches in the model: o_proj starts smaller by √branches. */
  readonly branches: number
}

/** U(±2^−2.5·√(6/(inputs + outputs))): Xavier's with the gain of SAMBA's code. */
export const projectionInit = (inputs: number, outputs: number, gain = 1): Parameter["init"] =>
  uniform(gain * 2 ** -2.5 * Math.sqrt(6 / (inputs + outputs)))

/**
 * Projections to q, k, v and a gate; heads normalised by themselves and gated; projected back. What happens in between is the
 * subclass's.
 */
export abstract class LinearAttentionLayer extends Layer {
  readonly sizes: LinearAttentionSizes
  readonly keys: number
  readonly values: number
  readonly #projections: Readonly<Record<string, Linear>>
  readonly #outProj: Linear

  constructor(where: string, sizes: LinearAttentionSizes) {
    super()
    const { dim, heads, expandK, expandV, eps, branches } = sizes
    checkSizes(where, { dim, heads, branches })
    for (const [name, value] of Object.entries({ expandK, expandV, eps })) {
      expect(value > 0, "BAD_OPTION", () => `${where}: ${name} is above 0, got ${value}`)
    }
    this.sizes = sizes
    this.keys = Math.floor(dim * expandK)
    this.values = Math.floor(dim * expandV)
    for (const [name, columns, most] of [
      ["expandK", this.keys, 256],
      ["expandV", this.values, 512],
    ] as const) {
      expect(
        columns % heads === 0 && columns >= heads && columns <= most * heads,
        "BAD_OPTION",
        () =>
          `${where}: dim·${name} is divided by heads into 1 to ${most} columns each, ` +
          `got ${columns} for ${heads} heads; choose other heads`,
      )
    }
    const projection = (outputs: number) => new Linear({ inputs: dim, outputs, init: projectionInit(dim, outputs) })
    this.#projections = {
      q_proj: projection(this.keys),
      k_proj: projection(this.keys),
      v_proj: projection(this.values),
      g_proj: projection(this.values),
    }
    const init = projectionInit(this.values, dim, 1 / Math.sqrt(branches))
    this.#outProj = new Linear({ inputs: this.values, outputs: dim, init })
  }

  override parameters(): Record<string, Parameter> {
    const shape = [this.values / this.sizes.heads]
    return { "g_norm_swish_gate.weight": { shape, init: constant(1), decay: false } }
  }

  override children(): Record<string, Layer> {
    return { ...this.#projections, o_proj: this.#outProj }
  }

  /** One of q_proj, k_proj, v_proj and g_proj. */
  protected project(name: "q" | "k" | "v" | "g", x: Value, rows: Rows): Value {
    return apply(`${name}_proj`, this.#projections[`${name}_proj`]!, x, rows)
  }

  /** What a slot holds, `gates` columns of log decays among it; nothing where the program carries no states. */
  protected slots(rows: Rows, gates: number): { carried?: Value; tail?: Value } {
    const { heads } = this.sizes
    const carried = this.state("state", rows, [heads, this.keys / heads, this.values / heads])
    const tail = this.state("tail", rows, [tailRows, this.keys + this.values + gates])
    return carried && tail ? { carried, tail } : {}
  }

  /** From the heads' result to the residual stream. */
  protected finish(y: Value, x: Value, rows: Rows, residual: Value | undefined): Value {
    const gate = this.project("g", x, rows) // (rows, values)
    const weight = this.weight("g_norm_swish_gate.weight", rows)
    const gated = gatedHeadNorm({ x: y, gate, weight }, { eps: this.sizes.eps }).y
    return apply("o_proj", this.#outProj, gated, rows, residual) // (rows, dim)
  }
}
