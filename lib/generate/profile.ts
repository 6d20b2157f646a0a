/**
 * Where the time of a model goes, op by op: what `selscan bench --profile` prints.
 */
import { checkOptions, expect } from "../errors.ts"
import type { Program } from "../graph/program.ts"
import { dtypeSizeBytes, type Node } from "../graph/value.ts"
import { type Executable, Store } from "../native.ts"
import { nodeCost, type Place } from "./cost.ts"
import {
  defaultBlockBytes,
  defaultProduct,
  type Probe,
  type ProductKind,
  type ProductSize,
  productProbe,
  readingProbe,
  type Spread,
  spread,
} from "./limits.ts"
import type { Model } from "./model.ts"
import { stepProgram } from "./programs.ts"
import { nextProgram, type Programs, Sequences } from "./side-by-side.ts"
import { checkSizes } from "./speed.ts"

export interface ProfileOptions {
  /** Tokens of the prompt of each sequence. Default 512. */
  readonly prefill?: number
  /** Tokens that each sequence writes. Default 16. */
  readonly decode?: number
  /** Sequences that write side by side. Default 1. */
  readonly batch?: number
  /** Times that all of it is measured, after once that is not. Default 5. */
  readonly repeats?: number
  /** Bytes of the block that is read to measure the memory. Default 512 MB. */
  readonly blockBytes?: number
  /** Rows, in and out of the linear that measures products. Default: some milliseconds. */
  readonly product?: ProductSize
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: (done: number, all: number) => void
}

/** What a limit is of: reading memory, or multiplications and additions in a precision or with a weight in 8 bits. */
export type LimitName = "memory" | ProductKind

/** Bytes, or operations, per second; of 8 bits where the model has such weights, of bf16x3 where that is its precision. */
export type Limits = Readonly<Record<"memory" | "f32" | "bf16", number> & { int8?: number; bf16x3?: number }>

/** The nodes of one kind, all that they do for a prompt, or for a token of every sequence. */
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

export interface PartProfile {
  /** From the first call to the last answer, and what of it was spent in nodes. */
  readonly seconds: Spread
  readonly inNodes: Spread
  /** The costliest first. */
  readonly lines: readonly ProfileLine[]
}

export interface Profile {
  /** Measured in the same run. */
  readonly limits: Limits
  /** The whole prompt of every sequence. */
  readonly prompt: PartProfile
  /** One token of every sequence. */
  readonly decode: PartProfile
}

const optionNames = ["prefill", "decode", "batch", "repeats", "blockBytes", "product", "signal", "onProgress"]

/**
 * Measures each node of a prompt and of decoding, and the limits between them. Programs are compiled anew, since a GPU times nodes in
 * programs of their own alone, which makes its wall times longer; and tokens are written without bursts, so that of a small model one
 * takes longer than speed() says.
 * @throws as speed()
 * @example
 * const { decode } = await profile(await load("demo"))
 * for (const { op, share, limit, ofLimit } of decode.lines) console.log(op, share, limit, ofLimit)
 */
export async function profile(model: Model, options: ProfileOptions = {}): Promise<Profile> {
  checkOptions("profile", options, optionNames)
  const { prefill = 512, decode = 16, batch = 1, repeats = 5, blockBytes = defaultBlockBytes, signal } = options
  const sizes = { prefill, decode, batch }
  checkSizes("profile", model, { ...sizes, repeats, blockBytes })
  const { product = defaultProduct(model.device), onProgress } = options
  checkProduct(product)
  await using store = new Store(model.device)
  const probes = {
    memory: await readingProbe(store, blockBytes, signal),
    f32: await productProbe(store, "f32", product),
    bf16: await productProbe(store, "bf16", product),
    ...(model.int8.size > 0 && { int8: await productProbe(store, "int8", product) }),
    ...(model.precision === "bf16x3" && { bf16x3: await productProbe(store, "bf16x3", product) }),
  }
  await using programs = new ProfiledPrograms(model)
  using sequences = await Sequences.open(model, sizes, programs)
  const [prompt, next] = [new Part(model, 1, 1), new Part(model, batch, decode)]
  const measured: Record<LimitName, number[]> = { memory: [], f32: [], bf16: [], int8: [], bf16x3: [] }
  for (let round = 0; round <= repeats; round++) {
    const kept = round > 0 // in the first programs are compiled, weights prepared, pages touched
    await prompt.measure(programs, () => sequences.read(signal), kept)
    await next.measure(programs, () => sequences.write(signal), kept)
    for (const [name, probe] of Object.entries(probes) as [LimitName, Probe][]) {
      const found = await probe.run(signal)
      if (kept) measured[name].push(found)
    }
    onProgress?.(round + 1, repeats + 1)
  }
  const limits = {
    memory: spread(measured.memory).median,
    f32: spread(measured.f32).median,
    bf16: spread(measured.bf16).median,
    ...(probes.int8 && { int8: spread(measured.int8).median }),
    ...(probes.bf16x3 && { bf16x3: spread(measured.bf16x3).median }),
  }
  return { limits, prompt: prompt.result(limits), decode: next.result(limits) }
}

function checkProduct(product: ProductSize): void {
  const good =
    Array.isArray(product) &&
    product.length === 3 &&
    product.every((size) => Number.isSafeInteger(size) && size >= 1 && size <= 2 ** 16)
  expect(good, "BAD_OPTION", () => `profile: product is rows, in and out of a linear, from 1 to 65536, got ${product}`)
}

/** A program, the positions that it ran from since it was last looked at, and the seconds of its nodes until then. */
interface Ran {
  readonly executable: Executable
  positions: number[]
  seconds: readonly number[]
}

/** Programs of a model that are timed by node. Each is asked for once for every run of it. */
class ProfiledPrograms implements Programs {
  readonly #model: Model
  readonly #compiled = new Map<string, Ran>()

  constructor(model: Model) {
    this.#model = model
  }

  prompt(rows: number, position: number): Promise<Executable> {
    const { network, shape } = this.#model
    const patches = network.patches?.mostBegun(position, rows)
    const make = () => stepProgram(network, "prompt", { ...shape, rows, patches })
    return this.#run(`prompt ${rows}${patches === 0 ? " inside" : ""}`, position, make)
  }

  next(batch: number, position: number): Promise<Executable> {
    const { network, shape } = this.#model
    const patches = network.patches?.mostBegun(position, 1)
    const one = () => stepProgram(network, "next", { ...shape, rows: 1, patches })
    const make = batch === 1 ? one : () => nextProgram(this.#model, batch)
    return this.#run(`next${patches === 0 ? " inside" : ""}`, position, make)
  }

  async #run(name: string, position: number, make: () => Program): Promise<Executable> {
    let ran = this.#compiled.get(name)
    if (ran === undefined) {
      const executable = await this.#model.store.compile(make(), { profile: true })
      ran = { executable, positions: [], seconds: executable.program.nodes.map(() => 0) }
      this.#compiled.set(name, ran)
    }
    ran.positions.push(position)
    return ran.executable
  }

  /** What ran since the last call: where, and the seconds of each node in all. */
  async taken(): Promise<{ executable: Executable; positions: readonly number[]; seconds: readonly number[] }[]> {
    const all = [...this.#compiled.values()].filter(({ positions }) => positions.length > 0)
    return await Promise.all(
      all.map(async (ran) => {
        const [before, now] = [ran.seconds, await ran.executable.profile()]
        const { executable, positions } = ran
        ran.seconds = now
        ran.positions = []
        return { executable, positions, seconds: now.map((seconds, i) => seconds - before[i]!) }
      }),
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { executable } of this.#compiled.values()) await executable.dispose()
  }
}

/** Nodes of one kind, in all that was run in a round. */
interface Kind {
  readonly op: string
  readonly of: string | undefined
  readonly products: ProductKind
  nodes: number
  bytes: number
  operations: number
  readonly seconds: number[]
}

/** One of the two parts, round by round. */
class Part {
  readonly #model: Model
  readonly #sequences: number
  /** What its numbers are divided by: tokens that were written, or one prompt. */
  readonly #per: number
  readonly #wall: number[] = []
  readonly #inNodes: number[] = []
  readonly #kinds = new Map<string, Kind>()

  /** `sequences`: of a run. */
  constructor(model: Model, sequences: number, per: number) {
    this.#model = model
    this.#sequences = sequences
    this.#per = per
  }

  async measure(programs: ProfiledPrograms, work: () => Promise<unknown>, kept: boolean): Promise<void> {
    const began = performance.now()
    await work()
    const wall = (performance.now() - began) / 1000
    const all = await programs.taken()
    if (!kept) return
    const round = this.#wall.push(wall / this.#per)
    this.#inNodes.push(0)
    for (const { executable, positions, seconds } of all) {
      for (const [i, node] of executable.program.nodes.entries()) {
        const kind = this.#kind(node)
        kind.seconds[round - 1] = (kind.seconds[round - 1] ?? 0) + seconds[i]! / this.#per
        this.#inNodes[round - 1]! += seconds[i]! / this.#per
        if (round === 1) kind.nodes += positions.length / this.#per
      }
      if (round === 1) for (const position of positions) this.#count(executable.program, position)
    }
  }

  #kind(node: Node): Kind {
    const { weight } = node.inputs
    const matrix = weight?.shape.length === 2 ? `${weight.shape.join(" × ")} ${weight.dtype}` : undefined
    const key = `${node.op.name} ${matrix}`
    let kind = this.#kinds.get(key)
    if (kind === undefined) {
      const { precision } = node.attrs
      const named = precision === "bf16" || (precision === "bf16x3" && weight) ? precision : "f32" // attention's is f32
      const products = weight?.dtype === "i8" ? "int8" : named
      kind = { op: node.op.name, of: matrix, products, nodes: 0, bytes: 0, operations: 0, seconds: [] }
      this.#kinds.set(key, kind)
    }
    return kind
  }

  #count(program: Program, position: number): void {
    const { kept, network } = this.#model
    const rings = kept.expected(position).map(({ name, dtype, elements }) => {
      return [name, elements * dtypeSizeBytes[dtype]] as const
    })
    const at = (segments: string): number =>
      segments === "patch.segments"
        ? network.patches!.patchOf(position)
        : segments === "local.segments"
          ? network.patches!.placeOf(position)
          : position
    const place: Place = { sequences: this.#sequences, position: at, rings: new Map(rings) }
    const used = new Set(program.values)
    for (const node of program.nodes) {
      const { bytes, operations } = nodeCost(node, used, place)
      const kind = this.#kind(node)
      kind.bytes += bytes / this.#per
      kind.operations += operations / this.#per
    }
  }

  result(limits: Limits): PartProfile {
    const kinds = [...this.#kinds.values()]
    const medians = new Map(kinds.map((kind) => [kind, spread(kind.seconds).median]))
    const all = [...medians.values()].reduce((sum, seconds) => sum + seconds, 0)
    const lines = kinds.map((kind): ProfileLine => {
      const { op, of, products, nodes, bytes, operations } = kind
      const seconds = medians.get(kind)!
      const [moving, computing] = [bytes / limits.memory, operations / limits[products]!]
      const limit = computing > moving ? products : "memory"
      const ofLimit = seconds > 0 ? Math.max(moving, computing) / seconds : 0
      const share = all > 0 ? seconds / all : 0
      return { op, ...(of && { of }), nodes, seconds: spread(kind.seconds), share, bytes, operations, limit, ofLimit }
    })
    lines.sort((a, b) => b.seconds.median - a.seconds.median)
    return { seconds: spread(this.#wall), inNodes: spread(this.#inNodes), lines }
  }
}
