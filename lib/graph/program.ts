/**
 * Programs: what a trace becomes once its outputs are known. Nodes nobody needs are gone; the rest can be printed and
 * serialised for a device.
 */
import { expect } from "../errors.ts"
import type { Numerics, Trace } from "./trace.ts"
import { record } from "./trace.ts"
import {
  type Attribute,
  type Dtype,
  dtypeSizeBytes,
  dtypes,
  type Node,
  type Storage,
  storages,
  type Value,
} from "./value.ts"
import { ByteWriter } from "./writer.ts"

const absent = -1

/** A named value of a program: an input, an output or a stored value. */
export interface Slot {
  readonly name: string
  readonly dtype: Dtype
  readonly shape: readonly number[]
  readonly sizeBytes: number
}

/** Records fn and keeps what its outputs need. Layers ask the trace for its precision and the dtype of activations. */
export function trace(
  name: string,
  fn: (trace: Trace) => Readonly<Record<string, Value>>,
  numerics: Numerics = {},
): Program {
  const { trace, result } = record(name, fn, numerics)
  return new Program(trace, result)
}

export class Program {
  readonly name: string
  readonly nodes: readonly Node[]
  /** Every value in use; its index is its id in the serialised form. */
  readonly values: readonly Value[]
  readonly outputs: Readonly<Record<string, Value>>
  readonly #ids = new Map<Value, number>()

  constructor(trace: Trace, outputs: Readonly<Record<string, Value>>) {
    this.name = trace.name
    this.outputs = outputs
    for (const [key, value] of Object.entries(outputs)) {
      expect(value.trace === trace, "BAD_INPUT", () => `trace ${trace.name}: output ${key} belongs to another trace`)
    }
    this.nodes = hoistUpdates(liveNodes(trace.nodes, Object.values(outputs)))
    this.values = usedValues(trace, this.nodes, Object.values(outputs))
    for (const [id, value] of this.values.entries()) this.#ids.set(value, id)
  }

  /** Inputs in the order in which a run takes them. */
  get inputs(): readonly Slot[] {
    return this.stored("input")
  }

  /** Values of one storage kind, by rising id. */
  stored(storage: Storage): readonly Slot[] {
    return this.values.filter((value) => value.storage === storage).map(slotOf)
  }

  /** Outputs in the order in which a run gives them. */
  get outputSlots(): readonly Slot[] {
    return Object.entries(this.outputs).map(([name, value]) => ({ ...slotOf(value), name }))
  }

  /** The program for people: one line per stored value and node, with shapes and layer paths. */
  print(): string {
    const lines = [`program ${this.name}`]
    for (const value of this.values) {
      if (value.storage !== "temporary") lines.push(`  ${value.storage} ${value.name}  ${typeOf(value)}`)
    }
    for (const node of this.nodes) lines.push(`  ${this.#printNode(node)}`)
    const outputs = Object.entries(this.outputs).map(([key, value]) => `${key}=${this.#nameOf(value)}`)
    return `${[...lines, `  output ${outputs.join(" ")}`].join("\n")}\n`
  }

  /** The form that native/core/program.cpp decodes: little-endian, closed by an FNV-1a checksum. */
  serialise(): Uint8Array<ArrayBuffer> {
    const writer = new ByteWriter()
    writer.u32(0x31505353) // "SSP1"
    writer.string(this.name)
    writer.u32(this.values.length)
    for (const value of this.values) {
      writer.u8(storages.indexOf(value.storage))
      writer.u8(dtypes.indexOf(value.dtype))
      writer.u8(value.shape.length)
      for (const size of value.shape) writer.i64(size)
      writer.string(value.storage === "temporary" ? "" : value.name)
    }
    writer.u32(this.nodes.length)
    for (const node of this.nodes) this.#writeNode(writer, node)
    writer.u32(Object.keys(this.outputs).length)
    for (const value of Object.values(this.outputs)) writer.i32(this.#id(value))
    return writer.finish()
  }

  #writeNode(writer: ByteWriter, node: Node): void {
    writer.string(node.op.name)
    writer.string(node.path)
    const inputs = keysOf(node.op.inputs)
    writer.u32(inputs.length)
    for (const key of inputs) writer.i32(this.#id(node.inputs[key]))
    const outputs = keysOf(node.op.outputs)
    writer.u32(outputs.length)
    for (const key of outputs) writer.i32(this.#id(node.outputs[key]))
    const updates = (node.op.updates ?? []).map((key: string) => inputs.indexOf(key))
    writer.u32(updates.length)
    for (const update of updates) writer.i32(update)
    writer.u32(Object.keys(node.attrs).length)
    for (const [key, value] of Object.entries(node.attrs)) {
      writer.string(key)
      writer.attribute(value)
    }
  }

  #id(value: Value | undefined): number {
    return value === undefined ? absent : (this.#ids.get(value) ?? absent)
  }

  #nameOf(value: Value): string {
    return value.storage === "temporary" ? `%${this.#id(value)}` : value.name
  }

  #printNode(node: Node): string {
    const outputs = Object.entries(node.outputs).filter(([, value]) => this.#ids.has(value))
    const results = outputs.map(([key, value]) => `${this.#nameOf(value)}:${key} ${typeOf(value)}`).join(", ")
    const inputs = Object.entries(node.inputs).map(([key, value]) => `${key}=${this.#nameOf(value)}`)
    const attrs = Object.entries(node.attrs).map(([key, value]: [string, Attribute]) => `${key}:${value}`)
    const call = [node.op.name, ...inputs, ...(attrs.length > 0 ? ["|", ...attrs] : [])].join(" ")
    return `${results === "" ? "" : `${results} = `}${call}${node.path === "" ? "" : `  @${node.path}`}`
  }
}

const keysOf = (signature: object) => Object.keys(signature).map((key) => key.replace("?", ""))
const typeOf = (value: Value) => `${value.dtype} [${value.shape}]`
const slotOf = (value: Value): Slot => ({
  name: value.name,
  dtype: value.dtype,
  shape: value.shape,
  sizeBytes: value.elements * dtypeSizeBytes[value.dtype],
})

/** Nodes that an output needs, or that write a stored value. */
function liveNodes(nodes: readonly Node[], outputs: readonly Value[]): Node[] {
  const needed = new Set<Value>(outputs)
  const live: Node[] = []
  for (const node of nodes.toReversed()) {
    const writes = (node.op.updates ?? []).some((key: string) => node.inputs[key] !== undefined)
    if (!writes && !Object.values(node.outputs).some((value) => needed.has(value))) continue
    for (const value of Object.values(node.inputs)) needed.add(value)
    live.push(node)
  }
  return live.reverse()
}

/**
 * Moves nodes that only write stored values up to where their inputs are ready: a gradient that is accumulated need not
 * live until the last one is. No node passes another that reads what it writes, or writes what it reads.
 */
function hoistUpdates(nodes: readonly Node[]): Node[] {
  const ordered: Node[] = []
  for (const node of nodes) {
    let at = ordered.length
    if (Object.keys(node.outputs).length === 0) while (at > 0 && !mustPrecede(ordered[at - 1]!, node)) at--
    ordered.splice(at, 0, node)
  }
  return ordered
}

function mustPrecede(first: Node, second: Node): boolean {
  const written = (node: Node) => (node.op.updates ?? []).map((key: string) => node.inputs[key])
  const reads = Object.values(second.inputs)
  return (
    reads.some((value) => value.node === first) ||
    written(first).some((value: Value | undefined) => value !== undefined && reads.includes(value)) ||
    written(second).some(
      (value: Value | undefined) => value !== undefined && Object.values(first.inputs).includes(value),
    )
  )
}

/** Values that some live node reads, or that are outputs: a node's other outputs are not computed. */
function usedValues(trace: Trace, nodes: readonly Node[], outputs: readonly Value[]): Value[] {
  const used = new Set<Value>(outputs)
  for (const node of nodes) for (const value of Object.values(node.inputs)) used.add(value)
  return trace.values.filter((value) => used.has(value))
}
