/**
 * A training step of MambaByte, 256 wide with 6 layers, on 16 × 512 bytes: f32 and bf16 in turns, and where the time goes.
 */
import { begun, nodeCost } from "../lib/generate/cost.ts"
import { defaultProduct, type Probe, productProbe } from "../lib/generate/limits.ts"
import { allParameters } from "../lib/layers/layer.ts"
import { modelConfig } from "../lib/models/config.ts"
import { initialWeights } from "../lib/models/language-model.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { type Executable, Store } from "../lib/native.ts"
import { batchProgram, optimizerDefaults } from "../lib/train/program.ts"
import { type Measurement, type Outcome, ratios, scaled, statistics } from "./measure.ts"

export const summary =
  "a training step of MambaByte 256 × 6, f32 and bf16 in turns, by kind of op; its linears beside the peak"

const [batch, length, steps] = [16, 512, 7]
/** Share of the peak of products that a step's linears are to reach. */
const target = 0.4
const rows = batch * length

interface Trained {
  readonly precision: "f32" | "bf16"
  readonly store: Store
  readonly executable: Executable
  readonly stepMs: number[]
  /** Milliseconds of every step, by kind of op. */
  readonly byOp: Map<string, number[]>
  readonly peak: Probe
  /** Of the linears of every step, and of the peak in the same round: operations per second. */
  readonly reached: number[]
  readonly peaks: number[]
}

/** All products with matrices, the head's among them. */
const isLinear = (name: string) => name.startsWith("linear")

async function prepare(precision: "f32" | "bf16"): Promise<Trained> {
  const model = new PatternModel(modelConfig({ dim: 256, layers: 6, vocab: 256 }))
  const shape = { batch, length, streams: batch, recompute: false, precision }
  const store = new Store("cpu")
  const executable = await store.compile(batchProgram(model, shape, "update", optimizerDefaults))
  const weights = initialWeights(model, 1)
  for (const [name, { shape }] of allParameters(model)) {
    await store.upload("weight", { name, dtype: "f32", shape }, weights.get(name)!)
  }
  const peak = await productProbe(store, precision, defaultProduct("cpu"))
  return { precision, store, executable, stepMs: [], byOp: new Map(), peak, reached: [], peaks: [] }
}

const ids = Int32Array.from({ length: rows }, (_, i) => 32 + ((i * 7919) % 90))
const segments = Int32Array.from(
  Array.from({ length: batch }, (_, i) => [i * length, (i + 1) * length, 0, 0, i + 1]).flat(),
)

async function step(trained: Trained, number: number, keep: boolean): Promise<void> {
  const { executable, stepMs, byOp, peak, reached, peaks } = trained
  const inputs = {
    ids,
    targets: ids,
    segments,
    scale: Float32Array.of(1 / rows),
    rate: Float32Array.of(1e-3),
    step: Float32Array.of(number),
  }
  const before = await executable.profile()
  const began = performance.now()
  await executable.run(inputs)
  const elapsed = performance.now() - began
  const after = await executable.profile()
  const most = await peak.run()
  if (!keep) return
  stepMs.push(elapsed)
  peaks.push(most)
  const now = new Map<string, number>()
  executable.program.nodes.forEach(({ op }, i) => {
    now.set(op.name, (now.get(op.name) ?? 0) + (after[i]! - before[i]!) * 1e3)
  })
  for (const [name, milliseconds] of now) byOp.set(name, [...(byOp.get(name) ?? []), milliseconds])
  const linears = [...now].filter(([name]) => isLinear(name))
  reached.push(operationsOf(executable) / (linears.reduce((sum, [, milliseconds]) => sum + milliseconds, 0) / 1e3))
}

function operationsOf({ program }: Executable): number {
  const used = new Set(program.values)
  const linears = program.nodes.filter(({ op }) => isLinear(op.name))
  return linears.reduce((sum, node) => sum + nodeCost(node, used, begun).operations, 0)
}

function linearsOf({ precision, reached, peaks }: Trained): { measurement: Measurement; note: string } {
  const shares = ratios(reached, peaks)
  const peak = statistics(peaks).median / 1e9
  const percent = (share: number) => `${(100 * share).toFixed(0)} %`
  return {
    measurement: {
      shape: `MambaByte 256 × 6, 16 × 512, ${precision}: linears`,
      unit: "GFLOP/s",
      ...scaled(statistics(reached), 1e-9),
      share: { value: shares.median, of: `${peak.toFixed(0)} GFLOP/s, the peak of this run` },
    },
    note:
      `${precision}: linears at ${percent(shares.median)} of the peak of this run, ` +
      `target ≥ ${percent(target)}: ${shares.median >= target ? "met" : "missed"}`,
  }
}

function measurements({ precision, stepMs, byOp }: Trained): Measurement[] {
  const whole = statistics(stepMs)
  const of = `MambaByte 256 × 6, 16 × 512, ${precision}`
  const parts = [...byOp].map(([name, samples]) => ({ name, ...statistics(samples) }))
  return [
    { shape: of, unit: "ms", ...whole, rate: { value: (rows / whole.median) * 1e3, unit: "bytes/s" } },
    ...parts
      .filter(({ median }) => median >= 0.005 * whole.median)
      .sort((a, b) => b.median - a.median)
      .map(({ name, ...part }) => ({
        shape: `${of}: ${name}`,
        unit: "ms",
        ...part,
        share: { value: part.median / whole.median, of: "the step" },
      })),
  ]
}

export async function run(): Promise<Outcome> {
  const both = [await prepare("f32"), await prepare("bf16")]
  try {
    for (let number = 0; number <= steps; number++) {
      for (const one of both) await step(one, number + 1, number > 0) // the first fills caches and packs weights
    }
  } finally {
    for (const { store } of both) await store.dispose()
  }
  const faster = ratios(both[0]!.stepMs, both[1]!.stepMs)
  const linears = both.map(linearsOf)
  return {
    results: [
      ...both.flatMap(measurements),
      ...linears.map(({ measurement }) => measurement),
      { shape: "MambaByte 256 × 6, 16 × 512: f32 over bf16", unit: "×", ...faster },
    ],
    notes: [...linears.map(({ note }) => note), "ops below half a percent of a step are left out"],
  }
}
