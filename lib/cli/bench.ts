/**
 * `selscan bench`: how fast a model is on this machine.
 */
import { existsSync } from "node:fs"
import { join } from "node:path"
import type { CAC } from "cac"
import { readConfig } from "../checkpoint/families.ts"
import { expect } from "../errors.ts"
import type { Spread } from "../generate/limits.ts"
import { modelFolder } from "../generate/load.ts"
import type { Model } from "../generate/model.ts"
import { profile } from "../generate/profile.ts"
import { randomModel } from "../generate/random-weights.ts"
import { type Speed, speed } from "../generate/speed.ts"
import type { Precision } from "../graph/trace.ts"
import type { LanguageModel } from "../models/language-model.ts"
import { PatternModel } from "../models/pattern-model.ts"
import { modelPreset, presets } from "../models/presets.ts"
import { type Device, devices, resolveDevice, setThreads, splitsProducts } from "../native.ts"
import { profileTraining } from "../train/profile.ts"
import { modelHelp, openModel, progress, type RunFlags, runOptions } from "./common.ts"
import { megabytes } from "./info.ts"
import { interruptible } from "./interrupt.ts"
import { profileLines, trainingLines } from "./profile-table.ts"

interface Flags extends RunFlags {
  model: string
  prefill: number
  decode: number
  batch?: number
  repeats: number
  profile?: boolean
  training?: boolean
  length?: number
}

/** `selscan bench`: llama-bench of this package. */
export function benchCommand(cli: CAC): void {
  const command = cli
    .command("bench", "Measure how fast a model reads a prompt and decodes, beside what the memory allows")
    .option("--model <model|size>", `${modelHelp}; or a published size, which then has random weights`, {
      default: "demo",
    })
    .option("--prefill <n>", "Tokens of the prompt", { default: 512 })
    .option("--decode <n>", "Tokens to decode", { default: 64 })
    .option("--batch <n>", "Sequences that decode side by side (1), or of a training step (16)")
    .option("--repeats <n>", "Times that all of it is measured, after once that is not", { default: 5 })
    .option(
      "--profile",
      "Print where the time goes instead: every op with its bytes, operations and share of the limit",
    )
    .option("--training", "Print so where the time of a training step goes: forward, backward and optimizer")
    .option("--length <n>", "Tokens of each sequence of a training step (512)")
  runOptions(command)
    .option(
      "--json",
      "Print one object: prefill and decode as { median, min, max } tokens/s, bytes, readBandwidth, share; or a profile",
    )
    .example("selscan bench --model mamba-130m --prefill 512 --decode 64 --threads 2 --json")
    .example("selscan bench --model demo --profile")
    .example("selscan bench --model samba-byte --training --batch 16 --length 512 --precision bf16")
    .action((flags: Flags) => interruptible((signal) => (flags.training ? training : bench)(flags, signal)))
}

async function bench(flags: Flags, signal: AbortSignal): Promise<number> {
  const { json, prefill, decode, repeats, length } = flags
  const batch = batchOf(flags, 1)
  expect(length === undefined, "BAD_OPTION", () => {
    return `bench: --length is of a training step, got ${length} without --training; say --prefill for a prompt`
  })
  await using model = await opened(flags, signal)
  const bar = progress("rounds", flags)
  const options = { prefill, decode, batch, repeats, signal, onProgress: bar.update }
  if (flags.profile) {
    const result = await profile(model, options).finally(() => bar.stop())
    if (json) console.log(JSON.stringify({ ...circumstances(flags, model), ...result }))
    else console.log([headLine(flags, model), ...profileLines({ prefill, batch }, result)].join("\n"))
    return 0
  }
  const result = await speed(model, options).finally(() => bar.stop())
  if (json) console.log(JSON.stringify({ ...circumstances(flags, model), ...result }))
  else print(flags, model, result)
  return 0
}

async function training(flags: Flags, signal: AbortSignal): Promise<number> {
  const { model: name, precision = "f32", weights, threads, repeats, json, length = 512 } = flags
  const batch = batchOf(flags, 16)
  for (const [option, given] of Object.entries({ weights, profile: flags.profile })) {
    expect(given === undefined, "BAD_OPTION", () => {
      return `bench: --training is of weights in f32 and is a profile, got --${option} beside it; leave that out`
    })
  }
  if (threads !== undefined) await setThreads(threads)
  const device = resolveDevice(flags.device) as Device
  const network = await networkOf(name, signal)
  const bar = progress("steps", flags)
  const options = { batch, length, precision, repeats, device, signal, onProgress: bar.update }
  const result = await profileTraining(network, options).finally(() => bar.stop())
  const where = { model: name, ...placeOf(device), precision }
  if (json) console.log(JSON.stringify({ ...where, sizes: { batch, length, repeats }, ...result }))
  else
    console.log(
      [`${name}: ${productsText(precision)}, ${placeText(where)}`, ...trainingLines({ batch, length }, result)].join(
        "\n",
      ),
    )
  return 0
}

function batchOf({ batch }: Flags, standard: number): number {
  const found = batch ?? standard
  const good = Number.isSafeInteger(found) && found >= 1 && found <= 4096
  expect(good, "BAD_OPTION", () => `bench: --batch is a whole number from 1 to 4096, got ${batch}`)
  return found
}

/** Whether a name is of a published size, and of no folder. */
const isPreset = (name: string) => Object.hasOwn(presets, name) && !existsSync(join(name, "config.json"))

/** A folder or shipped model, or a preset's size with random weights. */
async function opened(flags: Flags, signal: AbortSignal): Promise<Model> {
  const { model: name, precision, weights, device, threads } = flags
  const sessions = batchOf(flags, 1)
  if (!isPreset(name)) return await openModel(name, flags, signal, { sessions })
  if (threads !== undefined) await setThreads(threads)
  const dtype = precision === undefined || precision === "bf16" ? "bf16" : "f32"
  return await randomModel(name, dtype, { sessions, precision, weights, device }, signal)
}

/** The same without weights. */
async function networkOf(name: string, signal: AbortSignal): Promise<LanguageModel> {
  if (isPreset(name)) return new PatternModel(modelPreset(name))
  const { config, family } = await readConfig(await modelFolder(name, { signal }))
  return family.network(config)
}

function placeOf(device: string) {
  const threads = devices().find(({ name }) => name === "cpu")!.threads
  return { device, ...(device === "cpu" && { threads }) }
}

const placeText = ({ device, threads }: { device: string; threads?: number | undefined }) =>
  `${device}${threads === undefined ? "" : `, ${threads} threads`}`

const productsText = (precision: Precision) =>
  `${precision} products${precision === "bf16x3" && !splitsProducts() ? " (f32's: no AMX on this processor)" : ""}`

function circumstances({ model: name, prefill, decode, batch = 1, repeats }: Flags, model: Model) {
  const { device, precision, matrixDtype, int8 } = model
  return {
    model: name,
    ...placeOf(device),
    weights: int8.size > 0 ? "int8" : matrixDtype,
    precision,
    sizes: { prefill, decode, batch, repeats },
  }
}

function headLine(flags: Flags, model: Model): string {
  const { weights, precision, ...where } = circumstances(flags, model)
  return `${flags.model}: ${weights} weights, ${productsText(precision)}, ${placeText(where)}`
}

function print(flags: Flags, model: Model, { prefill, decode, bytes, readBandwidth, share }: Speed): void {
  const { batch = 1 } = flags
  const several = batch === 1 ? "" : `, ${batch} sequences`
  console.log(headLine(flags, model))
  console.log(row(`prefill ${flags.prefill}${several}`, prefill))
  console.log(row(`decode ${flags.decode}${several}`, decode))
  console.log(
    `weights ${megabytes(bytes.weights)}, state of a sequence ${megabytes(bytes.state)}, read per token ${megabytes(bytes.perToken)}`,
  )
  console.log(
    `decoding reads ${(100 * share).toFixed(0)}% of the ${(readBandwidth / 1e9).toFixed(1)} GB/s read in this run`,
  )
}

const row = (what: string, { median, min, max }: Spread) =>
  `${what.padEnd(28)} ${rate(median).padStart(10)} tokens/s   (${rate(min)} – ${rate(max)})`

const rate = (value: number) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))
