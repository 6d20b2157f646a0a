/**
 * The programs of training: a step (forward, gradients, update), and its two halves for accumulated batches.
 */

import { layoutOf, type ModelShape, numericsOf } from "../generate/layout.ts"
import { scoreRows } from "../generate/score.ts"
import { gradients } from "../graph/gradient.ts"
import { type Program, trace } from "../graph/program.ts"
import type { Numerics, Trace } from "../graph/trace.ts"
import type { Value } from "../graph/value.ts"
import { allParameters } from "../layers/layer.ts"
import { headOf, type LanguageModel, startRows } from "../models/language-model.ts"
import { adamW, clipScale } from "../ops/adam-w.ts"
import { arithmetic } from "../ops/cast.ts"
import { accumulate, add, overwrite } from "../ops/elementwise.ts"
import { linearCrossEntropy } from "../ops/linear-cross-entropy.ts"
import { sum, sumSquares } from "../ops/reduce.ts"

/** AdamW and clipping. Defaults: betas and decay of Mamba's Table 12 (arXiv 2312.00752), eps of torch. */
export interface OptimizerOptions {
  readonly beta1: number
  readonly beta2: number
  readonly eps: number
  /** Weight decay of the matrices; A_log, D, biases and norms have none. */
  readonly decay: number
  /** Gradients are scaled so that their joint 2-norm is at most this. */
  readonly clip: number
}

export const optimizerDefaults: OptimizerOptions = { beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, clip: 1 }

/** Shape of one batch: `batch` sequences of `length` tokens, of models that read patches a multiple of the patch. */
export interface BatchShape extends Numerics {
  readonly batch: number
  readonly length: number
  /** Sequences in a whole step: batch times accumulation. */
  readonly streams: number
  readonly recompute: boolean
}

/** Rows of a sequence of so many tokens. */
export const sequenceRows = (model: LanguageModel, length: number): number => length + startRows(model)

/**
 * States of a training run: every stream owns two slots, read and written in turn, and a ring; two slots and a ring more serve
 * validation, whose runs may be longer than a sequence.
 */
export const statesOf = ({
  streams,
  length,
}: {
  streams: number
  length: number
}): Omit<ModelShape, keyof Numerics> => ({
  slots: 3 + 2 * streams,
  rings: { count: 2 + streams, rowsMost: Math.max(length, scoreRows) },
  matrixDtype: "f32",
})

/** What a program of training does with its gradients. */
export type GradientUse = "update" | "overwrite" | "accumulate"

/**
 * One batch. Inputs: ids, targets (rows), those of the layout, scale (1 over all targets of the step that count), and with
 * `update` also rate and step. Output `loss` is the *sum* of the losses in nats; with `update` also `norm`, the gradient's
 * norm before clipping. With `overwrite` and `accumulate` the gradients go to the accumulators, the first batch of a step
 * overwriting what the last step left there.
 */
export function batchProgram(
  model: LanguageModel,
  shape: BatchShape,
  use: GradientUse,
  optimizer: OptimizerOptions,
): Program {
  const { batch, length, recompute } = shape
  return trace(
    `train ${use}`,
    (t) => {
      const patches = model.patches && batch * Math.ceil(length / model.patches.size)
      const rows = { ...layoutOf(t, model, { ...statesOf(shape), patches }, batch), recompute }
      const count = batch * sequenceRows(model, length)
      const hidden = model.forward(t.input("ids", "i32", [count]), rows)
      const targets = t.input("targets", "i32", [count])
      const { losses } = linearCrossEntropy({ x: hidden, ...headOf(model, rows), targets }, { precision: t.precision })
      const loss = sum({ x: losses }).y
      const names = [...allParameters(model)]
      const weights = names.map(([name, { shape }]) => t.weight(name, "f32", shape))
      const grads = gradients([[loss, t.input("scale", "f32", [])]], weights, arithmetic)
      if (use === "update") return { loss, norm: update(t, model, grads, optimizer) }
      const store = use === "overwrite" ? overwrite : accumulate
      names.forEach(([name, { shape }], i) => {
        store({ total: t.training(`grad:${name}`, "f32", shape), x: grads[i]! })
      })
      return { loss }
    },
    numericsOf(shape),
  )
}

/** What `batchProgram` with `update` does one after another. */
export const stepParts = ["forward", "backward", "optimizer"] as const

export type StepPart = (typeof stepParts)[number]

/** The part of every node of a step: forward up to the loss, and the update from the squares of the gradients on. */
export function partsOf({ nodes, outputs }: Program): StepPart[] {
  const loss = nodes.findIndex((node) => Object.values(node.outputs).includes(outputs.loss!))
  const squares = nodes.findIndex(({ op }, i) => i > loss && op === sumSquares.definition)
  return nodes.map((_, i) => (i <= loss ? "forward" : i < squares ? "backward" : "optimizer"))
}

/** The update alone, from accumulated gradients. Inputs: rate, step. Output: norm. */
export function updateProgram(model: LanguageModel, optimizer: OptimizerOptions): Program {
  return trace("train apply", (t) => {
    const grads = [...allParameters(model)].map(([name, { shape }]) => t.training(`grad:${name}`, "f32", shape))
    return { norm: update(t, model, grads, optimizer) }
  })
}

function update(t: Trace, model: LanguageModel, grads: readonly Value[], options: OptimizerOptions): Value {
  const { beta1, beta2, eps, decay, clip: max } = options
  const squares = grads.map((x) => sumSquares({ x }).y).reduce((a, b) => add({ a, b }).y)
  const { norm, scale } = clipScale({ squares }, { max })
  const [rate, step] = [t.input("rate", "f32", []), t.input("step", "f32", [])]
  let i = 0
  for (const [name, parameter] of allParameters(model)) {
    const moment = (which: string) => t.training(`${which}:${name}`, "f32", parameter.shape)
    adamW(
      {
        param: t.weight(name, "f32", parameter.shape),
        grad: grads[i++]!,
        m: moment("m"),
        v: moment("v"),
        rate,
        step,
        clip: scale,
      },
      { beta1, beta2, eps, decay: parameter.decay ? decay : 0 },
    )
  }
  return norm
}
