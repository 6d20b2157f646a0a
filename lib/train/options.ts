/**
 * Options of a training run: names, defaults with their sources, and checks. They are stored with every checkpoint, and a
 * resumed run uses those.
 */

import { checkOptions, expect } from "../errors.ts"
import { checkPrecision, type Precision } from "../graph/trace.ts"
import { type ModelConfig, type ModelSize, modelConfig } from "../models/config.ts"
import { type MegaByteConfig, type MegaByteSize, megabyteConfig } from "../models/megabyte.ts"
import { modelPreset } from "../models/presets.ts"
import type { Device } from "../native.ts"
import { optimizerDefaults } from "./program.ts"

/** Sizes whose vocabulary is the 256 bytes unless they say another. */
type Bytes<Size extends { readonly vocab: number }> = Omit<Size, "vocab"> & { readonly vocab?: number }

export interface TrainOptions {
  /** Text files; their bytes, one after another, are the training text. */
  readonly files: readonly string[]
  /** Folder of the run: checkpoint, model, metrics and plot. */
  readonly out: string
  /** A preset's name, or the sizes and pattern of a model over the 256 bytes, or the sizes of a MegaByte. Default: dim 256, 6 Mamba blocks. */
  readonly model?: string | Bytes<ModelSize> | Bytes<MegaByteSize>
  /** Optimizer steps. Default 2000. */
  readonly steps?: number
  /** Sequences per batch. Default 16. */
  readonly batch?: number
  /** Bytes per sequence; of a MegaByte whole patches. Default 512. */
  readonly length?: number
  /** Batches per step; gradients are summed over them. Default 1. */
  readonly accumulation?: number
  /** Peak learning rate. Default 0.003, five times GPT-3's 6e-4 (Mamba §E.2.1). */
  readonly rate?: number
  /** Final learning rate. Default 1e-5 (Mamba §E.2.1). */
  readonly minRate?: number
  /** Steps of linear warm-up. Default a twentieth of the steps. */
  readonly warmup?: number
  /** Weight decay of the matrices. Default 0.1 (Mamba §E.2.1). */
  readonly decay?: number
  /** Largest joint norm of the gradients. Default 1 (Mamba §E.2.1). */
  readonly clip?: number
  /** AdamW's betas. Default 0.9 and 0.95 (Mamba §E.2.1). */
  readonly beta1?: number
  readonly beta2?: number
  /** Probability that a sequence starts from a zero state instead of continuing. Default 0.05. */
  readonly reset?: number
  /** What products are made of, see `Precision`. Default f32. */
  readonly precision?: Precision
  /** Recompute blocks in the backward pass: less memory, about a third more time. Default false. */
  readonly recompute?: boolean
  /** Fraction of the text kept out of training to judge by. Default 0.01. */
  readonly validation?: number
  /** Steps between validations. Default 200. */
  readonly validateEvery?: number
  /** Steps between checkpoints. Default 200. */
  readonly saveEvery?: number
  /** Seed of weights and of the order of data. Default 0. */
  readonly seed?: number
  /** Where to train. Default `auto`: cuda where it can be used, else the cpu. Not part of the recipe: a run may go on elsewhere. */
  readonly device?: Device
}

/** Every option with its value: what a checkpoint stores. */
export type TrainRecipe = Required<Omit<TrainOptions, "model" | "out" | "device">> & {
  readonly config: ModelConfig | MegaByteConfig
}

const defaults = {
  steps: 2000,
  batch: 16,
  length: 512,
  accumulation: 1,
  rate: 0.003,
  minRate: 1e-5,
  decay: optimizerDefaults.decay,
  clip: optimizerDefaults.clip,
  beta1: optimizerDefaults.beta1,
  beta2: optimizerDefaults.beta2,
  reset: 0.05,
  precision: "f32" as Precision,
  recompute: false,
  validation: 0.01,
  validateEvery: 200,
  saveEvery: 200,
  seed: 0,
}

const known = [...Object.keys(defaults), "files", "out", "model", "warmup", "device"]

/** Fills in defaults and checks every value. Throws BAD_OPTION naming the option. */
export function trainRecipe(options: TrainOptions): TrainRecipe {
  checkOptions("train", options, known)
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as TrainOptions
  const filled = { ...defaults, ...given }
  const recipe = {
    ...filled,
    warmup: given.warmup ?? Math.ceil(filled.steps / 20),
    config: configOf(given.model ?? { dim: 256, layers: 6 }),
  }
  checkRecipe(recipe)
  const { out: _out, model: _model, device: _device, ...stored } = recipe as typeof recipe & Partial<TrainOptions>
  return stored as TrainRecipe
}

/** Checks every value of a recipe, whether options or a checkpoint gave it. Throws BAD_OPTION naming the option. */
export function checkRecipe(recipe: TrainRecipe): void {
  expect(
    Array.isArray(recipe.files) && recipe.files.every((file) => typeof file === "string"),
    "BAD_OPTION",
    () => `train: files is an array of paths, got ${JSON.stringify(recipe.files)}`,
  )
  for (const name of ["steps", "batch", "length", "accumulation", "validateEvery", "saveEvery"] as const) {
    whole(name, recipe[name], 1)
  }
  for (const name of ["warmup", "seed"] as const) whole(name, recipe[name], 0)
  for (const name of ["rate", "clip"] as const) range(name, recipe[name], Number.MIN_VALUE, Number.MAX_VALUE)
  for (const name of ["minRate", "decay"] as const) range(name, recipe[name], 0, Number.MAX_VALUE)
  for (const name of ["beta1", "beta2"] as const) range(name, recipe[name], 0, 1 - 2 ** -24)
  range("reset", recipe.reset, 0, 1)
  range("validation", recipe.validation, 0, 0.5)
  checkPrecision("train", recipe.precision)
  expect(
    typeof recipe.recompute === "boolean",
    "BAD_OPTION",
    () => `train: recompute is true or false, got ${recipe.recompute}`,
  )
  const { patch = 1 } = recipe.config as Partial<MegaByteConfig>
  expect(
    recipe.length % patch === 0,
    "BAD_OPTION",
    () => `train: length is a multiple of the model's patch of ${patch} bytes, got ${recipe.length}`,
  )
  expect(
    recipe.config.vocab === 256,
    "BAD_OPTION",
    () =>
      `train: text is trained as bytes, so the vocabulary is 256, got ${recipe.config.vocab}; choose a mambabyte preset or samba-byte`,
  )
}

function configOf(model: NonNullable<TrainOptions["model"]>): ModelConfig | MegaByteConfig {
  if (typeof model === "string") return modelPreset(model)
  return "patch" in model ? megabyteConfig({ vocab: 256, ...model }) : modelConfig({ vocab: 256, ...model })
}

function whole(name: string, value: number, least: number): void {
  expect(
    Number.isSafeInteger(value) && value >= least,
    "BAD_OPTION",
    () => `train: ${name} is a whole number of at least ${least}, got ${value}`,
  )
}

function range(name: string, value: number, low: number, high: number): void {
  expect(
    typeof value === "number" && value >= low && value <= high,
    "BAD_OPTION",
    () => `train: ${name} is a number from ${low} to ${high}, got ${value}`,
  )
}
