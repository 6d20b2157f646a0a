import { expect } from "../../../lib/errors.ts"
import { split } from "../../../lib/ops/columns.ts"
import { linear } from "../../../lib/ops/linear.ts"
import { swiglu } from "../../../lib/ops/swiglu.ts"
import type { GoldenCase } from "../case.ts"
import { type CaseFamily, type Form, present, runForm } from "../family.ts"
import { reshaped } from "../layout.ts"

/** A whole gated MLP, weights (out, in): `llama` is down(silu(gate·x) ⊙ up·x), `gated` fc2(value ⊙ silu(gate)) of one fc1. */
export const swigluFamily: CaseFamily = {
  ops: ["swiglu_mlp"],
  run: (golden) => {
    const shape = golden.shape("in.x")
    const dim = shape.at(-1)!
    const rows = (from: readonly number[]) => reshaped(from, [shape.slice(0, -1).reduce((n, size) => n * size, 1), dim])
    const weights = golden.names("in.").filter((name) => name !== "x")
    return runForm(golden, {
      inputs: present(golden, { x: rows, ...Object.fromEntries(weights.map((name) => [name, reshaped])) }),
      outputs: { y: rows(shape) },
      forward: formOf(golden),
    })
  },
}

function formOf(golden: GoldenCase): Form["forward"] {
  const form = golden.attrs.form
  expect(
    form === "llama" || form === "gated",
    "BAD_FILE",
    () => `${golden.path}: attribute form is llama or gated, got ${form}`,
  )
  if (form === "llama") {
    return ({ x, gate_proj, up_proj, down_proj }) => {
      const gate = linear({ x: x!, weight: gate_proj! }).y
      const up = linear({ x: x!, weight: up_proj! }).y
      return { y: linear({ x: swiglu({ gate, up }).y, weight: down_proj! }).y }
    }
  }
  return ({ x, fc1, fc2 }) => {
    const both = linear({ x: x!, weight: fc1! }).y
    const { a: up, b: gate } = split({ x: both }, { first: both.shape[1]! / 2 })
    return { y: linear({ x: swiglu({ gate, up }).y, weight: fc2! }).y }
  }
}
