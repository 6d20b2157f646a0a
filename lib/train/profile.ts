/**
 * Where the time of a training step goes, op by op: what `selscan bench --training` prints.
 */
import { checkOptions, checkSignal, expect } from "../errors.ts"
import { type Cost, nodeCost, type Place } from "../generate/cost.ts"
import { layoutInputs } from "../generate/layout.ts"
import {
  checkBlock,
  checkProduct,
  defaultBlockBytes,
  type LimitOptions,
  LimitProbes,
  type Limits,
  type ProductKind,
  type Spread,
  spread,
} from "../generate/limits.ts"
import { NodeTimes, type ProfileLine } from "../generate/node-times.ts"
import { noiseOf, repeat } from "../generate/random-weights.ts"
import { promptIds } from "../generate/side-by-side.ts"
import { checkPrecision, type Precision } from "../graph/trace.ts"
import { allParameters } from "../layers/layer.ts"
import { Random } from "../layers/random.ts"
import { type LanguageModel, startRows } from "../models/language-model.ts"
import { type Piece, startId } from "../models/patches.ts"
import {
  activationsOn,
  type Device,
  type Executable,
  type HostArray,
  resolveDevice,
  Store,
  splitsProducts,
} from "../native.ts"
import { batchProgram, optimizerDefaults, partsOf, type StepPart, sequenceRows, stepParts } from "./program.ts"

export interface TrainingProfileOptions extends LimitOptions {
  /** Sequences per batch. Default 16. */
  readonly batch?: number
  /** Tokens per sequence; of a MegaByte whole patches. Default 512. */
  readonly length?: number
  /** Of the products: f32, bf16, or bf16x3, which is f32 on AMX. Default f32. */
  readonly precision?: Precision
  /** Recompute blocks in the backward pass. Default false. */
  readonly recompute?: boolean
  /** Steps that are measured, after one that is not. Default 5. */
  readonly repeats?: number
  /** Default `auto`. */
  readonly device?: Device
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: (done: number, all: number) => void
}

/** Lines have shares of the time of all nodes of the step. */
export interface StepPartProfile {
  readonly inNodes: Spread
  /** The costliest first. */
  readonly lines: readonly ProfileLine[]
}

export interface TrainingProfile extends Readonly<Record<StepPart, StepPartProfile>> {
  /** Measured in the same run. */
  readonly limits: Limits
  /** From the call to the loss, and what of it was spent in nodes. */
  readonly seconds: Spread
  readonly inNodes: Spread
  /** All products with matrices, forward and backward, and how much of what the processor can do at most they reached together. */
  readonly products: { readonly seconds: number; readonly operations: number; readonly ofLimit: number }
}

const optionNames = [
  ...["batch", "length", "precision", "recompute", "repeats", "device"],
  ...["blockBytes", "product", "signal", "onProgress"],
]

/** Tokens of a batch at most: ids and segments are given anew with every step. */
const tokensMost = 2 ** 24

/**
 * Measures each node of a training step with AdamW, and the limits of the device between the steps. Weights are random, and so are the
 * tokens: what is learnt means nothing, what it costs is right.
 * @throws BAD_OPTION; BAD_INPUT where the tokens pass contextMax; NO_DEVICE; OUT_OF_MEMORY, on the cpu before anything is written; ABORTED
 * @example
 * const { products } = await profileTraining(new PatternModel(modelPreset("samba-byte")), { precision: "bf16" })
 * console.log(products.ofLimit)
 */
export async function profileTraining(
  model: LanguageModel,
  options: TrainingProfileOptions = {},
): Promise<TrainingProfile> {
  const { repeats, signal, onProgress, device, ...shape } = settled(model, options)
  await using store = new Store(device)
  const numerics = { precision: shape.precision, activations: activationsOn(device, shape.precision) }
  const program = batchProgram(model, { ...shape, streams: shape.batch, ...numerics }, "update", optimizerDefaults)
  const executable = await store.compile(program, { profile: true })
  checkMemory(model, executable, shape.precision)
  await fillWeights(store, model, signal)
  const kinds = new Set<ProductKind>(["f32", "bf16", shape.precision])
  const probes = await LimitProbes.open(store, options, [...kinds], signal)
  const step = new Step(model, executable, shape)
  for (let round = 0; round <= repeats; round++) {
    const kept = round > 0 // in the first weights are prepared and pages touched
    await step.measure(kept, signal)
    await probes.measure(signal, kept)
    onProgress?.(round + 1, repeats + 1)
  }
  return step.result(probes.limits(), shape.precision)
}

function settled(model: LanguageModel, options: TrainingProfileOptions) {
  const where = "profileTraining"
  checkOptions(where, options, optionNames)
  const { batch = 16, length = 512, precision = "f32", recompute = false, repeats = 5 } = options
  const { blockBytes = defaultBlockBytes, signal, onProgress } = options
  for (const [name, value] of Object.entries({ batch, length, repeats, blockBytes })) {
    const whole = Number.isSafeInteger(value) && value >= 1
    expect(whole, "BAD_OPTION", () => `${where}: ${name} is a whole number of at least 1, got ${value}`)
  }
  expect(
    batch * length <= tokensMost,
    "BAD_OPTION",
    () => `${where}: batch times length is at most ${tokensMost} tokens, got ${batch} × ${length}`,
  )
  checkPrecision(where, precision)
  expect(typeof recompute === "boolean", "BAD_OPTION", () => {
    return `${where}: recompute is true or false, got ${recompute}`
  })
  const { patches, contextMax = Number.POSITIVE_INFINITY } = model
  expect(length % (patches?.size ?? 1) === 0, "BAD_OPTION", () => {
    return `${where}: length is a multiple of the model's patch of ${patches!.size} bytes, got ${length}`
  })
  expect(length <= contextMax, "BAD_INPUT", () => {
    return `${where}: at most contextMax = ${contextMax} tokens are expected in a sequence, got length ${length}`
  })
  checkBlock(where, blockBytes)
  checkProduct(where, options.product)
  checkSignal(where, signal)
  return { batch, length, precision, recompute, repeats, signal, onProgress, device: resolveDevice(options.device) }
}

/** Throws OUT_OF_MEMORY where the cpu has too little: systems that promise more memory than they have end the process that uses it. */
function checkMemory(model: LanguageModel, { store, program, peakBytes }: Executable, precision: Precision): void {
  if (store.device !== "cpu") return
  const stored = (["weight", "training", "state", "ring"] as const).flatMap((kind) => program.stored(kind))
  const matrices = [...allParameters(model).values()].filter(({ matrix }) => matrix)
  const each = precision === "bf16x3" && splitsProducts() ? 16 : 8 // forward and backward, of f32 or halves beside it
  const packed = matrices.reduce((sum, { shape }) => sum + each * shape.reduce((a, b) => a * b, 1), 0)
  const needed = peakBytes + packed + stored.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
  const free = process.availableMemory()
  expect(needed <= free, "OUT_OF_MEMORY", () => {
    return `profileTraining: ${needed} bytes of memory are expected for a step, got ${free}; choose a smaller batch or model`
  })
}

/** Small parameters as training begins with them, matrices of normal noise that repeats. */
async function fillWeights(store: Store, model: LanguageModel, signal: AbortSignal | undefined): Promise<void> {
  const random = new Random(1)
  const noise = noiseOf(random)
  for (const [name, { shape, matrix, init }] of allParameters(model)) {
    checkSignal("profileTraining", signal)
    await repeat(store, { name, dtype: "f32", shape }, matrix ? noise : init(shape, random))
  }
}

type Shape = Pick<Required<TrainingProfileOptions>, "batch" | "length">

/** A step, round by round. */
class Step {
  readonly #executable: Executable
  readonly #inputs: Readonly<Record<string, HostArray>>
  readonly #costs: readonly Cost[]
  readonly #parts: readonly StepPart[]
  readonly #times = { forward: new NodeTimes(), backward: new NodeTimes(), optimizer: new NodeTimes() }
  readonly #wall: number[] = []
  readonly #inNodes: number[] = []
  #steps = 0

  constructor(model: LanguageModel, executable: Executable, shape: Shape) {
    const { program } = executable
    const used = new Set(program.values)
    const place: Place = { sequences: shape.batch, position: () => 0, rings: new Map() }
    this.#executable = executable
    this.#inputs = stepInputs(model, executable, shape)
    this.#costs = program.nodes.map((node) => nodeCost(node, used, place))
    this.#parts = partsOf(program)
  }

  async measure(kept: boolean, signal: AbortSignal | undefined): Promise<void> {
    const before = await this.#executable.profile()
    const began = performance.now()
    const number = Float32Array.of(++this.#steps)
    await this.#executable.run({ ...this.#inputs, step: number }, { signal })
    const wall = (performance.now() - began) / 1000
    if (!kept) return
    const seconds = (await this.#executable.profile()).map((now, i) => now - before[i]!)
    this.#wall.push(wall)
    this.#inNodes.push(seconds.reduce((sum, one) => sum + one, 0))
    for (const part of stepParts) this.#times[part].begin()
    for (const [i, node] of this.#executable.program.nodes.entries()) {
      this.#times[this.#parts[i]!].add(node, seconds[i]!, 1, this.#costs[i]!)
    }
  }

  result(limits: Limits, precision: Precision): TrainingProfile {
    const inNodes = spread(this.#inNodes)
    const part = (name: StepPart): StepPartProfile => {
      const times = this.#times[name]
      return { inNodes: times.seconds(), lines: times.lines(limits, inNodes.median) }
    }
    const parts = { forward: part("forward"), backward: part("backward"), optimizer: part("optimizer") }
    const linears = [...parts.forward.lines, ...parts.backward.lines].filter(({ op }) => op.startsWith("linear"))
    const matrices = linears.filter(({ op }) => !op.startsWith("linearAttention"))
    const seconds = matrices.reduce((sum, line) => sum + line.seconds.median, 0)
    const operations = matrices.reduce((sum, line) => sum + line.operations, 0)
    const products = { seconds, operations, ofLimit: operations / limits[precision] / seconds }
    return { limits, seconds: spread(this.#wall), inNodes, products, ...parts }
  }
}

/** Of sequences that begin; every token is a target. */
function stepInputs(model: LanguageModel, { program }: Executable, { batch, length }: Shape) {
  const [rows, starts] = [sequenceRows(model, length), startRows(model)]
  const targets = new Int32Array(batch * rows)
  const pieces = Array.from({ length: batch }, (_, i): Piece => {
    const [begin, end, ids] = [i * rows, (i + 1) * rows, promptIds(i, { prefill: length }, model.vocab)]
    targets.set(starts === 0 ? ids.slice(1) : ids.slice(0, length + 1), begin)
    const tokens = ids.slice(0, length)
    return { begin, end, position: 0, from: 0, to: 1 + i, ring: 1 + i, ids: starts ? [startId, ...tokens] : tokens }
  })
  return {
    ...layoutInputs(program, model, pieces),
    targets,
    scale: Float32Array.of(1 / targets.length),
    rate: Float32Array.of(1e-4),
  }
}
