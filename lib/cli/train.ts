import type { CAC } from "cac"
import { SingleBar } from "cli-progress"
import { expect } from "../errors.ts"
import type { ModelSize } from "../models/config.ts"
import { setThreads } from "../native.ts"
import type { TrainOptions } from "../train/options.ts"
import { type TrainEvent, train } from "../train/train.ts"
import { interruptible } from "./interrupt.ts"

type Flags = Record<string, unknown> & { json?: boolean; resume?: string; threads?: number }

/** Options of the command that are numbers of TrainOptions under the same name, with their help. */
const numbers = {
  steps: "Optimizer steps (2000)",
  batch: "Sequences per batch (16)",
  length: "Bytes per sequence (512)",
  accumulation: "Batches per step (1)",
  rate: "Peak learning rate (0.003)",
  minRate: "Final learning rate (1e-5)",
  warmup: "Steps of warm-up (a twentieth of the steps)",
  decay: "Weight decay of matrices (0.1)",
  clip: "Largest norm of the gradients (1)",
  beta1: "AdamW's beta1 (0.9)",
  beta2: "AdamW's beta2 (0.95)",
  reset: "Probability that a sequence starts from a zero state (0.05)",
  validation: "Fraction of the text to judge by (0.01)",
  validateEvery: "Steps between validations (200)",
  saveEvery: "Steps between checkpoints (200)",
  seed: "Seed of weights and data order (0)",
} as const satisfies Partial<Record<keyof TrainOptions, string>>

/** Options of the command that are sizes of a model under the same name. */
const sizes = {
  dim: "Width of the model (256)",
  layers: "Blocks in all, a multiple of the pattern's (6)",
  pattern: "Blocks by name, repeated: mamba, sliding, full, swiglu, gla, retention (mamba)",
  state: "States per channel of mamba (16)",
  expand: "Inner width of mamba over width (2)",
  heads: "Query heads of attention (dim/64)",
  kvHeads: "Key and value heads of attention (heads)",
  window: "Keys that sliding sees (2048)",
  contextMax: "Positions that full can have (4096)",
  mlp: "Inner width of swiglu (8/3 of width, rounded up to 64)",
} as const satisfies Partial<Record<keyof ModelSize, string>>

/** An option's name as it is typed. */
const dashed = (name: string) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)

/** `selscan train`: trains a byte-level model from scratch on text files. */
export function trainCommand(cli: CAC): void {
  const command = cli
    .command("train", "Train a byte-level Mamba, SAMBA or Llama from scratch on text files")
    .option("--file <...file>", "Text to train on; may be given several times")
    .option("--out <folder>", "Folder for checkpoint, model, metrics and plot")
    .option("--resume <folder>", "Go on from a run's last checkpoint, with its recipe")
    .option("--preset <preset>", "mambabyte-353m, mambabyte-972m, mambabyte-1.6b or samba-byte instead of sizes")
  for (const [name, help] of Object.entries({ ...sizes, ...numbers }))
    command.option(`--${dashed(name)} <${name === "pattern" ? "pattern" : "n"}>`, help)
  command
    .option("--precision <precision>", "f32, or bf16 products, or bf16x3, which is f32 on AMX (f32)")
    .option("--recompute", "Recompute blocks in the backward pass: less memory, more time")
    .option("--device <device>", "auto, cpu, cuda or cuda:N; auto is cuda where it can be used (auto)")
    .option("--threads <n>", "Threads, 0 for all usable cores (SELSCAN_THREADS, else 0)")
    .option("--json", "Print one object per line for every event")
    .example("selscan train --file book.txt --out runs/book --steps 500")
    .example(
      "selscan train --file book.txt --out runs/samba --pattern mamba,swiglu,sliding,swiglu --layers 8 --window 256",
    )
    .action((flags: Flags) => interruptible((signal) => run(flags, signal)))
}

async function run(flags: Flags, signal: AbortSignal): Promise<number> {
  if (flags.threads !== undefined) await setThreads(flags.threads)
  const options = optionsOf(flags)
  const { show, stop } = flags.json ? jsonLines : progressBar()
  try {
    for await (const event of train(options, { signal, resume: flags.resume !== undefined })) show(event)
  } finally {
    stop()
  }
  if (!flags.json)
    console.error(signal.aborted ? `interrupted and saved; go on with --resume ${options.out}` : `done: ${options.out}`)
  return signal.aborted ? 130 : 0
}

function optionsOf(flags: Flags): TrainOptions {
  const pick = (names: readonly string[]) =>
    Object.fromEntries(names.filter((name) => flags[name] !== undefined).map((name) => [name, flags[name]]))
  const size = pick(Object.keys(sizes))
  if (size.pattern !== undefined) size.pattern = String(size.pattern).split(",")
  expect(
    flags.preset === undefined || Object.keys(size).length === 0,
    "BAD_OPTION",
    () => "train: give either --preset or sizes, got both",
  )
  if (flags.resume !== undefined) {
    const others = Object.keys(
      pick([...Object.keys({ ...sizes, ...numbers }), "file", "out", "preset", "precision", "recompute"]),
    )
    expect(
      others.length === 0,
      "BAD_OPTION",
      () => `train: a resumed run keeps its recipe; leave out --${others.map(dashed).join(", --")}`,
    )
    return { files: [], out: String(flags.resume), ...pick(["device"]) }
  }
  expect(flags.out !== undefined, "BAD_OPTION", () => "train: a folder for the run is expected; name it with --out")
  const model = flags.preset === undefined ? { dim: 256, layers: 6, ...size } : String(flags.preset)
  const files = [flags.file ?? []].flat().map(String)
  return {
    ...pick([...Object.keys(numbers), "precision", "recompute", "device"]),
    files,
    out: String(flags.out),
    model,
  } as TrainOptions
}

/** How events are shown. */
interface Display {
  readonly show: (event: TrainEvent) => void
  /** Ends the display: a bar that is not stopped keeps its timer, and with it the process. */
  readonly stop: () => void
}

const jsonLines: Display = { show: (event) => console.log(JSON.stringify(event)), stop: () => {} }

/** A bar on terminals, a line per validation elsewhere. */
function progressBar(): Display {
  const bar = new SingleBar({
    format: "{bar} {value}/{total} | {bits} bits/byte | {speed} KB/s | {left} left | validation {validation}",
    stream: process.stderr,
    stopOnComplete: true,
  })
  const shown = { bits: "–", speed: "–", left: "–", validation: "–" }
  let started = false
  const show = (event: TrainEvent) => {
    if (event.type === "validation") {
      shown.validation = event.bitsPerByte.toFixed(4)
      if (!process.stderr.isTTY)
        console.error(
          `step ${event.step}: validation ${shown.validation} bits per byte, ${shown.speed} KB/s, ${shown.left} left`,
        )
    }
    if (event.type === "step") {
      shown.bits = event.bitsPerByte.toFixed(3)
      shown.speed = (event.bytesPerSecond / 1000).toFixed(1)
      shown.left = duration(event.secondsLeft)
      if (process.stderr.isTTY && !started) bar.start(event.steps, event.step, shown)
      started = true
      if (process.stderr.isTTY) bar.update(event.step, shown)
    }
  }
  return { show, stop: () => bar.stop() }
}

function duration(seconds: number): string {
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)]
  return hours > 0
    ? `${hours} h ${minutes} min`
    : minutes > 0
      ? `${minutes} min ${Math.floor(seconds % 60)} s`
      : `${Math.ceil(seconds)} s`
}
