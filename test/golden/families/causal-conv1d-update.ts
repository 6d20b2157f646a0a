import { expect } from "../../../lib/errors.ts"
import { type Program, trace } from "../../../lib/graph/program.ts"
import { Store } from "../../../lib/native.ts"
import { causalConv } from "../../../lib/ops/causal-conv.ts"
import { device } from "../../device.ts"
import type { GoldenCase } from "../case.ts"
import { type Comparison, compare } from "../compare.ts"
import { type CaseFamily, run } from "../family.ts"
import { tokenRows, toOurs, toTheirs } from "../layout.ts"
import { usesSilu } from "./causal-conv1d.ts"

/**
 * The streaming convolution: x (steps,B,D) or (steps,B,D,seqlen), conv_state (B,D,state_len) updated in place.
 *
 * Our op carries the last W−1 inputs and nothing older, so the rest of a longer state is kept here: by the stream's
 * position q (0 is the first new input), the state's element is (cache_seqlens + q) mod state_len when it is a ring, else
 * q − total + state_len.
 */
export const causalConv1dUpdateFamily: CaseFamily = {
  ops: ["causal_conv1d_update"],
  run: async (golden) => {
    const stream = new Stream(golden)
    await using store = new Store(device)
    const tails = stream.initialTails()
    await store.upload("state", { name: "conv", dtype: "f32", shape: stream.tailShape }, tails)
    const executable = await store.compile(stream.program())
    const y = await stream.runSteps(executable)
    const carried = new Float32Array((await store.download("state", "conv")).buffer)
    return [compare(golden, "out.y", y), stream.compareState(carried)]
  },
}

class Stream {
  readonly #golden: GoldenCase
  readonly #steps: number
  readonly #batch: number
  readonly #inner: number
  readonly #length: number
  readonly #width: number
  readonly #stateLength: number
  readonly #state: Float32Array
  readonly #x: Float32Array
  readonly #starts: Int32Array | undefined

  constructor(golden: GoldenCase) {
    const [steps = 1, batch = 1, inner = 1, length = 1] = golden.shape("in.x")
    this.#golden = golden
    this.#steps = steps
    this.#batch = batch
    this.#inner = inner
    this.#length = length
    this.#width = golden.shape("in.weight")[1]!
    this.#stateLength = golden.shape("in.conv_state")[2]!
    this.#state = golden.floats("in.conv_state")
    this.#x = golden.floats("in.x")
    this.#starts = golden.has("in.cache_seqlens") ? golden.integers("in.cache_seqlens") : undefined
    expect(
      this.#stateLength >= this.#width - 1,
      "BAD_FILE",
      () => `${golden.path}: conv_state holds at least ${this.#width - 1} inputs, got ${this.#stateLength}`,
    )
  }

  /** Slot 0 is nobody's; sequence b owns slot b + 1. */
  get tailShape(): readonly number[] {
    return [this.#batch + 1, this.#inner, this.#width - 1]
  }

  initialTails(): Float32Array {
    const tail = this.#width - 1
    const tails = new Float32Array((this.#batch + 1) * this.#inner * tail)
    this.#eachChannel((b, d) => {
      for (let i = 0; i < tail; i++) tails[((b + 1) * this.#inner + d) * tail + i] = this.#before(b, d, i - tail)
    })
    return tails
  }

  program(): Program {
    const rows = this.#batch * this.#length
    return trace("causal_conv1d_update", (t) => {
      const bias = this.#golden.has("in.bias") ? t.input("bias", "f32", [this.#inner]) : undefined
      const inputs = {
        x: t.input("x", "f32", [rows, this.#inner]),
        weight: t.input("weight", "f32", [this.#inner, 1, this.#width]),
        bias,
        segments: t.input("segments", "i32", [this.#batch, 5]),
        carried: t.state("conv", "f32", this.tailShape),
      }
      return { y: causalConv(inputs, { silu: usesSilu(this.#golden) }).y }
    })
  }

  async runSteps(executable: Awaited<ReturnType<Store["compile"]>>): Promise<Float32Array> {
    const layout = tokenRows([this.#batch, this.#inner, this.#length])
    const weight = this.#golden.floats("in.weight")
    const bias = this.#golden.has("in.bias") ? this.#golden.floats("in.bias") : new Float32Array(0)
    const y = new Float32Array(this.#x.length)
    for (let step = 0; step < this.#steps; step++) {
      const size = layout.elements
      const x = toOurs(layout, this.#x.subarray(step * size, (step + 1) * size))
      const result = await run(executable, { x, weight, bias, segments: this.#segments(step) })
      y.set(toTheirs(layout, result.y!), step * size)
    }
    return y
  }

  /** The state after all steps: its newest W−1 elements from the op, older ones from the inputs and the first state. */
  compareState(carried: Float32Array): Comparison {
    const [length, tail, total] = [this.#stateLength, this.#width - 1, this.#steps * this.#length]
    const state = new Float32Array(this.#state.length)
    this.#eachChannel((b, d) => {
      const channel = b * this.#inner + d
      for (let q = total - length; q < total; q++) {
        const index = this.#starts ? modulo(this.#starts[b]! + q, length) : q - total + length
        const newest = carried[(channel + this.#inner) * tail + q - total + tail]
        const value = q >= total - tail ? newest! : q >= 0 ? this.#input(b, d, q) : this.#before(b, d, q)
        state[channel * length + index] = value
      }
    })
    return compare(this.#golden, "out.conv_state", state)
  }

  #segments(step: number): Int32Array {
    const at = step * this.#length
    const line = (b: number) => [b * this.#length, (b + 1) * this.#length, at, b + 1, b + 1]
    return Int32Array.from(Array.from({ length: this.#batch }, (_, b) => line(b)).flat())
  }

  #input(b: number, d: number, q: number): number {
    const [step, l] = [Math.floor(q / this.#length), q % this.#length]
    return this.#x[((step * this.#batch + b) * this.#inner + d) * this.#length + l]!
  }

  /** The input at position q < 0, from the state given. */
  #before(b: number, d: number, q: number): number {
    const length = this.#stateLength
    const index = this.#starts ? modulo(this.#starts[b]! + q, length) : length + q
    return this.#state[(b * this.#inner + d) * length + index]!
  }

  #eachChannel(visit: (b: number, d: number) => void): void {
    for (let b = 0; b < this.#batch; b++) for (let d = 0; d < this.#inner; d++) visit(b, d)
  }
}

const modulo = (value: number, by: number) => ((value % by) + by) % by
