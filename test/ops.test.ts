/**
 * Runs every case of test/ops/*.ts: the kernel against the f64 reference, its gradient against finite differences of that
 * reference, and twice for the same bits.
 */
import { readdirSync } from "node:fs"
import test from "ava"
import { gradients } from "../lib/graph/gradient.ts"
import { type Program, trace } from "../lib/graph/program.ts"
import type { Trace } from "../lib/graph/trace.ts"
import type { Value } from "../lib/graph/value.ts"
import { type HostArray, Store } from "../lib/native.ts"
import { add } from "../lib/ops/elementwise.ts"
import { normal, type OpCase, type OpSpec, random, type Tensor64 } from "./ops/spec.ts"

const folder = new URL("./ops/", import.meta.url)
const files = readdirSync(folder).filter(
  (file) => file.endsWith(".ts") && file !== "spec.ts" && !file.endsWith(".test.ts"),
)
const only = process.env.OP

// All are loaded before the first test is declared: ava wants declarations in one turn.
const modules = await Promise.all(
  files.map((file) => import(new URL(file, folder).href) as Promise<{ specs: readonly OpSpec[] }>),
)

for (const { specs } of modules) {
  for (const spec of specs) {
    const { name } = spec.op.definition
    if (only !== undefined && only !== name) continue
    for (const opCase of spec.cases) {
      // Large shapes take the reference minutes; finite differences of them would take hours.
      if (opCase.slow && process.env.SLOW === undefined) continue
      test(`${name} equals its reference: ${opCase.title}`, (t) => againstReference(t, spec, opCase))
      if (spec.differentiable.length === 0 || opCase.slow) continue
      test(`${name} has the gradient of its reference: ${opCase.title}`, (t) => againstDifferences(t, spec, opCase))
    }
  }
}

type Assert = import("ava").ExecutionContext

async function againstReference(t: Assert, spec: OpSpec, opCase: OpCase): Promise<void> {
  const expected = spec.reference(opCase.inputs, { ...spec.op.definition.attrs, ...opCase.attrs })
  const updated = updatesOf(spec, opCase)
  const program = trace(opCase.title, (tr) => {
    const outputs = spec.op(declare(tr, spec, opCase), opCase.attrs)
    return Object.fromEntries(Object.entries(outputs as Record<string, Value>).filter(([key]) => key in expected))
  })
  const first = await run(program, opCase, updated)
  const second = await run(program, opCase, updated)
  for (const [key, want] of Object.entries(expected)) {
    t.true(key in first, `${key} is an output or an updated input`)
    t.deepEqual(second[key], first[key], `${key} has the same bits twice`)
    closeTo(t, key, first[key]!, want, opCase.rtol ?? 1e-5)
  }
}

async function againstDifferences(t: Assert, spec: OpSpec, opCase: OpCase): Promise<void> {
  const attrs = { ...spec.op.definition.attrs, ...opCase.attrs }
  const wrt = spec.differentiable.filter((key) => opCase.inputs[key] !== undefined)
  const cotangents: Record<string, Tensor64> = {}
  let first = true
  const program = trace(opCase.title, (tr) => {
    const inputs = declare(tr, spec, opCase)
    const outputs = spec.op(inputs, opCase.attrs) as Record<string, Value>
    const through = spec.cotangents ?? [Object.keys(outputs)[0]!]
    const pairs = through.map((key, i) => {
      cotangents[key] = normal(outputs[key]!.shape, 1000 + i)
      return [outputs[key]!, tr.input(`d${key}`, "f32", outputs[key]!.shape)] as const
    })
    const grads = gradients(
      pairs,
      wrt.map((key) => inputs[key]!),
      (a, b) => add({ a, b }).y,
    )
    first = false
    return Object.fromEntries(wrt.map((key, i) => [key, grads[i]!]))
  })
  t.false(first)
  const extra = Object.fromEntries(Object.entries(cotangents).map(([key, value]) => [`d${key}`, host(value)]))
  const got = await run(program, opCase, updatesOf(spec, opCase), extra)
  const loss = (inputs: OpCase["inputs"]) => {
    const outputs = spec.reference(inputs, attrs)
    return Object.entries(cotangents).reduce(
      (total, [key, { data }]) => total + outputs[key]!.reduce((part, value, i) => part + value * data[i]!, 0),
      0,
    )
  }
  for (const key of wrt) compareWithDifferences(t, key, got[key]!, opCase.inputs, loss)
}

function compareWithDifferences(
  t: Assert,
  key: string,
  got: HostArray,
  inputs: OpCase["inputs"],
  loss: (inputs: OpCase["inputs"]) => number,
): void {
  const tensor = inputs[key]!
  const next = random(7)
  const scale = Math.max(...got.slice(0, 100_000).map(Math.abs), 1e-3)
  for (let sample = 0; sample < 6; sample++) {
    const index = Math.floor(next() * tensor.data.length)
    const step = 1e-4 * Math.max(1, Math.abs(tensor.data[index]!))
    const shifted = (by: number) => {
      const data = tensor.data.slice()
      data[index]! += by
      return loss({ ...inputs, [key]: { ...tensor, data } })
    }
    // Fourth-order central difference: the error of the difference itself stays far below that of f32.
    const near = (shifted(step) - shifted(-step)) / (2 * step)
    const far = (shifted(2 * step) - shifted(-2 * step)) / (4 * step)
    const difference = (4 * near - far) / 3
    t.true(
      Math.abs(got[index]! - difference) <= 1e-4 * scale,
      `d${key}[${index}]: finite difference ${difference}, got ${got[index]}, largest ${scale}`,
    )
  }
}

function declare(tr: Trace, spec: OpSpec, opCase: OpCase): Record<string, Value> {
  const updates = updatesOf(spec, opCase)
  return Object.fromEntries(
    Object.entries(opCase.inputs).flatMap(([key, tensor]) => {
      if (tensor === undefined) return []
      const storage = updates.includes(key) ? "training" : "input"
      return [[key, tr[storage](key, tensor.dtype, tensor.shape)]]
    }),
  )
}

function updatesOf(spec: OpSpec, opCase: OpCase): readonly string[] {
  return ((spec.op.definition.updates ?? []) as string[]).filter((key) => opCase.inputs[key] !== undefined)
}

async function run(
  program: Program,
  opCase: OpCase,
  updated: readonly string[],
  extra: Record<string, HostArray> = {},
): Promise<Record<string, HostArray>> {
  await using store = new Store("cpu")
  for (const key of updated) {
    const tensor = opCase.inputs[key]!
    await store.upload("training", { name: key, dtype: tensor.dtype, shape: tensor.shape }, host(tensor))
  }
  const executable = await store.compile(program)
  const known = new Set(program.inputs.map((slot) => slot.name))
  const given = Object.entries(opCase.inputs)
    .filter(([key]) => known.has(key))
    .map(([key, tensor]) => [key, host(tensor!)])
  const outputs = await executable.run({ ...Object.fromEntries(given), ...extra })
  for (const key of updated) {
    const bytes = await store.download("training", key)
    outputs[key] = opCase.inputs[key]!.dtype === "i32" ? new Int32Array(bytes.buffer) : new Float32Array(bytes.buffer)
  }
  return outputs
}

function host({ dtype, data }: Tensor64): HostArray {
  if (dtype === "i32") return Int32Array.from(data)
  const floats = Float32Array.from(data)
  return dtype === "f32" ? floats : Uint16Array.from(new Uint32Array(floats.buffer), (bits) => bits >>> 16)
}

function closeTo(t: Assert, key: string, got: HostArray, want: Float64Array, rtol: number): void {
  t.is(got.length, want.length, `${key} has as many elements as the reference`)
  const scale = want.reduce((most, value) => Math.max(most, Number.isFinite(value) ? Math.abs(value) : 0), 0)
  let worst = -1
  let error = -1
  for (let i = 0; i < want.length; i++) {
    const same = Object.is(got[i], want[i]) || got[i] === want[i] || (Number.isNaN(got[i]) && Number.isNaN(want[i]))
    const difference = same ? 0 : Math.abs(got[i]! - want[i]!)
    if (!(difference <= error)) [worst, error] = [i, difference]
  }
  t.true(
    error <= rtol * scale + 1e-30,
    `${key}[${worst}]: expected ${want[worst]}, got ${got[worst]}; largest ${scale}`,
  )
}
