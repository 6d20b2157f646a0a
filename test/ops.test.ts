/**
 * Runs every case of test/ops/*.ts on the device under test (test/device.ts): the kernel against the f64 reference, its
 * gradient against finite differences of that reference, and twice for the same bits. Where the device stores activations
 * as bf16, every case whose op has any runs with those too.
 *
 * OP=name runs one op alone, SLOW=1 the large shapes as well.
 */
import test, { type ExecutionContext } from "ava"
import { gradients } from "../lib/graph/gradient.ts"
import { trace } from "../lib/graph/program.ts"
import type { Value } from "../lib/graph/value.ts"
import { arithmetic } from "../lib/ops/cast.ts"
import { device, storesBf16, workMax } from "./device.ts"
import { allSpecs } from "./ops/all-specs.ts"
import { bf16Variants } from "./ops/bf16-variants.ts"
import { closeTo, declare, largest, type Numbers, roundingError, run } from "./ops/harness.ts"
import { bf16, normal, type OpCase, type OpSpec, random, type Tensor64 } from "./ops/spec.ts"

const only = process.env.OP

// All are loaded before the first test is declared: ava wants declarations in one turn.
for (const spec of await allSpecs()) {
  const { name } = spec.op.definition
  if (only !== undefined && only !== name) continue
  for (const opCase of spec.cases) {
    for (const one of [opCase, ...(storesBf16 ? bf16Variants(spec, opCase) : [])]) declareTests(name, spec, one)
  }
}

function declareTests(name: string, spec: OpSpec, opCase: OpCase): void {
  // Large shapes take the reference minutes; finite differences of them would take hours.
  if (opCase.slow && process.env.SLOW === undefined) return
  const work = workOf(spec, opCase)
  const title = `${name} equals its reference: ${opCase.title}`
  if (work > workMax) {
    test.skip(`${title} (${(work / 1e6).toFixed(1)} million multiply-adds, too many for ${device})`, () => {})
    return
  }
  test(title, (t) => againstReference(t, spec, opCase))
  if (spec.differentiable.length === 0 || opCase.slow) return
  test(`${name} has the gradient of its reference: ${opCase.title}`, (t) => againstDifferences(t, spec, opCase))
}

/** Multiply-adds of one run: what the spec says, else one for each element of the inputs. */
function workOf(spec: OpSpec, { inputs, attrs }: OpCase): number {
  if (spec.work !== undefined) return spec.work(inputs, attrs)
  return Object.values(inputs).reduce((total, tensor) => total + (tensor?.data.length ?? 0), 0)
}

async function againstReference(t: ExecutionContext, spec: OpSpec, opCase: OpCase): Promise<void> {
  const expected = spec.reference(opCase.inputs, { ...spec.op.definition.attrs, ...opCase.attrs })
  const program = trace(opCase.title, (tr) => {
    const outputs = spec.op(declare(tr, spec, opCase), opCase.attrs)
    return Object.fromEntries(Object.entries(outputs as Record<string, Value>).filter(([key]) => key in expected))
  })
  const first = await run(program, spec, opCase)
  const second = await run(program, spec, opCase)
  for (const [key, want] of Object.entries(expected)) {
    t.true(key in first, `${key} is an output or an updated input`)
    t.deepEqual(second[key], first[key], `${key} has the same bits twice`)
    const rounded = program.outputs[key]?.dtype === "bf16" ? 2 * roundingError(want) : 0
    closeTo(t, key, first[key]!, want, rounded + (opCase.rtol ?? 1e-5) * largest(want) + 1e-30)
  }
}

async function againstDifferences(t: ExecutionContext, spec: OpSpec, opCase: OpCase): Promise<void> {
  const attrs = { ...spec.op.definition.attrs, ...opCase.attrs }
  const wrt = spec.differentiable.filter((key) => opCase.inputs[key] !== undefined)
  const cotangents: Record<string, Tensor64> = {}
  const program = trace(opCase.title, (tr) => {
    const inputs = declare(tr, spec, opCase)
    const outputs = spec.op(inputs, opCase.attrs) as Record<string, Value>
    const pairs = (spec.cotangents ?? [Object.keys(outputs)[0]!]).map((key, i) => {
      const { dtype, shape } = outputs[key]!
      const exact = normal(shape, 1000 + i)
      cotangents[key] = dtype === "bf16" ? bf16(exact) : exact
      return [outputs[key]!, tr.input(`d${key}`, dtype, shape)] as const
    })
    const grads = gradients(
      pairs,
      wrt.map((key) => inputs[key]!),
      arithmetic,
    )
    return Object.fromEntries(wrt.map((key, i) => [key, grads[i]!]))
  })
  const extra = Object.fromEntries(Object.entries(cotangents).map(([key, value]) => [`d${key}`, value]))
  const got = await run(program, spec, opCase, extra)
  const loss = (inputs: OpCase["inputs"]) => {
    const outputs = spec.reference(inputs, attrs)
    return Object.entries(cotangents).reduce(
      (total, [key, { data }]) => total + outputs[key]!.reduce((part, value, i) => part + value * data[i]!, 0),
      0,
    )
  }
  // A gradient in bf16 is rounded once more on its way, before a product or a sum: each rounding is 2⁻⁹ of a term.
  const halves = Object.values(opCase.inputs).some(
    (tensor) => tensor?.dtype === "bf16" && tensor !== opCase.inputs.weight,
  )
  for (const key of wrt) compareWithDifferences(t, key, got[key]!, opCase.inputs, loss, halves ? 2 ** -7 : 1e-4)
}

function compareWithDifferences(
  t: ExecutionContext,
  key: string,
  got: Numbers,
  inputs: OpCase["inputs"],
  loss: (inputs: OpCase["inputs"]) => number,
  rtol: number,
): void {
  const tensor = inputs[key]!
  const next = random(7)
  const scale = Math.max(largest(got.subarray(0, 100_000)), 1e-3)
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
      Math.abs(got[index]! - difference) <= rtol * scale,
      `d${key}[${index}]: finite difference ${difference}, got ${got[index]}, largest ${scale}`,
    )
  }
}
