/**
 * Reverse-mode gradients by a walk over the recorded nodes. The walk knows no op by name: each op declares its own rule.
 */
import { expect, SelscanError } from "../errors.ts"
import type { Trace } from "./trace.ts"
import type { CheckpointSegment, Dtype, Node, Value } from "./value.ts"

/** The ops that the walk itself needs; it names none. `arithmetic` of ops/cast.ts is them. */
export interface Arithmetic {
  /** Adds two values of one shape and dtype. */
  readonly sum: (a: Value, b: Value) => Value
  /** The same value in another dtype. */
  readonly cast: (x: Value, dtype: Dtype) => Value
}

/**
 * Appends the nodes that compute ∂(Σ seedᵢ·outputᵢ)/∂w for every w of `wrt`, and returns those gradients in order.
 *
 * A gradient has the dtype of its value, and is cast where a rule gives another; that of a weight is f32 whatever the
 * weight is stored as, so that it gathers in f32.
 *
 * @param outputs pairs of a value and its cotangent, of the same shape
 * @throws NO_GRADIENT when a needed gradient is not declared, or when an output does not depend on some w at all
 */
export function gradients(
  outputs: readonly (readonly [Value, Value])[],
  wrt: readonly Value[],
  arithmetic: Arithmetic,
): Value[] {
  const trace = outputs[0]?.[0].trace
  expect(trace !== undefined, "BAD_INPUT", () => "gradients: at least one output is needed, got none")
  const walk = new Walk(trace, wrt, arithmetic)
  for (const [value, cotangent] of outputs) walk.add(value, cotangent)
  walk.back(trace.nodes.slice())
  return wrt.map((value) => {
    const grad = walk.grads.get(value)
    if (grad === undefined) {
      throw new SelscanError("NO_GRADIENT", `gradients: ${value.name} is not reached from the outputs; leave it out`, {
        name: value.name,
      })
    }
    return grad
  })
}

class Walk {
  readonly grads = new Map<Value, Value>()
  readonly #trace: Trace
  readonly #arithmetic: Arithmetic
  /** Values that depend on what is differentiated: only those need gradients. */
  readonly #active: Set<Value>

  constructor(trace: Trace, wrt: readonly Value[], arithmetic: Arithmetic) {
    this.#trace = trace
    this.#arithmetic = arithmetic
    this.#active = new Set(wrt)
    this.#activate(trace.nodes)
  }

  add(value: Value, grad: Value): void {
    expect(
      `${grad.shape}` === `${value.shape}`,
      "BAD_SHAPE",
      () => `gradients: gradient of ${value.name} is [${value.shape}], got [${grad.shape}]`,
    )
    const { sum, cast } = this.#arithmetic
    const dtype = value.storage === "weight" ? "f32" : value.dtype
    const fitting = grad.dtype === dtype ? grad : cast(grad, dtype)
    const known = this.grads.get(value)
    this.grads.set(value, known === undefined ? fitting : sum(known, fitting))
  }

  back(nodes: readonly Node[]): void {
    for (let i = nodes.length - 1; i >= 0; i--) {
      const { segment } = nodes[i]!
      if (segment === undefined) {
        this.#backNode(nodes[i]!)
        continue
      }
      const last = i
      while (i > 0 && nodes[i - 1]!.segment === segment) i--
      this.#checkClosed(nodes.slice(i, last + 1), segment)
      this.#backSegment(segment)
    }
  }

  /** The segment is recorded again: a gradient that reached its first recording by another way than its output would be lost. */
  #checkClosed(nodes: readonly Node[], segment: CheckpointSegment): void {
    for (const node of nodes) {
      for (const value of Object.values(node.outputs)) {
        expect(
          !this.grads.has(value) || segment.outputs.includes(value),
          "NO_GRADIENT",
          () => `checkpoint: what is used outside is returned, got a use of ${value.name} outside; return it alone`,
        )
      }
    }
  }

  #activate(nodes: readonly Node[]): void {
    for (const node of nodes) {
      if (!Object.values(node.inputs).some((value) => this.#active.has(value))) continue
      for (const value of Object.values(node.outputs)) this.#active.add(value)
    }
  }

  #backNode(node: Node): void {
    const { op, inputs, outputs, attrs } = node
    if (!Object.values(inputs).some((value) => this.#active.has(value))) return
    const grads = Object.fromEntries(Object.entries(outputs).map(([key, value]) => [key, this.grads.get(value)]))
    if (Object.values(grads).every((grad) => grad === undefined)) return
    const where = `${node.path === "" ? "" : `${node.path}: `}${op.name}`
    expect(op.grad !== null, "NO_GRADIENT", () => `${where}: is not differentiable, but a gradient flows through it`)
    const auxiliary = ((op.auxiliary ?? []) as string[]).find((key) => grads[key] !== undefined)
    expect(
      auxiliary === undefined,
      "NO_GRADIENT",
      () => `${where}: gradients flow through its other outputs, got one for ${auxiliary}; build the loss from those`,
      { op: op.name, key: auxiliary },
    )
    const results = this.#trace.at(node.path, () => op.grad!(inputs, outputs, attrs, grads))
    for (const [key, value] of Object.entries(inputs)) {
      if (!this.#active.has(value) || results[key] === null) continue
      const grad = results[key]
      expect(grad !== undefined, "NO_GRADIENT", () => `${where}: declares no gradient for input ${key}`, {
        op: op.name,
        key,
      })
      this.#trace.at(node.path, () => this.add(value, grad))
    }
  }

  /** Records the segment again, then walks back over what was just recorded. */
  #backSegment(segment: CheckpointSegment): void {
    const cotangents = segment.outputs.map((value) => this.grads.get(value))
    if (cotangents.every((grad) => grad === undefined)) return
    const start = this.#trace.nodes.length
    const outputs = segment.retrace(segment.inputs)
    const nodes = this.#trace.nodes.slice(start)
    this.#activate(nodes)
    outputs.forEach((value, i) => {
      const grad = cotangents[i]
      if (grad !== undefined) this.add(value, grad)
    })
    this.back(nodes)
  }
}
