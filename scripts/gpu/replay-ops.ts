/**
 * Replay files of single ops: cases of test/ops/*.ts, what their f64 references give, and the gradients that the cpu gives.
 * For runs under ThreadSanitizer and compute-sanitizer, so small ones.
 */
import { f32ToBf16 } from "../../lib/checkpoint/halves.ts"
import { gradients } from "../../lib/graph/gradient.ts"
import { type Program, type Slot, trace } from "../../lib/graph/program.ts"
import { type ReplayExpected, replayFile } from "../../lib/graph/replay.ts"
import type { Value } from "../../lib/graph/value.ts"
import type { HostArray, StoredKind } from "../../lib/native.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { allSpecs } from "../../test/ops/all-specs.ts"
import { bf16Variants } from "../../test/ops/bf16-variants.ts"
import { declare, type Results, run } from "../../test/ops/harness.ts"
import { bf16, normal, type OpCase, type OpSpec, type Tensor64 } from "../../test/ops/spec.ts"

/** Multiply-adds of one case: an emulated run under ThreadSanitizer takes about a microsecond for each. */
const workMax = 60_000
/** Multiply-adds of the one larger case of each op: enough for pipelines of tiles to go round. */
const largeWorkMax = 1_500_000
/** Small cases of each op, beside those that bring an optional input. */
const casesMin = 2

export interface OpReplay {
  readonly name: string
  readonly nodes: number
  readonly bytes: Uint8Array
}

const elementsOf = ({ inputs }: OpCase) =>
  Object.values(inputs).reduce((total, tensor) => total + (tensor?.data.length ?? 0), 0)
const workOf = (spec: OpSpec, one: OpCase) => Math.max(elementsOf(one), spec.work?.(one.inputs, one.attrs) ?? 0)

/** The first cases that are small, those with an optional input that no earlier one has, the largest allowed, and the named. */
function chosen(spec: OpSpec): OpCase[] {
  // Weights of 8 bits and bf16x3 are the cpu's alone, and replays are for every device.
  const cases = spec.cases.filter(
    ({ inputs, attrs }) =>
      attrs?.precision !== "bf16x3" && Object.values(inputs).every((tensor) => tensor?.dtype !== "i8"),
  )
  const large = cases
    .filter((one) => !one.slow && elementsOf(one) <= workMax) // products: many multiply-adds of few numbers
    .filter((one) => workOf(spec, one) > workMax && workOf(spec, one) <= largeWorkMax)
    .sort((a, b) => workOf(spec, b) - workOf(spec, a))
    .slice(0, 1)
  const small = cases.filter((one) => workOf(spec, one) <= workMax)
  const seen = new Set<string>()
  const few = small.filter((one, i) => {
    const keys = Object.keys(one.inputs).filter((key) => one.inputs[key] !== undefined)
    const brings = keys.some((key) => !seen.has(key))
    if (i >= casesMin && !brings) return false
    for (const key of keys) seen.add(key)
    return true
  })
  return [...new Set([...few, ...large, ...cases.filter(({ replay }) => replay)])]
}

interface Traced {
  readonly program: Program
  /** Gradients that flow in, by input name. */
  readonly cotangents: Record<string, Tensor64>
  readonly gradientNames: readonly string[]
}

/** One program: the op, and its gradient where it has one. */
function traced(spec: OpSpec, opCase: OpCase, references: readonly string[]): Traced {
  const wrt = spec.differentiable.filter((key) => opCase.inputs[key] !== undefined)
  const cotangents: Record<string, Tensor64> = {}
  const program = trace(opCase.title, (tr) => {
    const inputs = declare(tr, spec, opCase)
    const outputs = spec.op(inputs, opCase.attrs) as Record<string, Value>
    const results = Object.fromEntries(Object.entries(outputs).filter(([key]) => references.includes(key)))
    if (wrt.length === 0) return results
    const pairs = (spec.cotangents ?? [Object.keys(outputs)[0]!]).map((key, i) => {
      const { dtype, shape } = outputs[key]!
      const exact = normal(shape, 1000 + i)
      cotangents[`d${key}`] = dtype === "bf16" ? bf16(exact) : exact
      return [outputs[key]!, tr.input(`d${key}`, dtype, shape)] as const
    })
    const grads = gradients(
      pairs,
      wrt.map((key) => inputs[key]!),
      arithmetic,
    )
    return { ...results, ...Object.fromEntries(wrt.map((key, i) => [`gradient of ${key}`, grads[i]!])) }
  })
  return { program, cotangents, gradientNames: wrt.map((key) => `gradient of ${key}`) }
}

const widened = (tensor: Tensor64): Tensor64 => (tensor.dtype === "bf16" ? { ...tensor, dtype: "f32" } : tensor)
const mapped = (tensors: Readonly<Record<string, Tensor64 | undefined>>) =>
  Object.fromEntries(Object.entries(tensors).map(([key, tensor]) => [key, tensor && widened(tensor)]))

/** Gradients of the case as the cpu computes them, all in f32: it stores no activations in bf16. */
async function cpuGradients(spec: OpSpec, opCase: OpCase, cotangents: Record<string, Tensor64>): Promise<Results> {
  const { dtype: _dtype, ...attrs } = opCase.attrs ?? {}
  const wide = { ...opCase, attrs, inputs: mapped(opCase.inputs) }
  const { program } = traced(spec, wide, [])
  return run(program, spec, wide, mapped(cotangents) as Record<string, Tensor64>)
}

function bytesOf({ dtype }: Pick<Slot, "dtype">, numbers: ArrayLike<number>): HostArray {
  if (dtype === "i32") return Int32Array.from(numbers)
  const floats = Float32Array.from(numbers)
  return dtype === "bf16" ? f32ToBf16(floats) : floats
}

/** Relative to the largest value expected. bf16: two roundings of what is compared, and for gradients those on their way. */
function toleranceOf({ dtype }: Slot, isGradient: boolean, halves: boolean, { rtol = 1e-5 }: OpCase): number {
  if (isGradient) return halves ? 2 ** -6 : Math.max(rtol, 1e-3)
  return dtype === "bf16" ? 2 ** -7 + rtol : rtol
}

async function recorded(spec: OpSpec, opCase: OpCase, name: string): Promise<OpReplay> {
  const want = spec.reference(opCase.inputs, { ...spec.op.definition.attrs, ...opCase.attrs })
  const { program, cotangents, gradientNames } = traced(spec, opCase, Object.keys(want))
  const grads = gradientNames.length > 0 ? await cpuGradients(spec, opCase, cotangents) : {}
  const tensors: Record<string, Tensor64 | undefined> = { ...opCase.inputs, ...cotangents }
  const halves = Object.values(opCase.inputs).some((tensor) => tensor?.dtype === "bf16")
  const expected: ReplayExpected[] = program.outputSlots.map((slot) => {
    const isGradient = gradientNames.includes(slot.name)
    const numbers = isGradient ? grads[slot.name]! : want[slot.name]!
    return { name: slot.name, bytes: bytesOf(slot, numbers), rtol: toleranceOf(slot, isGradient, halves, opCase) }
  })
  const stored = (["weight", "training"] as const satisfies StoredKind[]).flatMap((kind) =>
    program.stored(kind).map((slot) => ({ kind, name: slot.name, bytes: bytesOf(slot, tensors[slot.name]!.data) })),
  )
  for (const slot of program.stored("training")) {
    const after = want[slot.name]
    if (after === undefined) continue
    expected.push({ kind: "training", name: slot.name, bytes: bytesOf(slot, after), rtol: opCase.rtol ?? 1e-5 })
  }
  const inputs = Object.fromEntries(program.inputs.map((slot) => [slot.name, bytesOf(slot, tensors[slot.name]!.data)]))
  return { name, nodes: program.nodes.length, bytes: replayFile(program, { stored, inputs, expected }) }
}

/**
 * Replays of every op: `linear-0`, `linear-1`, …; `linear-0-bf16-0` holds the first case of a spec with bf16 activations,
 * which the cpu refuses and GPUs take.
 */
export async function* opReplays(): AsyncGenerator<OpReplay> {
  const counts = new Map<string, number>() // an op may have several specs
  for (const spec of await allSpecs()) {
    for (const [i, opCase] of chosen(spec).entries()) {
      const op = spec.op.definition.name
      const number = counts.get(op) ?? 0
      counts.set(op, number + 1)
      const name = `${op}-${number}`
      yield await recorded(spec, opCase, name)
      if (i > 0) continue
      for (const [k, variant] of bf16Variants(spec, opCase).entries())
        yield await recorded(spec, variant, `${name}-bf16-${k}`)
    }
  }
}
