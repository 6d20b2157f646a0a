/**
 * A family of golden cases, and the form in which most families state their op.
 */

import { expect } from "../../lib/errors.ts"
import { gradients } from "../../lib/graph/gradient.ts"
import { type Program, trace } from "../../lib/graph/program.ts"
import type { Trace } from "../../lib/graph/trace.ts"
import type { Value } from "../../lib/graph/value.ts"
import { type HostArray, Store } from "../../lib/native.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { device } from "../device.ts"
import type { GoldenCase } from "./case.ts"
import { type Comparison, compare } from "./compare.ts"
import { type Layout, toOurs, toTheirs } from "./layout.ts"

export interface CaseFamily {
  /** Ops of the cases that this family runs. */
  readonly ops: readonly string[]
  /** Runs a case and compares every tensor it expects. */
  readonly run: (golden: GoldenCase) => Promise<Comparison[]>
}

/** A family whose cases are files of another kind than `GoldenCase`. */
export interface FileFamily {
  readonly ops: readonly string[]
  /** Reads the file and compares every tensor it has, or ought to have. */
  readonly runFile: (path: string) => Promise<Comparison[]>
}

export type Family = CaseFamily | FileFamily

/** An op as one differentiable program. */
export interface Form {
  /** Layouts of the inputs by their names in the file; those that the file lacks are left out of the trace. */
  readonly inputs: Readonly<Record<string, Layout | undefined>>
  readonly outputs: Readonly<Record<string, Layout>>
  /** Inputs of our own making: segments, ids, constants. */
  readonly extra?: Readonly<Record<string, Extra>>
  readonly forward: (values: Readonly<Record<string, Value>>) => Readonly<Record<string, Value>>
}

export interface Extra {
  readonly shape: readonly number[]
  readonly data: Float32Array | Int32Array
}

/** Each sequence of a batch of equal lengths as one segment that starts fresh. */
export function batchSegments(batch: number, length: number): Extra {
  const lines = Array.from({ length: batch }, (_, b) => [b * length, (b + 1) * length, 0, 0, 0])
  return { shape: [batch, 5], data: Int32Array.from(lines.flat()) }
}

/** The parts of `layouts` whose input the file has. */
export function present(golden: GoldenCase, layouts: Record<string, (shape: readonly number[]) => Layout>) {
  const known = Object.entries(layouts).filter(([name]) => golden.has(`in.${name}`))
  return Object.fromEntries(known.map(([name, layout]) => [name, layout(golden.shape(`in.${name}`))]))
}

/** Runs a form on a case: the outputs it expects, and the gradients of Σ dout·out that it expects. */
export async function runForm(golden: GoldenCase, form: Form): Promise<Comparison[]> {
  const host: Record<string, HostArray> = {}
  for (const [name, { data }] of Object.entries(form.extra ?? {})) host[name] = data
  for (const [name, layout] of inputsOf(golden, form)) host[name] = toOurs(layout, golden.floats(`in.${name}`))
  const wanted = golden.names("grad.")
  const program = trace(golden.op, (t) => {
    const values = declare(t, golden, form)
    const outputs = form.forward(values)
    const kept = Object.entries(outputs).filter(([name]) => golden.has(`out.${name}`))
    const pairs = kept
      .filter(([name]) => golden.has(`dout.${name}`))
      .map(([name, value]) => {
        const layout = form.outputs[name]!
        host[`dout.${name}`] = toOurs(layout, golden.floats(`dout.${name}`))
        return [value, t.input(`dout.${name}`, "f32", layout.shape)] as const
      })
    const known = wanted.filter((name) => values[name] !== undefined)
    const grads =
      known.length > 0
        ? gradients(
            pairs,
            known.map((name) => values[name]!),
            arithmetic,
          )
        : []
    const results = kept.map(([name, value]) => [`out.${name}`, value] as const)
    return Object.fromEntries([...results, ...known.map((name, i) => [`grad.${name}`, grads[i]!] as const)])
  })
  await using store = new Store(device)
  const got = await runOn(store, program, host)
  return Object.entries(got).map(([name, data]) => {
    const [kind, key] = [name.slice(0, name.indexOf(".")), name.slice(name.indexOf(".") + 1)]
    const layout = kind === "out" ? form.outputs[key]! : form.inputs[key]!
    return compare(golden, name, toTheirs(layout, data))
  })
}

/** Compiles and runs a program once; inputs that it does not read are left out. */
export async function runOn(
  store: Store,
  program: Program,
  inputs: Readonly<Record<string, HostArray>>,
): Promise<Record<string, Float32Array>> {
  const executable = await store.compile(program)
  return await run(executable, inputs)
}

/** Runs an executable whose outputs are all f32. */
export async function run(
  executable: Awaited<ReturnType<Store["compile"]>>,
  inputs: Readonly<Record<string, HostArray>>,
): Promise<Record<string, Float32Array>> {
  const read = executable.program.inputs.map(({ name }) => [name, inputs[name]!])
  const outputs = await executable.run(Object.fromEntries(read))
  for (const [name, data] of Object.entries(outputs)) {
    expect(data instanceof Float32Array, "NATIVE", () => `${executable.program.name}: output ${name} is f32`)
  }
  return outputs as Record<string, Float32Array>
}

function inputsOf(golden: GoldenCase, form: Form): [string, Layout][] {
  return Object.entries(form.inputs).filter(
    (entry): entry is [string, Layout] => entry[1] !== undefined && golden.has(`in.${entry[0]}`),
  )
}

function declare(t: Trace, golden: GoldenCase, form: Form): Record<string, Value> {
  const values: Record<string, Value> = {}
  for (const [name, layout] of inputsOf(golden, form)) values[name] = t.input(name, "f32", layout.shape)
  for (const [name, { shape, data }] of Object.entries(form.extra ?? {})) {
    values[name] = t.input(name, data instanceof Float32Array ? "f32" : "i32", shape)
  }
  return values
}
