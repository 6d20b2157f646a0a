/**
 * Linear layers and the gradients of their products.
 */
import { expect } from "../errors.ts"
import { op } from "../graph/op.ts"
import { checkPrecision } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { add } from "./elementwise.ts"
import { sumRows } from "./reduce.ts"

/** What a linear applies to its result. */
export type Activation = "none" | "silu" | "softplus" | "gelu"

const activations: readonly string[] = ["none", "silu", "softplus", "gelu"] satisfies readonly Activation[]

/** Numbers of a row that share a scale, in weights of 8 bits. */
export const groupSize = 32

/** Scales of a row of so many numbers; the last group may be shorter. */
export const groupsOf = (columns: number): number => Math.ceil(columns / groupSize)

/** Throws unless scales, where there are any, are one for each group of a row. */
export function checkGroups(where: string, columns: number, groups: number | undefined): void {
  expect(
    groups === undefined || groups === groupsOf(columns),
    "BAD_SHAPE",
    () => `${where}: scales are one for each ${groupSize} of ${columns}, ${groupsOf(columns)}, got ${groups}`,
  )
}

/** Throws for a weight of 8 bits, which no gradient can reach. */
export function checkTrainable(where: string, scales: Value | undefined): void {
  expect(
    scales === undefined,
    "BAD_INPUT",
    () => `${where}: a weight of f32 or bf16 is expected where gradients are asked for, got one of i8; train in f32`,
  )
}

function checkActivation(where: string, activation: string): void {
  expect(
    activations.includes(activation),
    "BAD_OPTION",
    () => `${where}: activation is ${activations.join(", ")}, got ${activation}; apply others as an op of their own`,
  )
}

/**
 * Linear layer: every row times a matrix, with what usually follows it.
 *
 *   pre = x·Wᵀ + bias      y = act(pre) + residual      silu(v) = v/(1 + e^−v)      softplus(v) = log(1 + e^v)
 *   gelu(v) = v·Φ(v) = v/2·(1 + erf(v/√2))
 *
 * Each element is one f32 sum over `in` in rising order, the same bits for any number of rows. With precision bf16, x and
 * the weight are rounded to bf16 (nearest even) and products are summed in f32; the default keeps both in f32. With bf16x3, on a cpu with
 * AMX, each of them is h + l of two bf16, and h·h, h·l and l·h of every 32 are summed in f32: what is left out is at most 2⁻¹⁵ of Σ|x·W|,
 * with a weight stored as bf16 2⁻¹⁷. Without AMX it is f32. An overflow may give NaN there instead of infinity. softplus(v)
 * is v above 20, as in torch; gelu is the exact one, right relatively far below 0 too. `pre` is there for the gradient. y and pre are of `dtype`: f32, bf16, or that of x.
 *
 * A weight of 8 bits is q·s: whole numbers q of i8 in [−127, 127], a scale s for every 32 of a row. x is rounded to 8 bits then too,
 * whatever the precision: to multiples of max|x|/127 over the same 32. Their products are summed exactly within 32 and in f32 over those
 * sums, in rising order. It has no gradient, and only the cpu multiplies by it.
 *
 * @example
 * const { y } = linear({ x, weight, bias }, { activation: "softplus" })
 */
export const linear = op({
  name: "linear",
  inputs: {
    x: "float rows in",
    weight: "matrix out in",
    "bias?": "out",
    "residual?": "float rows out",
    "scales?": "bf16 out groups",
  },
  outputs: { y: "float rows out", pre: "float rows out" },
  attrs: { activation: "none", precision: "f32", dtype: "same" },
  dims: (dims, { activation, precision }) => {
    checkActivation("linear", activation)
    checkPrecision("linear", precision)
    checkGroups("linear", dims.in!, dims.groups)
    return {}
  },
  grad: ({ x, weight, bias, residual, scales }, { pre }, { activation, precision }, grads) => {
    checkTrainable("linear", scales)
    const through =
      grads.y && (activation === "none" ? grads.y : activationGrad({ dy: grads.y, pre }, { activation }).dx)
    const dpre = through && grads.pre ? add({ a: through, b: grads.pre }).y : (through ?? grads.pre)!
    return {
      x: linearInputGrad({ dy: dpre, weight }, { precision, dtype: x.dtype }).dx,
      weight: linearWeightGrad({ dy: dpre, x }, { precision }).dweight,
      ...(bias && { bias: sumRows({ x: dpre }).y }),
      ...(residual && { residual: grads.y ?? null }),
    }
  },
})

/**
 * Gradient of a linear's product by its input.
 *
 *   dx = dy·W
 *
 * With precision bf16, dy and the weight are rounded to bf16; bf16x3 is as in `linear`. dx is of `dtype`: f32, bf16, or that of dy.
 */
export const linearInputGrad = op({
  name: "linearInputGrad",
  inputs: { dy: "float rows out", weight: "float out in" },
  outputs: { dx: "float rows in" },
  attrs: { precision: "f32", dtype: "same" },
  grad: null,
})

/**
 * Gradient of a linear's product by its weight: one f32 sum over the rows in rising order for each element.
 *
 *   dW = dyᵀ·x
 *
 * With precision bf16, dy and x are rounded to bf16; bf16x3 is as in `linear`.
 */
export const linearWeightGrad = op({
  name: "linearWeightGrad",
  inputs: { dy: "float rows out", x: "float rows in" },
  outputs: { dweight: "out in" },
  attrs: { precision: "f32" },
  grad: null,
})

/**
 * Gradient through the activation of a linear.
 *
 *   dx = dy·act′(pre)      silu′(v) = σ(v)·(1 + v·(1 − σ(v)))      softplus′(v) = σ(v), 1 above 20
 *   gelu′(v) = Φ(v) + v·e^(−v²/2)/√(2π)
 */
export const activationGrad = op({
  name: "activationGrad",
  inputs: { dy: "float ...", pre: "float ..." },
  outputs: { dx: "float ..." },
  attrs: { activation: "none" },
  grad: null,
})
