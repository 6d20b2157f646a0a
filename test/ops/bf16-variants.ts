/**
 * Cases with activations in bf16, made from those in f32: for devices that store activations so.
 */
import { bf16, type OpCase, type OpSpec } from "./spec.ts"

/** Inputs that the op's signature marks `float`, but for weights: those that may be stored as bf16 on a device. */
export function activationsOf(spec: OpSpec): string[] {
  return Object.entries(spec.op.definition.inputs as Record<string, string>).flatMap(([key, signature]) => {
    const name = key.replace("?", "")
    return /^float\b/.test(signature) && name !== "weight" ? [name] : []
  })
}

/**
 * The case with bf16 activations, in every mixture that the spec names; by default all of them are bf16. Inputs are rounded
 * first, so that the reference computes from what the kernel reads. None where the case has no activations.
 */
export function bf16Variants(spec: OpSpec, opCase: OpCase): OpCase[] {
  const mixtures = spec.bf16 ?? [{ inputs: activationsOf(spec) }]
  return mixtures.flatMap(({ inputs, dtype }): OpCase[] => {
    const given = inputs.filter((key) => opCase.inputs[key]?.dtype === "f32")
    if (given.length === 0 && dtype === undefined) return []
    const rounded = given.map((key) => [key, bf16(opCase.inputs[key]!)] as const)
    const words = [...given, ...(dtype === undefined ? [] : [`to ${dtype}`])]
    return [
      {
        ...opCase,
        title: `${opCase.title}, bf16 ${words.join(" ")}`,
        inputs: { ...opCase.inputs, ...Object.fromEntries(rounded) },
        ...(dtype !== undefined && { attrs: { ...opCase.attrs, dtype } }),
      },
    ]
  })
}
