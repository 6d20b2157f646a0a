/**
 * Values and nodes: what a traced program is made of.
 */
import type { AnyOp } from "./op.ts"
import type { Trace } from "./trace.ts"

/** Element types. States, statistics and the residual stream are f32; weights and activations may also be bf16; ids and segments are i32; weights of 8 bits are i8, beside scales. */
export type Dtype = "f32" | "bf16" | "f16" | "i32" | "i8"

/** In the order of their numbers in serialised programs and across the border (native/core/dtype.h). */
export const dtypes: readonly Dtype[] = ["f32", "bf16", "f16", "i32", "i8"]

export const dtypeSizeBytes: Readonly<Record<Dtype, number>> = { f32: 4, bf16: 2, f16: 2, i32: 4, i8: 1 }

/**
 * Where a value lives.
 * - temporary: the result of a node, placed in the arena by the planner
 * - input: written from the host for each run
 * - weight: shared by all programs of a model, named as in the checkpoint, written only by the optimizer
 * - training: moments, gradient accumulators, counters; saved and restored with a training run
 * - state: per slot, survives runs (SSM state, convolution tail, penalty history)
 * - ring: per sequence, survives runs: what attention keeps by position. A run writes its own positions in place and overwrites
 *   none that are visible, so it can be done again or given up without another slot
 */
export type Storage = "temporary" | "input" | "weight" | "training" | "state" | "ring"

/** In the order of their numbers in serialised programs and across the border (native/core/kernel.h). */
export const storages: readonly Storage[] = ["temporary", "input", "weight", "training", "state", "ring"]

export type Attribute = number | boolean | string

/** A value of fixed shape inside one trace. */
export class Value {
  readonly trace: Trace
  readonly id: number
  readonly dtype: Dtype
  readonly shape: readonly number[]
  readonly storage: Storage
  /** Name of a stored value or input; of a temporary, `<op>.<output>` for printing. */
  readonly name: string
  /** The node that made this value; undefined for stored values and inputs. */
  readonly node: Node | undefined

  constructor(
    trace: Trace,
    fields: { id: number; dtype: Dtype; shape: readonly number[]; storage: Storage; name: string; node?: Node },
  ) {
    this.trace = trace
    this.id = fields.id
    this.dtype = fields.dtype
    this.shape = Object.freeze([...fields.shape])
    this.storage = fields.storage
    this.name = fields.name
    this.node = fields.node
  }

  get elements(): number {
    return this.shape.reduce((product, size) => product * size, 1)
  }
}

/** One op applied to values. Absent optional inputs are missing keys. */
export interface Node {
  readonly op: AnyOp
  readonly inputs: Readonly<Record<string, Value>>
  readonly outputs: Readonly<Record<string, Value>>
  readonly attrs: Readonly<Record<string, Attribute>>
  /** Layer path at the time of tracing, for errors and profiles: `backbone.layers.3.mixer`. */
  readonly path: string
  /** The checkpointed segment the node belongs to, if any: its values are made anew for the backward pass. */
  readonly segment?: CheckpointSegment
}

/** A call of `checkpoint(fn)`: everything between its first and last node is recomputed when gradients are asked for. */
export interface CheckpointSegment {
  readonly inputs: readonly Value[]
  outputs: readonly Value[]
  readonly retrace: (inputs: readonly Value[]) => readonly Value[]
}
