/**
 * Every op through the addon, forward and backward: what its kernels take, per element, and how near that is to the
 * machine's limits, measured beside each case.
 */
import { expect } from "../lib/errors.ts"
import { begun, nodeCost } from "../lib/generate/cost.ts"
import { gradients } from "../lib/graph/gradient.ts"
import { type Program, trace } from "../lib/graph/program.ts"
import type { Trace } from "../lib/graph/trace.ts"
import type { Node, Value } from "../lib/graph/value.ts"
import { type HostArray, Store } from "../lib/native.ts"
import { arithmetic } from "../lib/ops/cast.ts"
import { normal, type Tensor64 } from "../test/ops/spec.ts"
import { type Measurement, type Outcome, scaled, statistics, timed } from "./measure.ts"
import { type Limits, limits, shareOf } from "./native.ts"
import { type Subject, subjects } from "./ops-cases.ts"

export const summary = "kernels of every op, forward and backward, beside read bandwidth and multiply-add peak"

/** As in a model: weights may be packed once, indices and small settings come from the host, the rest stays where it is. */
function storageOf({ op }: Subject, key: string, { dtype, data }: Tensor64): "input" | "weight" | "training" {
  if (((op.definition.updates ?? []) as readonly string[]).includes(key)) return "training"
  if (key === "weight") return "weight"
  return dtype === "i32" || data.length < 1024 ? "input" : "training"
}

interface Prepared {
  readonly program: Program
  readonly stored: Record<string, Tensor64>
}

function prepare(subject: Subject, pass: "forward" | "backward"): Prepared {
  const { op, inputs, attrs, differentiable } = subject
  const given = Object.entries(inputs).flatMap(([key, tensor]) => (tensor ? [[key, tensor] as const] : []))
  const stored: Record<string, Tensor64> = Object.fromEntries(given)
  const program = trace(`${op.definition.name} ${pass}`, (t: Trace) => {
    const values = Object.fromEntries(
      given.map(([key, tensor]) => [key, t[storageOf(subject, key, tensor)](key, tensor.dtype, tensor.shape)]),
    )
    const outputs: Record<string, Value> = op(values, attrs)
    const [name, first] = Object.entries(outputs)[0] ?? []
    if (name === undefined || first === undefined) return {}
    if (pass === "forward") return { [name]: first }
    const seed = `d${name}`
    stored[seed] = normal(first.shape, 9)
    const wrt = differentiable.filter((key) => key in values)
    const pairs = [[first, t[storageOf(subject, seed, stored[seed]!)](seed, "f32", first.shape)]] as const
    const grads = gradients(
      pairs,
      wrt.map((key) => values[key]!),
      arithmetic,
    )
    return Object.fromEntries(wrt.map((key, i) => [`d${key}`, grads[i]!]))
  })
  return { program, stored }
}

function host({ dtype, data }: Tensor64): HostArray {
  if (dtype === "i32") return Int32Array.from(data)
  const floats = Float32Array.from(data)
  return dtype === "f32" ? floats : Uint16Array.from(new Uint32Array(floats.buffer), (bits) => bits >>> 16)
}

/** Compiles a program, its values in place; the function runs it once and returns the seconds of every node so far. */
async function ready(store: Store, { program, stored }: Prepared): Promise<() => Promise<number[]>> {
  for (const kind of ["weight", "training"] as const) {
    for (const slot of program.stored(kind)) await store.upload(kind, slot, host(stored[slot.name]!))
  }
  const executable = await store.compile(program)
  const inputs = Object.fromEntries(program.inputs.map(({ name }) => [name, host(stored[name]!)]))
  return async () => {
    await executable.run(inputs)
    return executable.profile()
  }
}

/** Elements of the largest tensor that is not a weight. */
function elementsOf({ inputs, outputs }: Node): number {
  const rest = Object.entries(inputs).flatMap(([key, value]) => (key === "weight" ? [] : [value]))
  return Math.max(...[...rest, ...Object.values(outputs)].map((value) => value.elements))
}

interface Timed {
  readonly result: Measurement
  readonly cost: { readonly milliseconds: number; readonly bytes: number; readonly operations: number }
}

async function measure(subject: Subject, pass: "forward" | "backward", elements: number): Promise<Timed> {
  await using store = new Store("cpu")
  const { name } = subject.op.definition
  const prepared = prepare(subject, pass)
  const { nodes, values } = prepared.program
  const used = new Set([...values])
  const chosen = nodes.map((node) => (node.op.name === name) === (pass === "forward"))
  const run = await ready(store, prepared)
  let before = 0
  const taken = await timed(async () => {
    const after = (await run()).reduce((total, one, i) => (chosen[i] ? total + one : total), 0)
    const milliseconds = (after - before) * 1e3
    before = after
    return milliseconds
  })
  const costs = nodes.flatMap((node, i) => (chosen[i] ? [nodeCost(node, used, begun)] : []))
  const [bytes, operations] = (["bytes", "operations"] as const).map((key) =>
    costs.reduce((total, cost) => total + cost[key], 0),
  ) as [number, number]
  const result = {
    shape: `${name}${pass === "backward" ? " backward" : ""}: ${subject.title}`,
    unit: "ns per element",
    ...scaled(taken, 1e6 / elements),
    bytes,
    ...(operations > 0 && { operations }),
  }
  return { result, cost: { milliseconds: taken.median, bytes, operations } }
}

/** The middle of what was measured beside the cases: one such measurement can be disturbed as any other. */
function middle(all: readonly Limits[]): Limits {
  const of = (key: keyof Limits) => statistics(all.map((one) => one[key])).median
  return { threads: of("threads"), readGBps: of("readGBps"), fmaGFlops: of("fmaGFlops") }
}

export async function run(): Promise<Outcome> {
  const only = process.env.OP
  const cases: Timed[] = []
  const beside: Limits[] = []
  for (const subject of await subjects()) {
    if (only !== undefined && subject.op.definition.name !== only) continue
    const elements = elementsOf(prepare(subject, "forward").program.nodes[0]!)
    for (const pass of ["forward", "backward"] as const) {
      if (pass === "backward" && subject.differentiable.length === 0) continue
      cases.push(await measure(subject, pass, elements))
      beside.push(limits())
    }
  }
  expect(cases.length > 0, "BAD_OPTION", () => `ops: OP is the name of an op with a case marked bench, got ${only}`)
  const limit = middle(beside)
  return {
    results: cases.map(({ result, cost }) => ({ ...result, ...shareOf(limit, cost) })),
    notes: ["time inside the kernels alone; small tensors stay in the caches, and bf16 products may pass the f32 peak"],
  }
}
