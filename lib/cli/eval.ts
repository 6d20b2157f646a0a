import type { CAC } from "cac"
import { expect, suggestion } from "../errors.ts"
import { readWhole } from "../train/data.ts"
import { modelHelp, openModel, progress, type RunFlags, runOptions, tokenizerOption } from "./common.ts"
import { judgeContexts } from "./eval-context.ts"
import { interruptible } from "./interrupt.ts"

export interface EvalFlags extends RunFlags {
  model?: string[]
  file?: string
  out?: string
  from?: number
  to?: number
  context?: number
}

type Measure = (bytes: Uint8Array, flags: EvalFlags, signal: AbortSignal) => Promise<void>

const measures: Readonly<Record<string, Measure>> = { bpb: judge, context: judgeContexts }
export const measureNames: readonly string[] = Object.keys(measures)

/** `selscan eval bpb --file F`: bits per byte of a text; `selscan eval context --file F`: the same by length of context. */
export function evalCommand(cli: CAC): void {
  const command = cli
    .command(
      "eval <measure>",
      "Judge a model on a text: bpb is bits per byte, context the same over lengths of context",
    )
    .option("--model <...model>", `${modelHelp} (demo); context takes several`)
    .option("--file <file>", "The text; a first token that nothing predicts is charged log2 of the vocabulary")
    .option("--context <n>", "bpb: tokens after which the state is emptied (never)")
    .option("--from <n>", "context: the shortest, doubled until the longest (512)")
    .option("--to <n>", "context: the longest (16384)")
    .option("--out <path>", "context: where to draw the plot, an SVG")
  runOptions(tokenizerOption(command))
    .option("--json", "Print one object: bitsPerByte, bytes and seconds; of context models, with points of each")
    .example("selscan eval bpb --file book.txt --json")
    .example("selscan eval context --model demo --model runs/samba --file book.txt --out context.svg")
    .action((measure: string, flags: EvalFlags) => interruptible((signal) => evaluate(measure, flags, signal)))
}

async function evaluate(name: string, flags: EvalFlags, signal: AbortSignal): Promise<number> {
  const measure = Object.hasOwn(measures, name) ? measures[name] : undefined
  expect(measure !== undefined, "BAD_OPTION", () => `eval: unknown measure ${name}, ${suggestion(name, measureNames)}`)
  expect(flags.file !== undefined, "BAD_OPTION", () => "eval: one text file is expected, got none; name it with --file")
  await measure(await readWhole(flags.file), flags, signal)
  return 0
}

async function judge(bytes: Uint8Array, flags: EvalFlags, signal: AbortSignal): Promise<void> {
  const { context, json } = flags
  for (const name of ["from", "to", "out"] as const) {
    expect(flags[name] === undefined, "BAD_OPTION", () => `eval: --${name} is for the measure context; leave it out`)
  }
  const [name = "demo", ...others] = flags.model ?? []
  expect(others.length === 0, "BAD_OPTION", () => `eval: bpb judges one model, got ${others.length + 1}; name one`)
  await using model = await openModel(name, flags, signal)
  const bar = progress("tokens", flags)
  const total = bar.visible ? model.tokens(bytes, true).length : 0
  const began = performance.now()
  const onProgress = (done: number) => bar.update(done, total)
  const bitsPerByte = await model.bitsPerByte(bytes, { signal, context, onProgress }).finally(() => bar.stop())
  const seconds = (performance.now() - began) / 1000
  if (json) console.log(JSON.stringify({ bitsPerByte, bytes: bytes.length, seconds }))
  else console.log(`${bitsPerByte.toFixed(4)} bits per byte over ${bytes.length} bytes`)
}
