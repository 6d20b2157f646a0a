/**
 * Whole models on a GPU: generation with the published sizes and random weights, a training step of the demo's size, and the
 * arena against the length.
 */

import { Model } from "../lib/generate/model.ts"
import { allParameters } from "../lib/layers/layer.ts"
import { Random } from "../lib/layers/random.ts"
import { modelConfig } from "../lib/models/config.ts"
import { initialWeights } from "../lib/models/language-model.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { modelPreset, type Preset } from "../lib/models/presets.ts"
import { activationsOn, type Device, Store } from "../lib/native.ts"
import { batchProgram, optimizerDefaults } from "../lib/train/program.ts"
import type { GpuMeasurement } from "./gpu.ts"
import { type Ceilings, uploadTiled, withSpread } from "./gpu-device.ts"

type Precision = "f32" | "bf16"

/** Small parameters as training would begin with them; of matrices a tiled block, since nothing hangs on their values. */
async function freshModel(device: Device, preset: Preset | "tiny", dtype: Precision): Promise<Model> {
  const tiny = modelConfig({ dim: 16, layers: 1, vocab: 256 })
  const network = new PatternModel(preset === "tiny" ? tiny : modelPreset(preset))
  const model = new Model(network, dtype, { sessions: 1, device })
  for (const [name, { shape, matrix, init }] of allParameters(network)) {
    if (matrix) await uploadTiled(model.store, "weight", { name, dtype, shape }, "small")
    else await model.store.upload("weight", { name, dtype: "f32", shape }, init(shape, new Random(1, 1)))
  }
  return model
}

/** Bytes of all weights: what one token reads at least. */
const weightBytes = (model: Model) =>
  [...allParameters(model.network).values()].reduce((total, { shape, matrix }) => {
    const elements = shape.reduce((a, b) => a * b, 1)
    return total + elements * (matrix && model.matrixDtype === "bf16" ? 2 : 4)
  }, 0)

const idsOf = (count: number, vocab: number) => Array.from({ length: count }, (_, i) => (i * 7919 + 101) % vocab)

/** Milliseconds of a prompt, and of each token that follows. */
export async function generation(
  device: Device,
  preset: Preset | "tiny",
  ceilings: Ceilings,
  { prompt = 512, tokens = 200, dtype = "bf16" as Precision } = {},
): Promise<GpuMeasurement[]> {
  await using model = await freshModel(device, preset, dtype)
  // One more than is run: a session keeps the last for the run that needs its logits.
  const ids = idsOf(prompt + 1, model.network.vocab)
  const reading: number[] = []
  for (let round = 0; round < 6; round++) {
    using session = model.session()
    const began = performance.now()
    await session.append(ids)
    if (round > 0) reading.push(performance.now() - began)
  }
  const writing: number[] = []
  {
    using session = model.session()
    let began = performance.now()
    let seen = 0
    for await (const _ of session.tokens(ids, { maxTokens: tokens + 10, temperature: 0.8, seed: 1 })) {
      const now = performance.now()
      if (seen++ >= 10) writing.push(now - began)
      began = now
    }
  }
  const bytes = weightBytes(model)
  const floor = bytes / ceilings.copyGBps / 1e6
  const perSecond = (value: number) => ({ value, unit: "tokens/s" })
  const [read, write] = [withSpread(reading), withSpread(writing)]
  return [
    {
      shape: `${preset}: prompt of ${prompt}`,
      dtype,
      unit: "ms",
      ...read,
      rate: perSecond((prompt / read.median) * 1e3),
    },
    {
      shape: `${preset}: decoding`,
      dtype,
      unit: "ms",
      ...write,
      bytes,
      floor,
      share: { value: floor / write.median, of: `all weights read once, ${ceilings.words}` },
      rate: perSecond(1e3 / write.median),
    },
  ]
}

interface TrainingSize {
  readonly dim: number
  readonly layers: number
  readonly batch: number
  readonly length: number
}

/** Sizes of the demo and of the recipe that it was trained by. */
export const demoTraining: TrainingSize = { dim: 256, layers: 6, batch: 8, length: 512 }

function trainingProgram(device: string, { dim, layers, batch, length }: TrainingSize, precision: Precision) {
  const model = new PatternModel(modelConfig({ dim, layers, vocab: 256 }))
  const numerics = { precision, activations: activationsOn(device, precision) }
  const shape = { batch, length, streams: batch, recompute: false, ...numerics }
  return { model, program: batchProgram(model, shape, "update", optimizerDefaults) }
}

export async function trainingStep(
  device: string,
  size: TrainingSize,
  precision: Precision,
): Promise<GpuMeasurement[]> {
  const { batch, length } = size
  const rows = batch * length
  await using store = new Store(device)
  const { model, program } = trainingProgram(device, size, precision)
  const executable = await store.compile(program)
  for (const [name, bytes] of initialWeights(model, 1)) {
    const { shape } = allParameters(model).get(name)!
    await store.upload("weight", { name, dtype: "f32", shape }, bytes)
  }
  const ids = Int32Array.from({ length: rows }, (_, i) => 32 + ((i * 7919) % 90))
  const lines = Array.from({ length: batch }, (_, i) => [i * length, (i + 1) * length, 0, 0, i + 1])
  const taken: number[] = []
  for (let step = 1; step <= (size.dim < 64 ? 3 : 30); step++) {
    const began = performance.now()
    await executable.run({
      ids,
      targets: ids,
      segments: Int32Array.from(lines.flat()),
      scale: Float32Array.of(1 / rows),
      rate: Float32Array.of(1e-4),
      step: Float32Array.of(step),
    })
    if (step > 2) taken.push(performance.now() - began) // the first records the graph
  }
  const shape = `MambaByte ${size.dim} × ${size.layers}, ${batch} × ${length}`
  const times = withSpread(taken)
  return [
    { shape, dtype: precision, unit: "ms", ...times, rate: { value: (rows / times.median) * 1e3, unit: "bytes/s" } },
  ]
}

/** Arena of a training step for one sequence of each length, per row and inner channel: the same for all, if memory is linear. */
export async function arenas(
  device: string,
  size: TrainingSize,
  lengths: readonly number[],
): Promise<GpuMeasurement[]> {
  const found: GpuMeasurement[] = []
  for (const length of lengths) {
    await using store = new Store(device)
    const { program } = trainingProgram(device, { ...size, batch: 1, length }, "bf16")
    const { peakBytes } = await store.compile(program)
    const value = peakBytes / (length * 2 * size.dim)
    found.push({
      shape: `arena of a step of ${size.layers} layers of ${size.dim}, 1 × ${length}`,
      dtype: "bf16",
      unit: "bytes per row and channel",
      median: value,
      min: value,
      max: value,
      spread: 0,
      bytes: peakBytes,
    })
  }
  return found
}
