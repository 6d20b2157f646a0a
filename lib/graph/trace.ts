/**
 * Tracing: running layers once on symbolic values, which records a program.
 */
import { checkOptions, expect, SelscanError } from "../errors.ts"
import type { AnyOp } from "./op.ts"
import { type Attribute, type CheckpointSegment, type Dtype, type Node, type Storage, Value } from "./value.ts"

/**
 * What the products of linears are made of; sums are f32 in all.
 *
 * - `f32`: of f32, the exact ones.
 * - `bf16`: of activations and weights rounded to bf16, 2⁻⁸ of each; the fastest. Weights that are stored as bf16 lose nothing.
 * - `bf16x3`: three products of bf16 for one of f32, whose error is at most 2⁻¹⁵·Σ|a·b|. It is for training and running f32 models
 *   on a cpu with AMX, where a core makes 2.1 TFLOP/s of bf16 and 0.13 of f32 (Sapphire Rapids); a matrix of f32 takes 8 bytes a number
 *   then. A cpu without AMX computes f32 instead, bit for bit, and a GPU refuses the word: its f32 is six such products.
 */
export type Precision = "f32" | "bf16" | "bf16x3"

const precisions: readonly string[] = ["f32", "bf16", "bf16x3"] satisfies readonly Precision[]

/** Throws BAD_OPTION unless that is a precision. */
export function checkPrecision(where: string, precision: string): void {
  expect(
    precisions.includes(precision),
    "BAD_OPTION",
    () => `${where}: precision is f32, bf16 or bf16x3, got ${precision}; f32 is the exact one`,
  )
}

/** What a program computes with. */
export interface Numerics {
  /** Of the products of linears. Default f32. */
  readonly precision?: Precision
  /** How what flows inside layers is stored, but for the residual stream, which is always f32. Default f32. */
  readonly activations?: "f32" | "bf16"
}

interface Result {
  readonly key: string
  readonly dtype: Dtype
  readonly shape: readonly number[]
}

/** A program being recorded. Ops append to the current trace; `path` names the layer being traced. */
export class Trace {
  readonly name: string
  readonly precision: Precision
  readonly activations: "f32" | "bf16"
  readonly values: Value[] = []
  readonly nodes: Node[] = []
  readonly #stored = new Map<string, Value>()
  readonly #path: string[] = []
  #segment: CheckpointSegment | undefined

  constructor(name: string, numerics: Numerics = {}) {
    checkOptions(`trace ${name}`, numerics, ["precision", "activations"])
    const { precision = "f32", activations = "f32" } = numerics
    checkPrecision(`trace ${name}`, precision)
    const known = activations === "f32" || activations === "bf16"
    expect(known, "BAD_OPTION", () => `trace ${name}: activations is f32 or bf16, got ${activations}`)
    this.name = name
    this.precision = precision
    this.activations = activations
  }

  /** What factors of products are rounded to, and rings keep of them. */
  get factorDtype(): "f32" | "bf16" {
    return this.precision === "bf16" ? "bf16" : "f32"
  }

  /** Layer path of what is being traced. */
  get path(): string {
    return this.#path.join(".")
  }

  /** `layers.3.mixer: selectiveScan`, the head of an error. */
  where(op: string): string {
    return this.path === "" ? op : `${this.path}: ${op}`
  }

  /** A value written from the host on each run. */
  input(name: string, dtype: Dtype, shape: readonly number[]): Value {
    return this.#store("input", name, dtype, shape)
  }

  /** A weight by its full path, which is its name in the checkpoint. Asking twice gives the same value: weights can be tied. */
  weight(name: string, dtype: Dtype, shape: readonly number[]): Value {
    return this.#store("weight", name, dtype, shape)
  }

  training(name: string, dtype: Dtype, shape: readonly number[]): Value {
    return this.#store("training", name, dtype, shape)
  }

  /** A state with one entry per slot; slot 0 is nobody's. */
  state(name: string, dtype: Dtype, shape: readonly number[]): Value {
    return this.#store("state", name, dtype, shape)
  }

  /** What attention keeps by position, one entry per sequence; ring 0 is nobody's. */
  ring(name: string, dtype: Dtype, shape: readonly number[]): Value {
    return this.#store("ring", name, dtype, shape)
  }

  /** Runs fn with `name` added to the layer path. */
  scope<T>(name: string, fn: () => T): T {
    this.#path.push(name)
    try {
      return fn()
    } finally {
      this.#path.pop()
    }
  }

  /** Runs fn with the layer path of an earlier node: gradients are reported where their forward op stands. */
  at<T>(path: string, fn: () => T): T {
    const saved = this.#path.splice(0, this.#path.length, ...(path === "" ? [] : [path]))
    try {
      return fn()
    } finally {
      this.#path.splice(0, this.#path.length, ...saved)
    }
  }

  /** Runs fn as one segment whose nodes are recomputed by the backward pass. */
  segment<T>(segment: CheckpointSegment, fn: () => T): T {
    expect(this.#segment === undefined, "BAD_INPUT", () => `${this.where("checkpoint")}: checkpoints cannot be nested`)
    this.#segment = segment
    try {
      return fn()
    } finally {
      this.#segment = undefined
    }
  }

  append(op: AnyOp, inputs: Record<string, Value>, results: readonly Result[], attrs: Record<string, Attribute>) {
    const outputs: Record<string, Value> = {}
    const node: Node = {
      op,
      inputs,
      outputs,
      attrs,
      path: this.path,
      ...(this.#segment && { segment: this.#segment }),
    }
    for (const { key, dtype, shape } of results) {
      checkSizes(this.where(op.name), key, shape)
      outputs[key] = this.#add("temporary", `${op.name}.${key}`, dtype, shape, node)
    }
    this.nodes.push(node)
    return outputs
  }

  #store(storage: Storage, name: string, dtype: Dtype, shape: readonly number[]): Value {
    const key = `${storage}:${name}`
    const known = this.#stored.get(key)
    if (known !== undefined) {
      expect(
        known.dtype === dtype && `${known.shape}` === `${shape}`,
        "BAD_SHAPE",
        () =>
          `${this.where(name)}: ${storage} ${name} is ${known.dtype} [${known.shape}], asked for as ${dtype} [${shape}]`,
      )
      return known
    }
    checkSizes(this.where(storage), name, shape)
    const value = this.#add(storage, name, dtype, shape)
    this.#stored.set(key, value)
    return value
  }

  #add(storage: Storage, name: string, dtype: Dtype, shape: readonly number[], node?: Node): Value {
    const value = new Value(this, { id: this.values.length, dtype, shape, storage, name, ...(node && { node }) })
    this.values.push(value)
    return value
  }
}

function checkSizes(where: string, key: string, shape: readonly number[]): void {
  expect(shape.length <= 6, "BAD_SHAPE", () => `${where}: ${key} has at most 6 dimensions, got [${shape}]`)
  expect(
    shape.every((size) => Number.isSafeInteger(size) && size >= 1),
    "BAD_SHAPE",
    () => `${where}: sizes of ${key} are whole numbers of at least 1, got [${shape}]`,
  )
}

let active: Trace | undefined

/** The trace being recorded; ops and layers only make sense inside one. */
export function current(where: string): Trace {
  if (active === undefined) {
    throw new SelscanError(
      "BAD_INPUT",
      `${where}: ops are called while tracing, got no trace; wrap the call in trace(name, fn)`,
    )
  }
  return active
}

/** Records fn into a new trace and returns the trace with fn's result. Traces do not nest. */
export function record<T>(name: string, fn: (trace: Trace) => T, numerics: Numerics = {}): { trace: Trace; result: T } {
  expect(active === undefined, "BAD_INPUT", () => `trace ${name}: a trace is already being recorded (${active?.name})`)
  const trace = new Trace(name, numerics)
  active = trace
  try {
    return { trace, result: fn(trace) }
  } finally {
    active = undefined
  }
}
