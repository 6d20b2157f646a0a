/**
 * `selscan bench`: how fast a model is on this machine.
 */
import { existsSync } from "node:fs"
import { join } from "node:path"
import type { CAC } from "cac"
import { expect } from "../errors.ts"
import type { Spread } from "../generate/limits.ts"
import type { Model } from "../generate/model.ts"
import { profile } from "../generate/profile.ts"
import { randomModel } from "../generate/random-weights.ts"
import { type Speed, speed } from "../generate/speed.ts"
import { presets } from "../models/presets.ts"
import { devices, setThreads, splitsProducts } from "../native.ts"
import { modelHelp, openModel, progress, type RunFlags, runOptions } from "./common.ts"
import { megabytes } from "./info.ts"
import { interruptible } from "./interrupt.ts"
import { profileLines } from "./profile-table.ts"

interface Flags extends RunFlags {
  model: string
  prefill: number
  decode: number
  batch: number
  repeats: number
  profile?: boolean
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
    .option("--batch <n>", "Sequences that decode side by side", { default: 1 })
    .option("--repeats <n>", "Times that all of it is measured, after once that is not", { default: 5 })
    .option(
      "--profile",
      "Print where the time goes instead: every op with its bytes, operations and share of the limit",
    )
  runOptions(command)
    .option(
      "--json",
      "Print one object: prefill and decode as { median, min, max } tokens/s, bytes, readBandwidth, share; or the profile",
    )
    .example("selscan bench --model mamba-130m --prefill 512 --decode 64 --threads 2 --json")
    .example("selscan bench --model demo --profile")
    .action((flags: Flags) => interruptible((signal) => bench(flags, signal)))
}

async function bench(flags: Flags, signal: AbortSignal): Promise<number> {
  const { json, prefill, decode, batch, repeats } = flags
  expect(
    Number.isSafeInteger(batch) && batch >= 1 && batch <= 4096,
    "BAD_OPTION",
    () => `bench: --batch is a whole number from 1 to 4096, got ${batch}`,
  )
  await using model = await opened(flags, signal)
  const bar = progress("rounds", flags)
  const options = { prefill, decode, batch, repeats, signal, onProgress: bar.update }
  if (flags.profile) {
    const result = await profile(model, options).finally(() => bar.stop())
    if (json) console.log(JSON.stringify({ ...circumstances(flags, model), ...result }))
    else console.log([headLine(flags, model), ...profileLines(flags, result)].join("\n"))
    return 0
  }
  const result = await speed(model, options).finally(() => bar.stop())
  if (json) console.log(JSON.stringify({ ...circumstances(flags, model), ...result }))
  else print(flags, model, result)
  return 0
}

/** A folder or shipped model, or a preset's size with random weights. */
async function opened(flags: Flags, signal: AbortSignal): Promise<Model> {
  const { model: name, precision, weights, device, threads, batch } = flags
  if (!Object.hasOwn(presets, name) || existsSync(join(name, "config.json"))) {
    return await openModel(name, flags, signal, { sessions: batch })
  }
  if (threads !== undefined) await setThreads(threads)
  const dtype = precision === undefined || precision === "bf16" ? "bf16" : "f32"
  return await randomModel(name, dtype, { sessions: batch, precision, weights, device }, signal)
}

function circumstances({ model: name, prefill, decode, batch, repeats }: Flags, model: Model) {
  const { device, precision, matrixDtype, int8 } = model
  const threads = devices().find((one) => one.name === "cpu")!.threads
  return {
    model: name,
    device,
    ...(device === "cpu" && { threads }),
    weights: int8.size > 0 ? "int8" : matrixDtype,
    precision,
    sizes: { prefill, decode, batch, repeats },
  }
}

function headLine(flags: Flags, model: Model): string {
  const { device, threads, weights, precision } = circumstances(flags, model)
  const where = `${device}${threads === undefined ? "" : `, ${threads} threads`}`
  const exact = precision === "bf16x3" && !splitsProducts() ? " (f32's: no AMX on this processor)" : ""
  return `${flags.model}: ${weights} weights, ${precision} products${exact}, ${where}`
}

function print(flags: Flags, model: Model, { prefill, decode, bytes, readBandwidth, share }: Speed): void {
  const { batch } = flags
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
