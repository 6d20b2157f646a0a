#!/usr/bin/env -S npx tsx
/**
 * Writes replay files for selscan-replay: programs with everything one run of them needs, and what the addon computed.
 */
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { stepProgram } from "../lib/generate/programs.ts"
import { sampling, samplingInputs } from "../lib/generate/sampling.ts"
import { type Program, trace } from "../lib/graph/program.ts"
import { type ReplayStored, replayFile } from "../lib/graph/replay.ts"
import { allParameters } from "../lib/layers/layer.ts"
import { modelConfig } from "../lib/models/config.ts"
import { initialWeights } from "../lib/models/language-model.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { type HostArray, Store, type StoredKind } from "../lib/native.ts"
import { add, exp, multiply, scale, silu } from "../lib/ops/elementwise.ts"
import { batchProgram, optimizerDefaults } from "../lib/train/program.ts"

const usage = `Writes replay files of the addon's programs.

  npx tsx scripts/make-replay.ts [--out DIR] [--dim N] [--layers N] [--batch N] [--length N] [--ops]

  --out     where they go (default: build-dev/replay): elementwise.ssr, train.ssr, prompt.ssr
  --dim     width of the model (default: 64)
  --layers  its layers (default: 2)
  --batch   rows of the training step (default: 2)
  --length  bytes per row (default: 128)
  --ops     also DIR/ops/*.ssr: small cases of every op, forward and backward; those named bf16 are for GPUs`

/** Tolerance of outputs and of updated weights: other instruction sets add in another order. */
const rtol = 1e-3

interface Case {
  readonly name: string
  readonly program: Program
  readonly stored: readonly ReplayStored[]
  readonly inputs: Readonly<Record<string, HostArray>>
}

/** Repeatable bytes, far from uniform: the alphabet of a text. */
const letters = (count: number, from: number) =>
  Int32Array.from({ length: count }, (_, i) => 97 + (((i + from) * (i + from + 7)) % 26))

function elementwise(): Case {
  const program = trace("elementwise", (t) => {
    const x = t.input("x", "f32", [1 << 16])
    const y = silu({ x: multiply({ a: x, b: scale({ x }, { factor: 0.5 }).y }).y }).y
    return { y: add({ a: y, b: exp({ x }).y }).y }
  })
  return {
    name: "elementwise",
    program,
    stored: [],
    inputs: { x: Float32Array.from({ length: 1 << 16 }, (_, i) => Math.sin(i)) },
  }
}

function weightsOf(model: PatternModel): ReplayStored[] {
  const weights = initialWeights(model, 1)
  return [...weights].map(([name, bytes]) => ({ kind: "weight", name, bytes }))
}

function trainStep(model: PatternModel, batch: number, length: number): Case {
  const shape = { batch, length, streams: batch, recompute: true, precision: "f32" } as const
  const text = letters(batch * length + 1, 0)
  const segments = Array.from({ length: batch }, (_, s) => [s * length, (s + 1) * length, 0, 0, 1 + 2 * s]).flat()
  return {
    name: "train",
    program: batchProgram(model, shape, "update", optimizerDefaults),
    stored: weightsOf(model),
    inputs: {
      ids: text.slice(0, -1),
      targets: text.slice(1),
      segments: Int32Array.from(segments),
      scale: Float32Array.of(1 / (batch * length)),
      rate: Float32Array.of(1e-3),
      step: Float32Array.of(1),
    },
  }
}

function promptStep(model: PatternModel): Case {
  const rows = 16
  return {
    name: "prompt",
    program: stepProgram(model, "prompt", { rows, slots: 4, matrixDtype: "f32", precision: "f32" }),
    stored: weightsOf(model),
    inputs: {
      ids: letters(rows, 5),
      segments: Int32Array.of(0, rows, 0, 0, 2),
      picks: Int32Array.of(rows - 1),
      ...samplingInputs(
        sampling({ temperature: 0.8, topK: 40, topP: 0.95, repetitionPenalty: 1.1, seed: 7 }),
        rows,
        2,
        3,
      ),
    },
  }
}

/** Runs a case and keeps what came out, stored values that it updates included. */
async function recorded({ program, stored, inputs }: Case): Promise<Uint8Array> {
  await using store = new Store("cpu")
  for (const { kind, name, bytes } of stored) {
    const slot = program.stored(kind).find((candidate) => candidate.name === name)
    if (slot !== undefined) await store.upload(kind, slot, bytes as HostArray)
  }
  const executable = await store.compile(program)
  const outputs = await executable.run(inputs)
  const updated = new Map<string, { kind: StoredKind; name: string }>()
  for (const { op, inputs: from } of program.nodes) {
    for (const key of op.updates ?? []) {
      const value = from[key as string]
      if (value !== undefined)
        updated.set(`${value.storage} ${value.name}`, { kind: value.storage as StoredKind, name: value.name })
    }
  }
  const after = await Promise.all(
    [...updated.values()].map(async (slot) => ({ ...slot, rtol, bytes: await store.download(slot.kind, slot.name) })),
  )
  const used = stored.filter(({ kind, name }) => program.stored(kind).some((slot) => slot.name === name))
  const expected = [...Object.entries(outputs).map(([name, bytes]) => ({ name, bytes, rtol })), ...after]
  return replayFile(program, { stored: used, inputs, expected })
}

async function main(): Promise<void> {
  const number = (fallback: string) => ({ type: "string", default: fallback }) as const
  const { values } = parseArgs({
    options: {
      out: number("build-dev/replay"),
      dim: number("64"),
      layers: number("2"),
      batch: number("2"),
      length: number("128"),
      ops: { type: "boolean", default: false },
      help: { type: "boolean" },
    },
  })
  if (values.help) return console.log(usage)
  const [dim, layers, batch, length] = [values.dim, values.layers, values.batch, values.length].map(Number) as [
    number,
    number,
    number,
    number,
  ]
  const model = new PatternModel(modelConfig({ dim, layers, vocab: 256 }))
  mkdirSync(values.out, { recursive: true })
  for (const one of [elementwise(), trainStep(model, batch, length), promptStep(model)]) {
    const path = join(values.out, `${one.name}.ssr`)
    const bytes = await recorded(one)
    writeFileSync(path, bytes)
    console.log(`${path}: ${one.program.nodes.length} nodes, ${bytes.length} bytes`)
  }
  console.log(`${[...allParameters(model)].length} weights in the model`)
  if (values.ops) await writeOps(join(values.out, "ops"))
}

async function writeOps(folder: string): Promise<void> {
  process.env.DEVICE = "cpu" // read by test/device.ts as it is loaded: what GPUs are held to comes from the cpu
  const { opReplays } = await import("./gpu/replay-ops.ts")
  mkdirSync(folder, { recursive: true })
  let files = 0
  let total = 0
  for await (const { name, bytes } of opReplays()) {
    writeFileSync(join(folder, `${name}.ssr`), bytes)
    files++
    total += bytes.length
  }
  console.log(`${folder}: ${files} files, ${total} bytes`)
}

await main()
