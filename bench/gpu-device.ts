/**
 * Times of single ops on a GPU: one program holds the op several times over, each on tensors of its own, so that what one
 * reads has left the caches when its turn comes again; the device itself times every node (`profile`).
 */
import { spawnSync } from "node:child_process"
import { f32ToBf16 } from "../lib/checkpoint/halves.ts"
import { gradients } from "../lib/graph/gradient.ts"
import { type Program, type Slot, trace } from "../lib/graph/program.ts"
import { type Dtype, dtypeSizeBytes, type Node, type Value } from "../lib/graph/value.ts"
import { devices, type HostArray, Store } from "../lib/native.ts"
import { arithmetic } from "../lib/ops/cast.ts"
import { scale } from "../lib/ops/elementwise.ts"
import { sum } from "../lib/ops/reduce.ts"
import { normal, type OpSpec } from "../test/ops/spec.ts"
import { type Statistics, statistics } from "./measure.ts"

/** A tensor of a case: its values repeat a block of random ones, which no kernel's time depends on. */
export interface Given {
  readonly dtype: Dtype
  readonly shape: readonly number[]
  /** From N(0, 1), or 0.05 times that, its magnitude, or minus its magnitude; `i32` tensors are given whole. */
  readonly fill?: "normal" | "small" | "positive" | "negative"
  readonly data?: Int32Array
}

export interface GpuCase {
  readonly op: OpSpec["op"]
  readonly title: string
  readonly pass: "forward" | "backward"
  readonly dtype: "f32" | "bf16"
  readonly inputs: Readonly<Record<string, Given>>
  readonly attrs?: Readonly<Record<string, string | number | boolean>>
  readonly differentiable?: readonly string[]
  /** What one sample computes: exponentials and the like, and operations of matrix products. */
  readonly exponentials?: number
  readonly operations?: number
}

/** What the device can do at most. */
export interface Ceilings {
  /** Reading and writing, measured by a copy in this run. */
  readonly copyGBps: number
  /** From the number of multiprocessors and their highest clock; absent where nvidia-smi does not tell it. */
  readonly exponentialsPerSecond?: number
  readonly tensorFlops?: number
  /** Where they come from. */
  readonly words: string
}

/** Beyond the L2 of any GPU to date. */
const cacheBytes = 128e6
const setsMax = 8
const block = 1 << 20

const floats = normal([block], 1).data
const fills = {
  normal: (value: number) => value,
  small: (value: number) => 0.05 * value,
  positive: (value: number) => Math.abs(value) + 1e-3,
  negative: (value: number) => -Math.abs(value) - 1e-3,
}

function filled(dtype: "f32" | "bf16", fill: keyof typeof fills): HostArray {
  const values = Float32Array.from(floats, fills[fill])
  return dtype === "f32" ? values : f32ToBf16(values)
}

/** Uploads a stored value by pieces of one block. */
export async function uploadTiled(
  store: Store,
  kind: "weight" | "training",
  slot: Omit<Slot, "sizeBytes">,
  fill: keyof typeof fills = "normal",
): Promise<void> {
  const dtype = slot.dtype === "bf16" ? "bf16" : "f32"
  const bytes = filled(dtype, fill)
  const elements = slot.shape.reduce((product, size) => product * size, 1)
  for (let at = 0; at < elements; at += block) {
    const piece = bytes.subarray(0, Math.min(block, elements - at))
    await store.upload(kind, slot, piece as HostArray, at * dtypeSizeBytes[dtype])
  }
}

const sizeOf = ({ dtype, shape }: Pick<Value, "dtype" | "shape">) =>
  shape.reduce((product, size) => product * size, 1) * dtypeSizeBytes[dtype]

/** One more sum keeps a result alive without copying it to the host. */
function kept(results: Readonly<Record<string, Value>>, set: number): Record<string, Value> {
  return Object.fromEntries(Object.entries(results).map(([key, x]) => [`${key} ${set}`, sum({ x }).y]))
}

/** The program of a case on `sets` sets of tensors. */
function programOf(one: GpuCase, sets: number): Program {
  const { op, inputs, attrs = {}, pass, differentiable = [] } = one
  return trace(`${op.definition.name} ${pass}`, (t) => {
    const results: Record<string, Value> = {}
    for (let set = 0; set < sets; set++) {
      t.scope(`set ${set}`, () => {
        const values = Object.fromEntries(
          Object.entries(inputs).map(([key, { dtype, shape }]) => {
            if (dtype === "i32") return [key, t.input(key, dtype, shape)]
            return [key, t[key === "weight" ? "weight" : "training"](`${key} ${set}`, dtype, shape)]
          }),
        )
        const outputs: Record<string, Value> = op(values, attrs)
        const [name, first] = Object.entries(outputs)[0] ?? []
        if (name === undefined || first === undefined) return
        if (pass === "forward") return Object.assign(results, kept({ [name]: first }, set))
        const seed = t.training(`d${name} ${set}`, first.dtype, first.shape)
        const wrt = differentiable.map((key) => values[key]!)
        const grads = gradients([[first, seed]], wrt, arithmetic)
        return Object.assign(
          results,
          kept(Object.fromEntries(grads.map((grad, i) => [`d${differentiable[i]}`, grad!])), set),
        )
      })
    }
    return results
  })
}

/** Bytes of the tensors that nodes name, each once; of a table that is looked up, the rows that come out. */
function bytesOf(nodes: readonly Node[], used: ReadonlySet<Value>): number {
  const tensors = new Map<Value, number>()
  for (const { inputs, outputs } of nodes) {
    const written = Object.values(outputs).filter((value) => used.has(value))
    const most = written.reduce((total, value) => total + sizeOf(value), 0)
    for (const [key, value] of Object.entries(inputs)) {
      const isLookup = inputs.ids !== undefined && key === "weight"
      tensors.set(value, isLookup ? Math.min(most, sizeOf(value)) : sizeOf(value))
    }
    for (const value of written) tensors.set(value, sizeOf(value))
  }
  return [...tensors.values()].reduce((total, bytes) => total + bytes, 0)
}

export interface Taken extends Statistics {
  /** Distance of the quartiles over the median. */
  readonly spread: number
  readonly bytes: number
  readonly samples: number
}

export function withSpread(samples: readonly number[]): Statistics & { spread: number } {
  const sorted = samples.toSorted((a, b) => a - b)
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))]!
  const all = statistics(samples)
  return { ...all, spread: all.median > 0 ? (at(0.75) - at(0.25)) / all.median : 0 }
}

/** Milliseconds of one execution of the case's op on the device. */
export async function timeCase(
  device: string,
  one: GpuCase,
  { samples = 60, milliseconds = 1500 } = {},
): Promise<Taken> {
  await using store = new Store(device)
  const single = Object.values(one.inputs).reduce((total, given) => total + sizeOf(given), 0)
  // Small ones so often that the host is no bottleneck; large ones twice at least.
  const sets = Math.min(setsMax, Math.max(2, Math.ceil((2 * cacheBytes) / single)))
  const program = programOf(one, device === "emulated" ? 1 : sets)
  for (const kind of ["weight", "training"] as const) {
    for (const slot of program.stored(kind)) {
      await uploadTiled(store, kind, slot, one.inputs[slot.name.replace(/ \d+$/, "")]?.fill)
    }
  }
  const executable = await store.compile(program, { profile: true })
  const host = Object.fromEntries(program.inputs.map(({ name }) => [name, one.inputs[name]!.data!]))
  const isForward = (node: Node) => node.op.name === one.op.definition.name
  const isChosen = (node: Node) => node.op.name !== "sum" && isForward(node) === (one.pass === "forward")
  const setOf = (node: Node) => Number(/^set (\d+)/.exec(node.path)?.[1])
  const taken: number[] = []
  const began = performance.now()
  let before: readonly number[] = []
  for (let round = 0; taken.length < samples && (round < 3 || performance.now() - began < milliseconds); round++) {
    await executable.run(host)
    const after = await executable.profile()
    const own = new Map<number, number>()
    program.nodes.forEach((node, i) => {
      if (isChosen(node)) own.set(setOf(node), (own.get(setOf(node)) ?? 0) + (after[i]! - (before[i] ?? 0)) * 1e3)
    })
    before = after
    if (round > 0) taken.push(...own.values()) // the first warms up
  }
  const first = program.nodes.filter((node) => isChosen(node) && setOf(node) === 0)
  return { ...withSpread(taken), bytes: bytesOf(first, new Set(program.values)), samples: taken.length }
}

/** Operations per clock and multiprocessor of dense bf16 products, by compute capability. */
const tensorRates: Readonly<Record<string, number>> = { "8.0": 2048, "9.0": 4096 }

/** A copy of `elements` f32 values tells the bandwidth; clocks come from nvidia-smi. */
export async function ceilings(device: string, elements: number): Promise<Ceilings> {
  const copy: GpuCase = {
    op: scale,
    title: "copy",
    pass: "forward",
    dtype: "f32",
    inputs: { x: { dtype: "f32", shape: [elements] } },
  }
  const { median, bytes } = await timeCase(device, copy)
  const copyGBps = bytes / median / 1e6
  const measured = `a copy at ${copyGBps.toFixed(0)} GB/s`
  const { description } = devices().find(({ name }) => name === device.replace(/:\d+$/, ""))!
  const count = Number(/(\d+) multiprocessors/.exec(description)?.[1])
  const capability = /capability ([\d.]+)/.exec(description)?.[1] ?? ""
  const asked = ["--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
  const { stdout } = spawnSync("nvidia-smi", asked, { encoding: "utf8", timeout: 20_000 })
  const megahertz = Number.parseInt(stdout ?? "", 10)
  if (!(count > 0 && megahertz > 0)) return { copyGBps, words: `${measured}; clocks are unknown` }
  const perSecond = count * megahertz * 1e6
  const rate = tensorRates[capability]
  return {
    copyGBps,
    exponentialsPerSecond: 16 * perSecond, // special functions per clock and multiprocessor, 8.0 and 9.0
    ...(rate && { tensorFlops: rate * perSecond }),
    words: `${measured}; ${count} multiprocessors at up to ${megahertz} MHz`,
  }
}

/** The least milliseconds that a case can take, and what bounds it. */
export function floorOf(
  { copyGBps, exponentialsPerSecond, tensorFlops }: Ceilings,
  { bytes, exponentials = 0, operations = 0 }: { bytes: number; exponentials?: number; operations?: number },
): { floor: number; of: string } {
  const all = [
    { floor: bytes / copyGBps / 1e6, of: "bytes" },
    ...(exponentialsPerSecond ? [{ floor: (exponentials / exponentialsPerSecond) * 1e3, of: "exponentials" }] : []),
    ...(tensorFlops ? [{ floor: (operations / tensorFlops) * 1e3, of: "products" }] : []),
  ]
  return all.reduce((a, b) => (b.floor > a.floor ? b : a))
}
