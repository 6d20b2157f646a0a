/**
 * Seconds of the nodes of programs, round by round, summed up by kind and held to the limits of the device.
 */
import type { Node } from "../graph/value.ts"
import type { Cost } from "./cost.ts"
import { type LimitName, type Limits, type ProductKind, type Spread, spread } from "./limits.ts"

/** The nodes of one kind, all that they do for what is profiled. */
export interface ProfileLine {
  readonly op: string
  /** Of matrices: out × in and dtype. */
  readonly of?: string
  /** Nodes that were run. */
  readonly nodes: number
  readonly seconds: Spread
  /** Of the time of all nodes. */
  readonly share: number
  readonly bytes: number
  readonly operations: number
  /** The nearer of its limits, and how much of it was reached. More than 1 of the memory: tensors stayed in a cache. */
  readonly limit: LimitName
  readonly ofLimit: number
}

interface Kind {
  readonly op: string
  readonly of: string | undefined
  readonly products: ProductKind
  nodes: number
  bytes: number
  operations: number
  readonly seconds: number[]
}

export class NodeTimes {
  readonly #rounds: number[] = []
  readonly #kinds = new Map<string, Kind>()

  /** Begins a round. Of the first one the nodes are counted, with what they cost: the others do the same. */
  begin(): void {
    this.#rounds.push(0)
  }

  /** What a node took in this round, in so many runs; `cost` is of all of them. */
  add(node: Node, seconds: number, runs: number, cost: Cost): void {
    const round = this.#rounds.length - 1
    const kind = this.#kind(node)
    this.#rounds[round]! += seconds
    kind.seconds[round] = (kind.seconds[round] ?? 0) + seconds
    if (round > 0) return
    kind.nodes += runs
    kind.bytes += cost.bytes
    kind.operations += cost.operations
  }

  #kind(node: Node): Kind {
    const matrix = matrixOf(node)
    const key = `${node.op.name} ${matrix}`
    let kind = this.#kinds.get(key)
    if (kind === undefined) {
      const { precision } = node.attrs
      const named = precision === "bf16" || (precision === "bf16x3" && matrix) ? precision : "f32" // attention's is f32
      const products = node.inputs.weight?.dtype === "i8" ? "int8" : named
      kind = { op: node.op.name, of: matrix, products, nodes: 0, bytes: 0, operations: 0, seconds: [] }
      this.#kinds.set(key, kind)
    }
    return kind
  }

  /** Seconds of all nodes. */
  seconds(): Spread {
    return spread(this.#rounds)
  }

  /** The costliest first. Shares are of so many seconds. */
  lines(limits: Limits, whole?: number): ProfileLine[] {
    const kinds = [...this.#kinds.values()].map((kind) => [kind, spread(kind.seconds)] as const)
    const all = whole ?? kinds.reduce((sum, [, { median }]) => sum + median, 0)
    const lines = kinds.map(([{ op, of, products, nodes, bytes, operations }, seconds]): ProfileLine => {
      const [moving, computing] = [bytes / limits.memory, operations / limits[products]!]
      const limit = computing > moving ? products : "memory"
      const ofLimit = seconds.median > 0 ? Math.max(moving, computing) / seconds.median : 0
      const share = all > 0 ? seconds.median / all : 0
      return { op, ...(of && { of }), nodes, seconds, share, bytes, operations, limit, ofLimit }
    })
    return lines.sort((a, b) => b.seconds.median - a.seconds.median)
  }
}

/** Of a matrix that a node multiplies with, or of which it makes the gradient. */
function matrixOf({ op, inputs, outputs }: Node): string | undefined {
  const matrix = inputs.weight ?? (op.name === "linearWeightGrad" ? outputs.dweight : undefined)
  return matrix?.shape.length === 2 ? `${matrix.shape.join(" × ")} ${matrix.dtype}` : undefined
}
