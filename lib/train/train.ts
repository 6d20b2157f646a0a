/**
 * The training loop.
 */
import { createHash } from "node:crypto"
import { mkdir } from "node:fs/promises"
import { join } from "node:path"
import { checkOptions, expect, SelscanError } from "../errors.ts"
import { layoutInputs } from "../generate/layout.ts"
import type { Place } from "../generate/places.ts"
import { bitsPerByte, scoreProgram, scoreRows, tokenLosses } from "../generate/score.ts"
import type { Slot } from "../graph/program.ts"
import { allParameters } from "../layers/layer.ts"
import { initialWeights, type LanguageModel } from "../models/language-model.ts"
import { MegaByte } from "../models/megabyte.ts"
import { type Piece, type RunInputs, startId } from "../models/patches.ts"
import { PatternModel } from "../models/pattern-model.ts"
import { activationsOn, type Executable, resolveDevice, Store, type StoredKind } from "../native.ts"
import { checkpointPath, exists, type Progress, readRun, restoreRun, type StoredSlots, saveRun } from "./checkpoint.ts"
import { readTexts, type Split, Streams, splitValidation } from "./data.ts"
import { Metrics } from "./metrics.ts"
import { type TrainOptions, type TrainRecipe, trainRecipe } from "./options.ts"
import { batchProgram, optimizerDefaults, sequenceRows, statesOf, updateProgram } from "./program.ts"
import { learningRate } from "./schedule.ts"

/** What a run tells as it goes. */
export type TrainEvent =
  | {
      readonly type: "step"
      readonly step: number
      readonly steps: number
      /** Mean loss of the step's batch, in bits per byte. */
      readonly bitsPerByte: number
      readonly rate: number
      /** Joint norm of the gradients before clipping. */
      readonly norm: number
      readonly bytesPerSecond: number
      readonly secondsLeft: number
    }
  | { readonly type: "validation"; readonly step: number; readonly bitsPerByte: number }
  | { readonly type: "saved"; readonly step: number; readonly path: string }

export interface TrainControl {
  /** Ends the run after the current step; what was learnt is saved. */
  readonly signal?: AbortSignal
  /** Goes on from the checkpoint in `out`, with its recipe. */
  readonly resume?: boolean
}

/**
 * Trains a byte-level model; yields an event per step, validation and checkpoint. After an abort the run has been saved and
 * the generator ends; a killed process, or a loop that breaks out, goes on from its last checkpoint: on the same kind of
 * device bit for bit.
 *
 * @throws BAD_OPTION for options; NO_DEVICE; BAD_OPTION when `out` holds a run and `resume` is not set; BAD_CHECKPOINT when the text
 * of a resumed run is another than it was; NOT_FINITE when the loss is no longer a number (the last checkpoint stays)
 * @example
 * const model = { dim: 64, layers: 2 }
 * for await (const event of train({ files: ["book.txt"], out: "runs/book", model, steps: 50, batch: 4 })) console.log(event)
 */
export async function* train(options: TrainOptions, control: TrainControl = {}): AsyncGenerator<TrainEvent> {
  checkOptions("train", control, ["signal", "resume"])
  const { out } = options
  expect(
    typeof out === "string" && out !== "",
    "BAD_OPTION",
    () => "train: out is a folder for the run, got none; name it with --out",
  )
  const device = resolveDevice(options.device)
  const saved = control.resume ? await readRun(out) : undefined
  const recipe = saved?.recipe ?? trainRecipe(options)
  if (saved === undefined) {
    expect(
      !(await exists(checkpointPath(out))),
      "BAD_OPTION",
      () => `train: ${out} already holds a run; go on with --resume ${out}, or choose another --out`,
    )
  }
  const bytes = await readTexts(recipe.files)
  const hash = createHash("sha256").update(bytes).digest("hex")
  expect(
    saved === undefined || saved.progress.text === hash,
    "BAD_CHECKPOINT",
    () => `train: ${recipe.files.join(", ")} is expected to hold the text that the run began with, but it has changed`,
  )
  const text = splitValidation(bytes, recipe.validation)
  await mkdir(out, { recursive: true }).catch((cause: Error) => {
    throw new SelscanError("DISK", `train: folder ${out} could not be made: ${cause.message}`, { out }, { cause })
  })
  await using run = await Run.open(
    { out, device },
    recipe,
    text,
    saved?.progress ?? { step: 0, bytesSeen: 0, seconds: 0, text: hash },
  )
  yield* run.go(control.signal)
}

class Run {
  readonly #out: string
  readonly #recipe: TrainRecipe
  readonly #store: Store
  readonly #streams: Streams
  readonly #validation: readonly Uint8Array[]
  readonly #metrics: Metrics
  readonly #programs: Programs
  #progress: Progress

  private constructor(fields: {
    out: string
    recipe: TrainRecipe
    store: Store
    text: Split
    metrics: Metrics
    streams: Streams
    programs: Programs
    progress: Progress
  }) {
    const { out, recipe, store, text, metrics, streams, programs, progress } = fields
    this.#out = out
    this.#recipe = recipe
    this.#store = store
    this.#validation = text.validation
    this.#metrics = metrics
    this.#programs = programs
    this.#progress = progress
    this.#streams = streams
  }

  static async open(
    { out, device }: { out: string; device: string },
    recipe: TrainRecipe,
    text: Split,
    progress: Progress,
  ): Promise<Run> {
    const model = "pattern" in recipe.config ? new PatternModel(recipe.config) : new MegaByte(recipe.config)
    const streams = streamsOf(text.train, recipe, model) // before anything is compiled: it holds text and length to be enough
    const store = new Store(device)
    try {
      const programs = await Programs.compile(store, model, recipe)
      if (progress.step === 0) {
        const weights = initialWeights(model, recipe.seed)
        for (const [name, { shape }] of allParameters(model)) {
          await store.upload("weight", { name, dtype: "f32", shape }, weights.get(name)!)
        }
      } else await restoreRun(out, store, programs.slots)
      const metrics = await Metrics.open(join(out, "metrics.jsonl"), progress.step)
      return new Run({ out, recipe, store, text, metrics, streams, programs, progress })
    } catch (error) {
      await store.dispose()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store.dispose()
  }

  async *go(signal: AbortSignal | undefined): AsyncGenerator<TrainEvent> {
    const { steps, saveEvery } = this.#recipe
    let savedAt = this.#progress.step
    if (this.#isDue()) yield* this.#validate(signal) // what an abort cut short
    while (this.#progress.step < steps && !signal?.aborted) {
      yield await this.#step()
      const { step } = this.#progress
      if (this.#isDue()) yield* this.#validate(signal)
      if (step % saveEvery === 0 || step === steps) {
        yield await this.#save()
        savedAt = step
      }
    }
    if (savedAt !== this.#progress.step) yield await this.#save()
  }

  /** Whether the model is to be judged now and has not been. */
  #isDue(): boolean {
    const { step } = this.#progress
    const { steps, validateEvery } = this.#recipe
    const planned = this.#validation.length > 0 && step > 0 && (step % validateEvery === 0 || step === steps)
    return planned && !this.#metrics.lines.some((line) => "validation" in line && line.step === step)
  }

  /** One optimizer step; its loss is checked before it counts. */
  async #step(): Promise<TrainEvent> {
    const began = performance.now()
    const { step } = this.#progress
    const { accumulation, steps } = this.#recipe
    const rate = learningRate(step, this.#recipe)
    const batches = Array.from({ length: accumulation }, (_, part) => this.#batch(part, step))
    const tokens = batches.reduce((total, { targets }) => total + targets.filter((target) => target >= 0).length, 0)
    let nats = 0
    let norm = 0
    for (const [part, inputs] of batches.entries()) {
      const outputs = await this.#programs.batch(part).run({
        ...inputs,
        scale: Float32Array.of(1 / tokens),
        ...(accumulation === 1 && updateInputs(rate, step)),
      })
      nats += outputs.loss![0]!
      norm = outputs.norm?.[0] ?? 0
    }
    if (accumulation > 1) norm = (await this.#programs.update!.run(updateInputs(rate, step))).norm![0]!
    const bits = nats / tokens / Math.LN2
    expect(
      Number.isFinite(bits) && Number.isFinite(norm),
      "NOT_FINITE",
      () =>
        `train: loss and gradient norm are expected to be finite, got ${bits} and ${norm} at step ${step + 1}; begin another run with a lower rate`,
    )
    const seconds = (performance.now() - began) / 1000
    this.#progress = {
      step: step + 1,
      bytesSeen: this.#progress.bytesSeen + tokens,
      seconds: this.#progress.seconds + seconds,
      text: this.#progress.text,
    }
    await this.#metrics.append({ step: step + 1, bitsPerByte: bits, rate, norm, seconds: this.#progress.seconds })
    const bytesPerSecond = this.#progress.bytesSeen / this.#progress.seconds
    const secondsLeft = ((steps - step - 1) * tokens) / bytesPerSecond
    return { type: "step", step: step + 1, steps, bitsPerByte: bits, rate, norm, bytesPerSecond, secondsLeft }
  }

  /**
   * Targets of one batch, and the inputs of its rows. Slots of a stream are read and written in turn: a failed step tears nothing. Where
   * sequences begin with a row of no token, every stream has that row; one that goes on leaves it spare.
   */
  #batch(part: number, step: number): { readonly targets: Int32Array } & RunInputs {
    const { batch, length } = this.#recipe
    const { model } = this.#programs
    const { streams } = this.#streams
    const rows = sequenceRows(model, length)
    const starts = rows - length
    const targets = new Int32Array(batch * rows).fill(-100)
    const pieces = Array.from({ length: batch }, (_, i): Piece => {
      const stream = part * batch + i
      const sequence = this.#streams.sequence(stream, step)
      const [even, odd] = [1 + stream, 1 + streams + stream]
      const [from, to] = step % 2 === 0 ? [odd, even] : [even, odd]
      const [fresh, first] = [sequence.fresh, i * rows + starts]
      targets.set(sequence.targets, first)
      const { ids, before, position } = sequence
      const place = { end: first + length, from: fresh ? 0 : from, to, ring: 1 + stream, before }
      if (!fresh || starts === 0) return { ...place, begin: first, position: position + starts, ids }
      targets[first - 1] = ids[0]!
      return { ...place, begin: first - 1, position: 0, ids: [startId, ...ids] }
    })
    return { targets, ...layoutInputs(this.#programs.batch(part).program, model, pieces) }
  }

  /** Judges the model. An abort ends this early and without an event, so that the run is still saved. */
  async *#validate(signal: AbortSignal | undefined): AsyncGenerator<TrainEvent> {
    const { step } = this.#progress
    const { score, scoringPlace, model } = this.#programs
    const options = { signal, context: model.contextMax }
    let bits = 0
    let bytes = 0
    try {
      for (const piece of this.#validation) {
        const losses = await tokenLosses({ model, executable: score }, piece, scoringPlace, options)
        bits += bitsPerByte(losses, model.patches ? "all" : "rest") * piece.length
        bytes += piece.length
      }
    } catch (error) {
      if (signal?.aborted && (error as SelscanError).code === "ABORTED") return
      throw error
    }
    await this.#metrics.append({ step, validation: bits / bytes })
    yield { type: "validation", step, bitsPerByte: bits / bytes }
  }

  async #save(): Promise<TrainEvent> {
    const { step } = this.#progress
    await saveRun(this.#out, this.#store, this.#programs.slots, this.#recipe, this.#progress)
    await this.#metrics.plot(join(this.#out, "loss.svg"))
    return { type: "saved", step, path: checkpointPath(this.#out) }
  }
}

function streamsOf(text: Uint8Array, recipe: TrainRecipe, { contextMax, patches }: LanguageModel): Streams {
  const { batch, accumulation, length, seed, reset } = recipe
  const limits = { ...(contextMax !== undefined && { contextMax }), before: patches?.size ?? 0 }
  return new Streams(text, { streams: batch * accumulation, length, seed, reset, ...limits })
}

const updateInputs = (rate: number, step: number) => ({ rate: Float32Array.of(rate), step: Float32Array.of(step + 1) })

/** The compiled programs of a run, and what they store. */
class Programs {
  readonly model: LanguageModel
  readonly #batches: readonly Executable[]
  readonly update: Executable | undefined
  readonly score: Executable
  readonly scoringPlace: Place
  readonly slots: StoredSlots

  private constructor(
    model: LanguageModel,
    batches: readonly Executable[],
    update: Executable | undefined,
    score: Executable,
    streams: number,
  ) {
    this.model = model
    this.#batches = batches
    this.update = update
    this.score = score
    // After the two slots and the ring of every stream.
    this.scoringPlace = { slots: [1 + 2 * streams, 2 + 2 * streams], ring: 1 + streams }
    const all = new Map<StoredKind, Map<string, Slot>>([
      ["weight", new Map()],
      ["training", new Map()],
      ["state", new Map()],
      ["ring", new Map()],
    ])
    for (const { program } of [...batches, ...(update ? [update] : [])]) {
      for (const [kind, known] of all) for (const slot of program.stored(kind)) known.set(slot.name, slot)
    }
    this.slots = new Map([...all].map(([kind, known]) => [kind, [...known.values()]]))
  }

  static async compile(store: Store, model: LanguageModel, recipe: TrainRecipe): Promise<Programs> {
    const { batch, accumulation, length, recompute, precision, beta1, beta2, decay, clip } = recipe
    const optimizer = { ...optimizerDefaults, beta1, beta2, decay, clip }
    const streams = batch * accumulation
    const numerics = { precision, activations: activationsOn(store.device, precision) }
    const shape = { batch, length, streams, recompute, ...numerics }
    const uses = accumulation === 1 ? (["update"] as const) : (["overwrite", "accumulate"] as const)
    const batches = await Promise.all(uses.map((use) => store.compile(batchProgram(model, shape, use, optimizer))))
    const update = accumulation === 1 ? undefined : await store.compile(updateProgram(model, optimizer))
    const score = scoreProgram(model, { ...statesOf(shape), ...numerics, rows: scoreRows })
    return new Programs(model, batches, update, await store.compile(score), streams)
  }

  batch(part: number): Executable {
    return this.#batches[Math.min(part, this.#batches.length - 1)]!
  }
}
