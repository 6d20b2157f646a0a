import type { CAC } from "cac"
import { SingleBar } from "cli-progress"
import { expect, suggestion } from "../errors.ts"
import { load } from "../generate/load.ts"
import { type Device, setThreads } from "../native.ts"
import { readWhole } from "../train/data.ts"
import { judgeContexts } from "./eval-context.ts"
import { interruptible } from "./interrupt.ts"

export interface EvalFlags {
  model: string | string[]
  file?: unknown
  out?: unknown
  from?: number
  to?: number
  precision?: "f32" | "bf16"
  device?: Device
  threads?: number
  context?: number
  json?: boolean
}

type Measure = (bytes: Uint8Array, flags: EvalFlags, signal: AbortSignal) => Promise<void>

const measures: Readonly<Record<string, Measure>> = { bpb: judge, context: judgeContexts }

/** `selscan eval bpb --file F`: bits per byte of a text; `selscan eval context --file F`: the same by length of context. */
export function evalCommand(cli: CAC): void {
  cli
    .command(
      "eval <measure>",
      "Judge a model on a text: bpb is bits per byte, context the same over lengths of context",
    )
    .option("--model <name>", "demo, or a folder with a config and weights; context takes several", {
      default: "demo",
    })
    .option("--file <path>", "The text; its first byte is charged 8 bits")
    .option("--context <n>", "bpb: bytes after which the state is emptied (never)")
    .option("--from <n>", "context: the shortest, doubled until the longest (512)")
    .option("--to <n>", "context: the longest (16384)")
    .option("--out <path>", "context: where to draw the plot, an SVG")
    .option("--precision <p>", "f32 or bf16; as stored when not given")
    .option("--device <d>", "auto, cpu, cuda or cuda:N; auto is cuda where it can be used (auto)")
    .option("--threads <n>", "Threads (0: all usable cores)")
    .option("--json", "Print one object: bitsPerByte, bytes and seconds; of context a list by model")
    .example("selscan eval bpb --file book.txt --json")
    .example("selscan eval context --model demo --model runs/samba --file book.txt --out context.svg")
    .action((measure: string, flags: EvalFlags) => interruptible((signal) => evaluate(measure, flags, signal)))
}

async function evaluate(name: string, flags: EvalFlags, signal: AbortSignal): Promise<number> {
  const measure = Object.hasOwn(measures, name) ? measures[name] : undefined
  const known = Object.keys(measures)
  expect(measure !== undefined, "BAD_OPTION", () => `eval: unknown measure ${name}, ${suggestion(name, known)}`)
  expect(typeof flags.file === "string", "BAD_OPTION", () => "eval: one text file is expected; name it with --file")
  const bytes = await readWhole(flags.file)
  if (flags.threads !== undefined) await setThreads(flags.threads)
  await measure(bytes, flags, signal)
  return 0
}

async function judge(bytes: Uint8Array, flags: EvalFlags, signal: AbortSignal): Promise<void> {
  const { precision, device, context } = flags
  for (const name of ["from", "to", "out"] as const) {
    expect(flags[name] === undefined, "BAD_OPTION", () => `eval: --${name} is for the measure context`)
  }
  expect(typeof flags.model === "string", "BAD_OPTION", () => "eval: bpb judges one model, got several")
  await using model = await load(flags.model, { precision, device })
  const bar = new SingleBar({
    format: "{bar} {percentage}% | {value}/{total} bytes | {eta_formatted} left",
    stream: process.stderr,
  })
  const visible = process.stderr.isTTY && !flags.json
  if (visible) bar.start(bytes.length, 0)
  const began = performance.now()
  const bitsPerByte = await model
    .bitsPerByte(bytes, { signal, context, onProgress: (done) => visible && bar.update(done) })
    .finally(() => bar.stop())
  const seconds = (performance.now() - began) / 1000
  if (flags.json) console.log(JSON.stringify({ bitsPerByte, bytes: bytes.length, seconds }))
  else console.log(`${bitsPerByte.toFixed(4)} bits per byte over ${bytes.length} bytes`)
}
