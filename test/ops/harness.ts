/**
 * Running one case of an op on the device under test: declared values, their bytes, and what comes back as numbers.
 */
import type { ExecutionContext } from "ava"
import { bf16ToF32 } from "../../lib/checkpoint/halves.ts"
import type { Program } from "../../lib/graph/program.ts"
import type { Trace } from "../../lib/graph/trace.ts"
import type { Dtype, Value } from "../../lib/graph/value.ts"
import { type HostArray, Store, type StoredKind } from "../../lib/native.ts"
import { device } from "../device.ts"
import { bf16, type OpCase, type OpSpec, type Tensor64 } from "./spec.ts"

/** Numbers of an output: bf16 ones widened. */
export type Numbers = Float32Array | Int32Array
export type Results = Record<string, Numbers>

/** Inputs that the op updates are stored values, and so are weights of bf16 and i8, whose gradients stay f32; the others are inputs. */
function storageOf(spec: OpSpec, key: string, { dtype }: Tensor64): StoredKind | "input" {
  if (((spec.op.definition.updates ?? []) as string[]).includes(key)) return "training"
  if (dtype === "i8" || key === "scales") return "weight"
  return key === "weight" && dtype === "bf16" ? "weight" : "input"
}

/** The case's inputs as values of the trace. */
export function declare(tr: Trace, spec: OpSpec, opCase: OpCase): Record<string, Value> {
  return Object.fromEntries(
    Object.entries(opCase.inputs).flatMap(([key, tensor]) =>
      tensor === undefined ? [] : [[key, tr[storageOf(spec, key, tensor)](key, tensor.dtype, tensor.shape)]],
    ),
  )
}

/** Runs a program of the case; `extra` holds inputs beyond the case's own. Updated inputs come back with the outputs. */
export async function run(
  program: Program,
  spec: OpSpec,
  opCase: OpCase,
  extra: Readonly<Record<string, Tensor64>> = {},
): Promise<Results> {
  await using store = new Store(device)
  const tensors = { ...opCase.inputs, ...extra }
  const updated: string[] = []
  for (const [key, tensor] of Object.entries(opCase.inputs)) {
    const kind = tensor && storageOf(spec, key, tensor)
    if (tensor === undefined || kind === undefined || kind === "input") continue
    await store.upload(kind, { name: key, dtype: tensor.dtype, shape: tensor.shape }, hostBytes(tensor))
    if (kind === "training") updated.push(key)
  }
  const executable = await store.compile(program)
  const outputs = await executable.run(
    Object.fromEntries(program.inputs.map(({ name }) => [name, hostBytes(tensors[name]!)])),
  )
  const results = program.outputSlots.map(({ name, dtype }) => [name, numbers(dtype, outputs[name]!)] as const)
  for (const key of updated) {
    const { buffer } = await store.download("training", key)
    const { dtype } = tensors[key]!
    const array = dtype === "f32" ? Float32Array : dtype === "bf16" ? Uint16Array : Int32Array
    results.push([key, numbers(dtype, new array(buffer))])
  }
  return Object.fromEntries(results)
}

const numbers = (dtype: Dtype, array: HostArray): Numbers =>
  dtype === "bf16" ? bf16ToF32(array as Uint16Array) : (array as Numbers)

/** A tensor as a run takes it. Its bf16 values are exact already. */
function hostBytes({ dtype, data }: Tensor64): HostArray {
  if (dtype === "i32") return Int32Array.from(data)
  if (dtype === "i8") return Int8Array.from(data)
  const floats = Float32Array.from(data)
  return dtype === "f32" ? floats : Uint16Array.from(new Uint32Array(floats.buffer), (bits) => bits >>> 16)
}

/** The largest finite magnitude. */
export const largest = (values: ArrayLike<number>): number => {
  let most = 0
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i]!)
    if (size > most && Number.isFinite(size)) most = size
  }
  return most
}

/** The greatest error that rounding the exact result to bf16 makes: what a naive bf16 computation cannot do better than. */
export function roundingError(want: Float64Array): number {
  const { data } = bf16({ dtype: "f32", shape: [want.length], data: want })
  return largest(want.map((value, i) => data[i]! - value))
}

/** Holds every element to `tolerance`, an absolute difference; NaN and infinities are equal to themselves alone. */
export function closeTo(t: ExecutionContext, key: string, got: Numbers, want: Float64Array, tolerance: number): void {
  t.is(got.length, want.length, `${key} has as many elements as the reference`)
  let worst = -1
  let error = -1
  for (let i = 0; i < want.length; i++) {
    const same = Object.is(got[i], want[i]) || got[i] === want[i] || (Number.isNaN(got[i]) && Number.isNaN(want[i]))
    const difference = same ? 0 : Math.abs(got[i]! - want[i]!)
    if (!(difference <= error)) [worst, error] = [i, difference]
  }
  t.true(
    error <= tolerance,
    `${key}[${worst}]: expected ${want[worst]}, got ${got[worst]}, allowed ${tolerance}; largest ${largest(want)}`,
  )
}
