/**
 * Measures the kernels and models on a GPU against its limits, most wanted first, and appends every result to a file as soon
 * as it is there: DEVICE names the device (default cuda).
 *
 * `npx tsx bench/gpu.ts --help`
 */
import { spawnSync } from "node:child_process"
import { appendFileSync, mkdirSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { SelscanError } from "../lib/errors.ts"
import type { Device } from "../lib/native.ts"
import { forgetting } from "./gpu-accuracy.ts"
import { gpuCases, linearCase } from "./gpu-cases.ts"
import { type Ceilings, ceilings, floorOf, type GpuCase, timeCase } from "./gpu-device.ts"
import { device as chosenDevice, type GpuCircumstances, gpuCircumstances } from "./gpu-machine.ts"
import { arenas, demoTraining, generation, trainingStep } from "./gpu-models.ts"
import type { Measurement } from "./measure.ts"
import { table } from "./table.ts"

const usage = `Measures this package on a GPU.

  npx tsx bench/gpu.ts [--out DIR] [--seconds N] [--quick] [--only WORD]

  --out      where cuda.jsonl is appended to (default: bench/results); another device has a file of its own name
  --seconds  begins nothing after so many (default: 600)
  --quick    the targets and one model
  --only     benches whose name begins so: ops, accuracy, cublas, generate, train, memory
  --help     this text

DEVICE=emulated measures nothing worth keeping, with tiny sizes: it shows that everything runs.`

/** A line of the records: `spread` is the distance of the quartiles over the median, `floor` in the unit of the median. */
export interface GpuMeasurement extends Measurement {
  readonly dtype: "f32" | "bf16"
  readonly spread: number
  readonly floor?: number
}

interface Task {
  readonly bench: string
  readonly title: string
  readonly run: () => Promise<readonly GpuMeasurement[]>
}

async function opMeasurement(device: string, limit: Ceilings, one: GpuCase): Promise<GpuMeasurement> {
  const { samples: _, ...taken } = await timeCase(device, one)
  const { floor, of } = floorOf(limit, { ...one, bytes: taken.bytes })
  const { operations } = one
  const pass = one.pass === "backward" ? " backward" : ""
  const rate = operations
    ? { value: operations / taken.median / 1e9, unit: "TFLOP/s" }
    : { value: taken.bytes / taken.median / 1e6, unit: "GB/s" }
  return {
    shape: `${one.op.definition.name}${pass}: ${one.title}`,
    dtype: one.dtype,
    unit: "ms",
    ...taken,
    ...(operations && { operations }),
    floor,
    rate,
    share: { value: floor / taken.median, of: `the floor of ${of}; ${limit.words}` },
  }
}

/** The square product by cuBLAS, which is chosen when the addon first multiplies: in a process of its own. */
function byCublas(device: string): GpuMeasurement[] {
  const words = [...process.execArgv, fileURLToPath(import.meta.url), "--cublas-child"]
  const env = { ...process.env, DEVICE: device, SELSCAN_CUBLAS: "1" }
  const { status, stdout, stderr } = spawnSync(process.execPath, words, { env, encoding: "utf8", timeout: 60_000 })
  const last = (text: string) => text.trim().split("\n").at(-1) ?? ""
  if (status !== 0) throw new SelscanError("NO_DEVICE", last(stderr) || `exit code ${status}`)
  return JSON.parse(last(stdout)) as GpuMeasurement[]
}

const square = (device: string) =>
  device === "emulated" ? linearCase("bf16", 32, 32, 32) : linearCase("bf16", 4096, 4096, 4096)

/** Ours and cuBLAS's, and the one over the other: shares of cuBLAS's speed. */
async function besideCublas(device: string, limit: Ceilings): Promise<GpuMeasurement[]> {
  const ours = await opMeasurement(device, limit, square(device))
  const [theirs] = byCublas(device)
  const ratio = theirs!.median / ours.median
  const shape = `${ours.shape}: speed of ours over cuBLAS`
  return [
    theirs!,
    {
      shape,
      dtype: "bf16",
      unit: "×",
      median: ratio,
      min: theirs!.min / ours.max,
      max: theirs!.max / ours.min,
      spread: ours.spread + theirs!.spread,
    },
  ]
}

function tasks(device: Device, limit: Ceilings, quick: boolean): Task[] {
  const emulated = device === "emulated"
  const ops = gpuCases(emulated ? "tiny" : quick ? "quick" : "full").map((one) => ({
    bench: "ops",
    title: `${one.op.definition.name} ${one.title}`,
    run: async () => [await opMeasurement(device, limit, one)],
  }))
  const generated = (preset: Parameters<typeof generation>[1]): Task => ({
    bench: "generate",
    title: preset,
    run: () => generation(device, preset, limit, emulated ? { prompt: 4, tokens: 2 } : {}),
  })
  const size = emulated ? { dim: 16, layers: 1, batch: 2, length: 16 } : demoTraining
  const trained = (precision: "f32" | "bf16"): Task => ({
    bench: "train",
    title: `step in ${precision}`,
    run: () => trainingStep(device, size, precision),
  })
  const lengths = emulated ? [64, 128] : quick ? [1024, 16384] : [1024, 4096, 16384, 65536]
  const few: Task[] = [
    { bench: "accuracy", title: "forgetting", run: () => forgetting(device) },
    { bench: "cublas", title: "square product", run: () => besideCublas(device, limit) },
    generated(emulated ? "tiny" : "mamba-130m"),
    trained("bf16"),
    { bench: "memory", title: "arenas", run: () => arenas(device, size, lengths) },
  ]
  if (quick || emulated) return [...ops.slice(0, 3), ...few, ...ops.slice(3)]
  const more = [generated("mamba-790m"), generated("mamba-2.8b"), trained("f32")]
  return [...ops.slice(0, 3), ...few, ...more, ...ops.slice(3)]
}

function record(path: string, where: GpuCircumstances, bench: string, results: readonly GpuMeasurement[]): void {
  for (const result of results) appendFileSync(path, `${JSON.stringify({ ...where, bench, ...result })}\n`)
}

interface Options {
  readonly out: string
  readonly seconds: string
  readonly quick: boolean
  readonly only: string
}

async function measureAll(device: Device, { out, seconds, quick, only }: Options): Promise<void> {
  const deadline = Date.now() + 1000 * Number(seconds)
  const where = gpuCircumstances(device)
  const limit = await ceilings(device, device === "emulated" ? 4096 : 1 << 27)
  mkdirSync(out, { recursive: true })
  const path = join(out, `${device.replace(/:\d+$/, "")}.jsonl`)
  console.log(`${where.gpu}, driver ${where.driver}, commit ${where.commit}, ${where.date}; ${limit.words}`)
  const counts = { measured: 0, failed: 0, late: 0 }
  for (const task of tasks(device, limit, quick)) {
    if (!task.bench.startsWith(only)) continue
    if (Date.now() > deadline) {
      counts.late++
      console.log(`out of time: ${task.bench} ${task.title}`)
      continue
    }
    try {
      const results = await task.run()
      record(path, where, task.bench, results)
      counts.measured += results.length
      console.log(table(results))
    } catch (error) {
      // Without cuBLAS, or without enough memory for a size, there is nothing wrong with the kernels.
      const { code, message } = error as SelscanError
      const harmless = code === "NO_DEVICE" || code === "OUT_OF_MEMORY"
      if (!harmless) counts.failed++
      console.log(`${harmless ? "not measured" : "FAILED"}: ${task.bench} ${task.title}: ${message}`)
    }
  }
  console.log(`${counts.measured} results in ${path}, ${counts.failed} failed, ${counts.late} out of time`)
  process.exitCode = counts.failed > 0 ? 1 : 0
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      out: { type: "string", default: fileURLToPath(new URL("results/", import.meta.url)) },
      seconds: { type: "string", default: "600" },
      quick: { type: "boolean", default: false },
      only: { type: "string", default: "" },
      "cublas-child": { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  })
  if (values.help) return console.log(usage)
  const device = chosenDevice() as Device
  if (!values["cublas-child"]) return measureAll(device, values)
  const limit = await ceilings(device, device === "emulated" ? 4096 : 1 << 27)
  const one = await opMeasurement(device, limit, square(device))
  console.log(JSON.stringify([{ ...one, shape: `${one.shape}, cuBLAS` }]))
}

main().catch((error: Error) => {
  console.error(error instanceof SelscanError ? error.message : error.stack)
  process.exitCode = 1
})
