/**
 * What commands that run a model have in common.
 */
import { addAbortSignal } from "node:stream"
import { buffer } from "node:stream/consumers"
import type { Command } from "cac"
import type { SingleBar } from "cli-progress"
import { expect, SelscanError } from "../errors.ts"
import { type LoadOptions, load } from "../generate/load.ts"
import type { Model } from "../generate/model.ts"
import type { Precision } from "../graph/trace.ts"
import type { DownloadProgress } from "../hub/options.ts"
import { type Device, setThreads } from "../native.ts"

export interface RunFlags {
  precision?: Precision
  weights?: "int8"
  device?: Device
  threads?: number
  tokenizer?: string
  json?: boolean
}

/** What --model can be. */
export const modelHelp = "demo, demo-samba, a folder with a config and weights, or owner/name on the Hub"

/** Adds the options that say how a model runs. */
export const runOptions = (command: Command): Command =>
  command
    .option("--precision <precision>", "f32, bf16, or bf16x3, which is f32 on AMX; as stored when not given")
    .option("--weights <weights>", "int8: large matrices in 8 bits, on the cpu; as stored when not given")
    .option("--device <device>", "auto, cpu, cuda or cuda:N; auto is cuda where it can be used (auto)")
    .option("--threads <n>", "Threads, 0 for all usable cores (SELSCAN_THREADS, else 0)")

/** Adds the option that says how text becomes tokens. */
export const tokenizerOption = (command: Command): Command =>
  command.option("--tokenizer <tokenizer>", "bytes, a tokenizer.json, or a folder with one (the model's own)")

/** Loads a model as the options say, once the threads are set; one on the Hub is downloaded, with a bar of its own. */
export async function openModel(
  name: string,
  flags: RunFlags,
  signal: AbortSignal,
  options: LoadOptions = {},
): Promise<Model> {
  if (flags.threads !== undefined) await setThreads(flags.threads)
  const { precision, weights, device, tokenizer } = flags
  const bar = progress("bytes", flags)
  const onProgress = ({ loadedBytes, totalBytes }: DownloadProgress) => bar.update(loadedBytes, totalBytes)
  const all = { precision, weights, device, tokenizer, signal, onProgress, ...options }
  return await load(name, all).finally(() => bar.stop())
}

/** All of standard input. Throws ABORTED, and NOT_FOUND where it cannot be read. */
export async function readStdin(where: string, signal: AbortSignal): Promise<Uint8Array> {
  try {
    return await buffer(addAbortSignal(signal, process.stdin))
  } catch (cause) {
    if (signal.aborted) throw new SelscanError("ABORTED", `${where}: aborted while standard input was read`)
    const message = `${where}: standard input that can be read is expected, got ${(cause as Error).message}; give a text in another way`
    throw new SelscanError("NOT_FOUND", message, {}, { cause })
  }
}

/** Ids as they are typed: whole numbers between spaces or commas. */
export function typedIds(where: string, text: string): number[] {
  const words = text.split(/[\s,]+/).filter((word) => word !== "")
  const bad = words.find((word) => !/^\d{1,9}$/.test(word))
  expect(bad === undefined, "BAD_OPTION", () => `${where}: --ids are whole numbers between spaces, got ${bad}`)
  return words.map(Number)
}

/** A bar on a terminal, nothing elsewhere. */
export interface Progress {
  readonly visible: boolean
  readonly update: (done: number, total: number) => void
  /** Ends the display: a bar that is not stopped keeps its timer, and with it the process. */
  readonly stop: () => void
}

/** Progress on stderr, of so many of what `unit` says. */
export function progress(unit: string, { json }: { json?: boolean | undefined }): Progress {
  const format = `{bar} {percentage}% | {value}/{total} ${unit} | {eta_formatted} left`
  const visible = process.stderr.isTTY && !json
  let bar: SingleBar | undefined
  let [shown, stopped] = [false, false]
  let latest: readonly [done: number, total: number] = [0, 0]
  const show = async () => {
    const { SingleBar } = await import("cli-progress") // where there is something to show: most calls are over before
    if (stopped) return
    bar = new SingleBar({ format, stream: process.stderr })
    bar.start(latest[1], latest[0])
  }
  const update = (done: number, total: number) => {
    latest = [done, total]
    if (bar) bar.update(done)
    else if (visible && !shown) void show()
    shown = true
  }
  const stop = () => {
    stopped = true
    bar?.stop()
  }
  return { visible, update, stop }
}
