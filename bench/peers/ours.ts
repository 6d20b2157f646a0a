/**
 * This package, asked by run.ts: sessions for one sequence, as a user runs them, and one run for a row of each of several.
 */

import { type Probe, readingProbe, spread } from "../../lib/generate/limits.ts"
import { load } from "../../lib/generate/load.ts"
import type { Model } from "../../lib/generate/model.ts"
import { OwnPrograms, type Sizes } from "../../lib/generate/side-by-side.ts"
import { bytesOf, sequencesOf } from "../../lib/generate/speed.ts"
import { devices, Store, setThreads } from "../../lib/native.ts"
import { ourLogits } from "../../scripts/llama.ts"
import { before, type Party, type Settings, serve, type Task } from "./party.ts"

/** Passes over the block in a turn, 15 ms each where it is 512 MB. */
const readings = 5

class Ours implements Party {
  readonly #model: Model
  /** Kept for as long as the process lives: a program that is compiled anew in every turn would be timed with what it runs. */
  readonly #programs: OwnPrograms
  readonly #blockBytes: number | undefined
  #reading: Promise<Probe> | undefined

  private constructor(model: Model, blockBytes: number | undefined) {
    this.#model = model
    this.#blockBytes = blockBytes
    this.#programs = new OwnPrograms(model)
  }

  static async open({ model, threads, load: options, batchMost, blockBytes }: Settings): Promise<Ours> {
    await setThreads(threads)
    return new Ours(await load(model, { device: "cpu", sessions: batchMost, ...options }), blockBytes)
  }

  async about(): Promise<string> {
    const { instructionSet, threads } = devices().find(({ name }) => name === "cpu")!
    return `selscan, ${this.#model.precision} products, ${instructionSet}, ${threads} threads`
  }

  warm(task: Task): Promise<number> {
    return this.seconds(task)
  }

  async seconds(task: Task): Promise<number> {
    using sequences = await sequencesOf(this.#model, sizesOf(task), this.#programs)
    if (task.kind === "decode") await sequences.read(undefined)
    const began = performance.now()
    await (task.kind === "prefill" ? sequences.read(undefined) : sequences.write(undefined))
    return (performance.now() - began) / 1000
  }

  async logits(ids: readonly number[]): Promise<number[]> {
    return [...(await ourLogits(this.#model, ids)).subarray(-this.#model.network.vocab)]
  }

  async readBandwidth(): Promise<number> {
    this.#reading ??= readingProbe(new Store("cpu"), this.#blockBytes)
    const probe = await this.#reading
    await probe.run() // after a stop the first one is slower
    const passes: number[] = []
    while (passes.length < readings) passes.push(await probe.run())
    return spread(passes).median
  }

  async bytesPerToken(task: Task): Promise<number> {
    return (await bytesOf(this.#model, sizesOf(task))).perToken
  }
}

const sizesOf = (task: Task): Sizes =>
  task.kind === "prefill"
    ? { prefill: task.tokens, decode: 1, batch: 1 }
    : { prefill: before, decode: task.tokens, batch: task.batch }

await serve((settings) => Ours.open(settings))
