/**
 * What a layer is: parameters by name, children by name, and a forward pass that traces ops. A parameter's full name is
 * its path through the layers, and equals its name in a checkpoint.
 */
import { current, type Trace } from "../graph/trace.ts"
import type { Dtype, Value } from "../graph/value.ts"
import { groupsOf } from "../ops/linear.ts"
import type { Random } from "./random.ts"

export interface Parameter {
  readonly shape: readonly number[]
  /** Draws the initial values, row-major. */
  readonly init: (shape: readonly number[], random: Random) => Float32Array
  /** Whether AdamW's weight decay applies; in Mamba not to A_log, D, biases and norms. */
  readonly decay: boolean
  /** Matrices that linears and embeddings read may be stored as bf16; everything else is f32 whatever the rest is. */
  readonly matrix?: boolean
  /** Matrices that may be kept in 8 bits, beside the scales of their groups: those that linears, the head and the embedding read. */
  readonly int8?: boolean
}

/** A matrix as `linear`, `linearCrossEntropy` and `embedding` take it; with scales where it is kept in 8 bits. */
export interface Matrix {
  readonly weight: Value
  readonly scales?: Value
}

/**
 * How the token rows of a program fall into sequences, and where states live.
 *
 * Rows (T) are the batch and length packed into one dimension. `segments` has one line per sequence piece: begin, end,
 * position of its first row, slot it continues, slot that receives its end. Slot 0 is nobody's.
 */
export interface Rows {
  readonly segments: Value
  /** Number of slots of every state; undefined for programs that carry none. */
  readonly slots?: number
  /** Where attention keeps what is behind the rows; undefined for programs in which segments see their own rows alone. */
  readonly rings?: Rings
  /** Stored dtype of the matrices. */
  readonly matrixDtype: Dtype
  /** Full names of the matrices that are kept in 8 bits. Default: none. */
  readonly int8?: ReadonlySet<string> | undefined
  /** Of models that read patches: how many the run begins at most; 0 where all its rows lie inside one begun before. */
  readonly patches?: number
  /** Recompute each block in the backward pass instead of keeping its activations. Default false. */
  readonly recompute?: boolean
}

export interface Rings {
  /** i32 (segments): the ring that each segment continues; 0 is nobody's. An input of the run. */
  readonly index: Value
  /** Number of rings, 0 among them. */
  readonly count: number
  /** The most rows that any program of the model runs for one segment. */
  readonly rowsMost: number
}

export abstract class Layer {
  /** This layer's own parameters, by the name they have in checkpoints. */
  abstract parameters(): Readonly<Record<string, Parameter>>

  children(): Readonly<Record<string, Layer>> {
    return {}
  }

  /** Traces the layer on x (rows, dim). A residual is added to the result, fused into the last op. */
  abstract forward(x: Value, rows: Rows, residual?: Value): Value

  /** The value of one of this layer's own parameters, in the trace being recorded. */
  protected weight(name: string, rows: Rows): Value {
    const parameter = this.parameters()[name]!
    const trace = current(name)
    return trace.weight(join(trace.path, name), parameter.matrix ? rows.matrixDtype : "f32", parameter.shape)
  }

  /** One of this layer's own matrices, in the trace being recorded. */
  protected matrix(name: string, rows: Rows): Matrix {
    const trace = current(name)
    return matrixOf(trace, join(trace.path, name), this.parameters()[name]!.shape, rows)
  }

  /** A state of this layer with one entry per slot, or undefined when the program carries none. */
  protected state(name: string, rows: Rows, shape: readonly number[]): Value | undefined {
    const trace = current(name)
    return rows.slots === undefined ? undefined : trace.state(join(trace.path, name), "f32", [rows.slots, ...shape])
  }
}

/** What the scales of a matrix in 8 bits are called, as in checkpoints of compressed-tensors. */
export const scaleName = (name: string): string => `${name}_scale`

/** Of a matrix of that shape. */
export const scaleShape = ([out, inner]: readonly number[]): readonly [number, number] => [out!, groupsOf(inner!)]

/** A matrix by its full name, as the model keeps it. */
export function matrixOf(trace: Trace, name: string, shape: readonly number[], rows: Rows): Matrix {
  if (!rows.int8?.has(name)) return { weight: trace.weight(name, rows.matrixDtype, shape) }
  const scales = trace.weight(scaleName(name), "bf16", scaleShape(shape))
  return { weight: trace.weight(name, "i8", shape), scales }
}

export const join = (path: string, name: string): string => (path === "" ? name : `${path}.${name}`)

/** Traces a child layer under its name. */
export function apply(name: string, layer: Layer, x: Value, rows: Rows, residual?: Value): Value {
  return current(name).scope(name, () => layer.forward(x, rows, residual))
}

/** All parameters below a layer by full name, in the order of its children. */
export function allParameters(layer: Layer, path = ""): Map<string, Parameter> {
  const own = Object.entries(layer.parameters()).map(([name, parameter]) => [join(path, name), parameter] as const)
  const below = Object.entries(layer.children()).flatMap(([name, child]) => [...allParameters(child, join(path, name))])
  return new Map([...own, ...below])
}

/** Number of scalars in all parameters below a layer. Tied weights are one parameter and count once. */
export function parameterCount(layer: Layer): number {
  let count = 0
  for (const { shape } of allParameters(layer).values()) count += shape.reduce((product, size) => product * size, 1)
  return count
}
