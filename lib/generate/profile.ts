/**
 * Where the time of a model goes, op by op: what `selscan bench --profile` prints.
 */
import { checkOptions } from "../errors.ts"
import type { Program } from "../graph/program.ts"
import { dtypeSizeBytes } from "../graph/value.ts"
import { type Executable, Store } from "../native.ts"
import { nodeCost, type Place } from "./cost.ts"
import {
  checkProduct,
  defaultBlockBytes,
  type LimitOptions,
  LimitProbes,
  type Limits,
  type ProductKind,
  type Spread,
  spread,
} from "./limits.ts"
import type { Model } from "./model.ts"
import { NodeTimes, type ProfileLine } from "./node-times.ts"
import { stepProgram } from "./programs.ts"
import { nextProgram, type Programs, Sequences } from "./side-by-side.ts"
import { checkSizes } from "./speed.ts"

export interface ProfileOptions extends LimitOptions {
  /** Tokens of the prompt of each sequence. Default 512. */
  readonly prefill?: number
  /** Tokens that each sequence writes. Default 16. */
  readonly decode?: number
  /** Sequences that write side by side. Default 1. */
  readonly batch?: number
  /** Times that all of it is measured, after once that is not. Default 5. */
  readonly repeats?: number
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: (done: number, all: number) => void
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
  checkProduct("profile", options.product)
  const { onProgress } = options
  await using store = new Store(model.device)
  const kinds: ProductKind[] = ["f32", "bf16", ...(model.int8.size > 0 ? (["int8"] as const) : [])]
  if (model.precision === "bf16x3") kinds.push("bf16x3")
  const probes = await LimitProbes.open(store, options, kinds, signal)
  await using programs = new ProfiledPrograms(model)
  using sequences = await Sequences.open(model, sizes, programs)
  const [prompt, next] = [new Part(model, 1, 1), new Part(model, batch, decode)]
  for (let round = 0; round <= repeats; round++) {
    const kept = round > 0 // in the first programs are compiled, weights prepared, pages touched
    await prompt.measure(programs, () => sequences.read(signal), kept)
    await next.measure(programs, () => sequences.write(signal), kept)
    await probes.measure(signal, kept)
    onProgress?.(round + 1, repeats + 1)
  }
  const limits = probes.limits()
  return { limits, prompt: prompt.result(limits), decode: next.result(limits) }
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

/** One of the two parts, round by round. */
class Part {
  readonly #model: Model
  readonly #sequences: number
  /** What its numbers are divided by: tokens that were written, or one prompt. */
  readonly #per: number
  readonly #wall: number[] = []
  readonly #times = new NodeTimes()

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
    this.#wall.push(wall / this.#per)
    this.#times.begin()
    for (const { executable, positions, seconds } of all) {
      const { program } = executable
      const [places, used] = [positions.map((position) => this.#place(position)), new Set(program.values)]
      for (const [i, node] of program.nodes.entries()) {
        const cost = { bytes: 0, operations: 0 }
        for (const place of places) {
          const { bytes, operations } = nodeCost(node, used, place)
          cost.bytes += bytes / this.#per
          cost.operations += operations / this.#per
        }
        this.#times.add(node, seconds[i]! / this.#per, positions.length / this.#per, cost)
      }
    }
  }

  #place(position: number): Place {
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
    return { sequences: this.#sequences, position: at, rings: new Map(rings) }
  }

  result(limits: Limits): PartProfile {
    return { seconds: spread(this.#wall), inNodes: this.#times.seconds(), lines: this.#times.lines(limits) }
  }
}
