import { expect } from "../../../lib/errors.ts"
import { trace } from "../../../lib/graph/program.ts"
import { Store } from "../../../lib/native.ts"
import { adamW } from "../../../lib/ops/adam-w.ts"
import { device } from "../../device.ts"
import type { GoldenCase } from "../case.ts"
import { type Comparison, compare } from "../compare.ts"
import { type CaseFamily, run } from "../family.ts"

/**
 * paramK before the first step, gradsK (steps, …); paramsK (steps, …) after each step, exp_avgK and exp_avg_sqK after the
 * last. lr is a number or one per step, weight_decay a number or one per tensor.
 */
export const adamWFamily: CaseFamily = {
  ops: ["adamw"],
  run: async (golden) => {
    const keys = golden.names("in.param")
    const tensors = keys.map((key, i) => ({
      key,
      shape: golden.shape(`in.param${key}`),
      decay: nth(golden, "weight_decay", i),
    }))
    await using store = new Store(device)
    for (const { key, shape } of tensors) {
      await store.upload("weight", { name: `param${key}`, dtype: "f32", shape }, golden.floats(`in.param${key}`))
    }
    const executable = await store.compile(stepProgram(golden, tensors))
    const comparisons: Comparison[] = []
    const params = tensors.map(({ key }) => new Float32Array(golden.floats(`in.grads${key}`).length))
    const steps = golden.shape(`in.grads${keys[0]}`)[0]!
    for (let step = 0; step < steps; step++) {
      const grads = tensors.map(({ key }) => [`grad${key}`, part(golden.floats(`in.grads${key}`), step, steps)])
      const scalars = { rate: nth(golden, "lr", step), step: step + 1, clip: 1 }
      const inputs = Object.entries(scalars).map(([name, value]) => [name, Float32Array.of(value)])
      await run(executable, Object.fromEntries([...grads, ...inputs]))
      for (const [i, { key }] of tensors.entries()) {
        const now = new Float32Array((await store.download("weight", `param${key}`)).buffer)
        params[i]!.set(now, step * now.length)
      }
    }
    for (const [i, { key }] of tensors.entries()) {
      const moment = async (name: string) =>
        new Float32Array((await store.download("training", `${name}${key}`)).buffer)
      comparisons.push(compare(golden, `out.params${key}`, params[i]!))
      comparisons.push(compare(golden, `out.exp_avg${key}`, await moment("m")))
      comparisons.push(compare(golden, `out.exp_avg_sq${key}`, await moment("v")))
    }
    return comparisons
  },
}

function stepProgram(golden: GoldenCase, tensors: { key: string; shape: readonly number[]; decay: number }[]) {
  const [beta1, beta2] = golden.attrs.betas as [number, number]
  return trace("adamw", (t) => {
    const scalar = (name: string) => t.input(name, "f32", [])
    const shared = { rate: scalar("rate"), step: scalar("step"), clip: scalar("clip") }
    for (const { key, shape, decay } of tensors) {
      const stored = (name: string) => t.training(`${name}${key}`, "f32", shape)
      const param = t.weight(`param${key}`, "f32", shape)
      const values = { param, grad: t.input(`grad${key}`, "f32", shape), m: stored("m"), v: stored("v") }
      adamW({ ...values, ...shared }, { beta1, beta2, eps: golden.number("eps", 1e-8), decay })
    }
    return {}
  })
}

/** An attribute that is one number for all, or a list. */
function nth(golden: GoldenCase, name: string, i: number): number {
  const value = golden.attrs[name]
  const one = Array.isArray(value) ? value[i] : value
  expect(
    typeof one === "number",
    "BAD_FILE",
    () => `${golden.path}: ${name} is a number or a list with entry ${i}, got ${JSON.stringify(value)}`,
  )
  return one
}

const part = (data: Float32Array, i: number, parts: number) =>
  data.slice((i * data.length) / parts, ((i + 1) * data.length) / parts)
