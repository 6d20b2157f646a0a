/**
 * What a node of a program moves and computes at least: bytes of the tensors that it names, and multiplications and additions of its
 * sums of products. What is done to each element alone, exponentials among it, is not counted.
 */
import { dtypeSizeBytes, type Node, type Value } from "../graph/value.ts"

/** Where the rows of a run are: segments of one length, all at the same position. */
export interface Place {
  readonly sequences: number
  /** Of the first row of a segment, by the name of the input that has the segments: those of a model in patches have positions of their own. */
  readonly position: (segments: string) => number
  /** Bytes that a sequence has in a ring before them, as far as they are seen. */
  readonly rings: ReadonlyMap<string, number>
}

/** Rows of one sequence that has just begun, as those of an op by itself. */
export const begun: Place = { sequences: 1, position: () => 0, rings: new Map() }

export interface Cost {
  readonly bytes: number
  readonly operations: number
}

/** `used` are the values of the program: an output that nobody reads is not written. */
export const nodeCost = (node: Node, used: ReadonlySet<Value>, place: Place): Cost => ({
  bytes: nodeBytes(node, used, place),
  operations: nodeOperations(node, place),
})

/** The inputs of which an op reads some rows, those that it is told: one for each that it gives. */
const lookups: Readonly<Record<string, readonly string[]>> = { embedding: ["weight", "scales"], gatherRows: ["x"] }

const sizeOf = (value: Value) => value.elements * dtypeSizeBytes[value.dtype]

/** Every tensor once, but twice where it is changed in place; of states the slots of the sequences, which are read, unless they begin, and written; of rings what is seen. */
function nodeBytes({ op, inputs, outputs }: Node, used: ReadonlySet<Value>, place: Place): number {
  const written = sum(Object.values(outputs).flatMap((value) => (used.has(value) ? [sizeOf(value)] : [])))
  const rows = Object.values(outputs)[0]?.shape[0] ?? 0
  const read = Object.entries(inputs).map(([key, value]) => {
    if (lookups[op.name]?.includes(key)) return Math.min(1, rows / value.shape[0]!) * sizeOf(value)
    if (value.storage === "ring") return place.sequences * (place.rings.get(value.name) ?? 0)
    if (value.storage !== "state") return (op.updates?.includes(key) ? 2 : 1) * sizeOf(value)
    const times = place.position("segments") === 0 ? 1 : 2
    return (times * place.sequences * sizeOf(value)) / value.shape[0]!
  })
  return written + sum(read)
}

type Count = (node: Node, rows: number, place: Place) => number

/** A number of the op that inputs and attributes hold. */
const wide = (value: Value | undefined, dim: number): number => value?.shape.at(dim) ?? 0

/** Of ops with sums of products; all others have none that count. Two operations are a product and its addition. */
const counts: Readonly<Record<string, Count>> = {
  linear: ({ inputs }, rows) => 2 * rows * inputs.weight!.elements,
  linearInputGrad: ({ inputs }, rows) => 2 * rows * inputs.weight!.elements,
  linearWeightGrad: ({ inputs }, rows) => 2 * rows * wide(inputs.dy, -1) * wide(inputs.x, -1),
  linearCrossEntropy: ({ inputs }, rows) => 2 * rows * inputs.weight!.elements,
  linearCrossEntropyGrad: ({ inputs }, rows) => 6 * rows * inputs.weight!.elements, // logits are computed again
  causalConv: ({ inputs }, rows) => 2 * rows * inputs.weight!.elements,
  causalConvGrad: ({ inputs }, rows) => 6 * rows * inputs.weight!.elements, // what SiLU took is computed again
  // h = a·h + (Δ·B)·x and y = C·h with a = exp(Δ·A): four products and two sums for each state.
  selectiveScan: ({ inputs }, rows) => 6 * rows * inputs.A!.elements,
  // h again: three products and a sum; dh, and with it dB and dC: four and three; dx: one of each; dA and dΔ: three and two.
  selectiveScanGrad: ({ inputs }, rows) => 18 * rows * inputs.A!.elements,
  // S = S·decay + k·v and y = q·S: a product for the decay, and two sums of products.
  linearAttention: ({ inputs, attrs }, rows) =>
    (5 * rows * wide(inputs.k, -1) * wide(inputs.v, -1)) / Number(attrs.heads ?? 1),
  // q·k and p·v for every position that a row sees.
  slidingAttention: (node, rows, place) =>
    4 * pairs(node, rows, place) * Number(node.attrs.heads) * Number(node.attrs.headDim),
  // q·k again, dy·v, and a product each for dq, dk and dv.
  slidingAttentionGrad: (node, rows, place) =>
    10 * pairs(node, rows, place) * Number(node.attrs.heads) * Number(node.attrs.headDim),
}

function nodeOperations(node: Node, place: Place): number {
  const rows = (node.inputs.x ?? node.inputs.dy ?? node.inputs.qkv ?? node.inputs.q)?.shape[0] ?? 0
  return counts[node.op.name]?.(node, rows, place) ?? 0
}

/** Pairs of a row and a position that it sees, of all segments; a window of 0 is none. */
function pairs({ inputs, attrs }: Node, rows: number, place: Place): number {
  const { name, shape } = inputs.segments!
  const [segments, first] = [shape[0]!, place.position(name)]
  const most = attrs.window === 0 ? Number.POSITIVE_INFINITY : Number(attrs.window)
  const each = Math.ceil(rows / segments)
  let seen = 0
  for (let row = 0; row < each; row++) seen += Math.min(first + row + 1, most)
  return segments * seen
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0)
