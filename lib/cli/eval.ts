import type { CAC } from "cac"
import { SingleBar } from "cli-progress"
import { expect } from "../errors.ts"
import { load } from "../generate/load.ts"
import { type Device, setThreads } from "../native.ts"
import { readWhole } from "../train/data.ts"
import { interruptible } from "./interrupt.ts"

interface Flags {
  model: string
  file?: unknown
  precision?: "f32" | "bf16"
  device?: Device
  threads?: number
  json?: boolean
}

/** `selscan eval bpb --file F`: bits per byte of a text. */
export function evalCommand(cli: CAC): void {
  cli
    .command("eval <measure>", "Judge a model on a text; the measure is bpb, bits per byte")
    .option("--model <name>", "demo, or a folder with config.json and model.safetensors", { default: "demo" })
    .option("--file <path>", "The text; the state is carried over all of it, its first byte is charged 8 bits")
    .option("--precision <p>", "f32 or bf16; as stored when not given")
    .option("--device <d>", "auto, cpu, cuda or cuda:N; auto is cuda where it can be used (auto)")
    .option("--threads <n>", "Threads (0: all usable cores)")
    .option("--json", "Print one object with bitsPerByte, bytes and seconds")
    .example("selscan eval bpb --file book.txt --json")
    .action((measure: string, flags: Flags) => interruptible((signal) => evaluate(measure, flags, signal)))
}

async function evaluate(measure: string, flags: Flags, signal: AbortSignal): Promise<number> {
  expect(measure === "bpb", "BAD_OPTION", () => `eval: the measure is bpb, got ${measure}`)
  expect(typeof flags.file === "string", "BAD_OPTION", () => "eval: one text file is expected; name it with --file")
  const bytes = await readWhole(flags.file)
  if (flags.threads !== undefined) await setThreads(flags.threads)
  const { precision, device } = flags
  await using model = await load(String(flags.model), { precision, device })
  const bar = new SingleBar({
    format: "{bar} {percentage}% | {value}/{total} bytes | {eta_formatted} left",
    stream: process.stderr,
  })
  const visible = process.stderr.isTTY && !flags.json
  if (visible) bar.start(bytes.length, 0)
  const began = performance.now()
  const bitsPerByte = await model
    .bitsPerByte(bytes, { signal, onProgress: (done) => visible && bar.update(done) })
    .finally(() => bar.stop())
  const seconds = (performance.now() - began) / 1000
  if (flags.json) console.log(JSON.stringify({ bitsPerByte, bytes: bytes.length, seconds }))
  else console.log(`${bitsPerByte.toFixed(4)} bits per byte over ${bytes.length} bytes`)
  return 0
}
