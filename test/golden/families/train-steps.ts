import { expect } from "../../../lib/errors.ts"
import { type Program, trace } from "../../../lib/graph/program.ts"
import { allParameters } from "../../../lib/layers/layer.ts"
import type { Executable, Store } from "../../../lib/native.ts"
import { adamW, clipScale } from "../../../lib/ops/adam-w.ts"
import { add } from "../../../lib/ops/elementwise.ts"
import { sumSquares } from "../../../lib/ops/reduce.ts"
import { batchProgram, type OptimizerOptions } from "../../../lib/train/program.ts"
import type { GoldenCase } from "../case.ts"
import { type Comparison, compare } from "../compare.ts"
import { type CaseFamily, run } from "../family.ts"
import { shifted } from "./language-model.ts"
import { type Checkpoint, inFile, readCheckpoint, storeOf } from "./model-checkpoint.ts"

interface Hyperparameters {
  readonly lr: number | readonly number[]
  readonly betas: readonly [number, number]
  readonly eps: number
  readonly max_norm: number
}

/**
 * Steps of AdamW with clipping from the folder's own weights: ids (steps,B,L); losses before each step, grad_norms before
 * clipping, param.* after the last step.
 */
export const trainStepsFamily: CaseFamily = {
  ops: ["mamba train_steps", "samba train_steps", "llama train_steps", "mistral train_steps"],
  run: async (golden) => {
    const checkpoint = await readCheckpoint(golden, String(golden.metadata.initial_weights ?? "f32"))
    const { lr, ...options } = golden.metadata.hyperparameters as Hyperparameters
    const [steps = 1, ...shape] = golden.shape("in.ids")
    const all = golden.integers("in.ids")
    const size = all.length / steps
    const batchOf = (step: number) => shifted(all.slice(step * size, (step + 1) * size), shape)
    const { batch, length } = batchOf(0)
    const programs = trainingPrograms(golden, checkpoint, { batch, length }, options)
    await using store = await storeOf(programs[0]!, checkpoint)
    const executables = await Promise.all(programs.map((program) => store.compile(program)))
    const [losses, norms] = [new Float32Array(steps), new Float32Array(steps)]
    for (let step = 0; step < steps; step++) {
      const { ids, targets, segments } = batchOf(step)
      const scale = Float32Array.of(1 / (batch * length))
      const rate = Float32Array.of(typeof lr === "number" ? lr : lr[step]!)
      // Every sequence begins fresh and leaves nothing: slot and ring 0 are nobody's.
      const rings = new Int32Array(batch)
      const inputs = { ids, targets, segments, rings, scale, rate, step: Float32Array.of(step + 1) }
      const { loss, norm } = await runAll(executables, inputs)
      losses[step] = loss![0]! / (batch * length)
      norms[step] = norm![0]!
    }
    const optional = [
      ["out.losses", losses],
      ["out.grad_norms", norms],
    ] as const
    const compared = optional.filter(([name]) => golden.has(name)).map(([name, data]) => compare(golden, name, data))
    return [...compared, ...(await compareParameters(golden, checkpoint, store))]
  },
}

/**
 * The trainer's own step where the file decays what the trainer decays; else the trainer's gradients, followed by an update
 * with the file's decay of each parameter.
 */
function trainingPrograms(
  golden: GoldenCase,
  { network, tensors }: Checkpoint,
  { batch, length }: { batch: number; length: number },
  { betas, eps, max_norm: clip }: Omit<Hyperparameters, "lr">,
): Program[] {
  const theirs = golden.metadata.weight_decay as Readonly<Record<string, number>>
  const decays = new Map<string, number>()
  for (const { fileName, parts } of tensors.values()) {
    const decay = theirs[fileName]
    const one = typeof decay === "number" && parts.every(({ name }) => (decays.get(name) ?? decay) === decay)
    expect(
      one,
      "BAD_FILE",
      () => `${golden.path}: weight_decay has one number for each parameter, got ${decay} for ${fileName}`,
    )
    for (const { name } of parts) decays.set(name, decay)
  }
  const parameters = [...allParameters(network)]
  const decay = decays.get(parameters.find(([, parameter]) => parameter.decay)![0])!
  const optimizer: OptimizerOptions = { beta1: betas[0], beta2: betas[1], eps, decay, clip }
  const shape = { batch, length, streams: batch, recompute: false, precision: "f32" } as const
  if (parameters.every(([name, parameter]) => decays.get(name) === (parameter.decay ? decay : 0))) {
    return [batchProgram(network, shape, "update", optimizer)]
  }
  return [batchProgram(network, shape, "overwrite", optimizer), updateEach(network, optimizer, decays)]
}

function updateEach(
  network: Checkpoint["network"],
  { beta1, beta2, eps, clip: max }: OptimizerOptions,
  decays: ReadonlyMap<string, number>,
): Program {
  return trace("update each", (t) => {
    const parameters = [...allParameters(network)]
    const grads = parameters.map(([name, { shape }]) => t.training(`grad:${name}`, "f32", shape))
    const squares = grads.map((x) => sumSquares({ x }).y).reduce((a, b) => add({ a, b }).y)
    const { norm, scale: clip } = clipScale({ squares }, { max })
    const [rate, step] = [t.input("rate", "f32", []), t.input("step", "f32", [])]
    parameters.forEach(([name, { shape }], i) => {
      const [m, v] = ["m", "v"].map((which) => t.training(`${which}:${name}`, "f32", shape))
      const values = { param: t.weight(name, "f32", shape), grad: grads[i]!, m: m!, v: v!, rate, step, clip }
      adamW(values, { beta1, beta2, eps, decay: decays.get(name)! })
    })
    return { norm }
  })
}

/** Runs programs one after the other; the outputs of all together. */
async function runAll(executables: readonly Executable[], inputs: Parameters<typeof run>[1]) {
  const outputs: Record<string, Float32Array> = {}
  for (const executable of executables) Object.assign(outputs, await run(executable, inputs))
  return outputs
}

async function compareParameters(
  golden: GoldenCase,
  { tensors, weights }: Checkpoint,
  store: Store,
): Promise<Comparison[]> {
  const trained = new Map<string, Float32Array>()
  for (const name of weights.keys()) {
    const bytes = await store.download("weight", name)
    trained.set(name, new Float32Array(bytes.buffer))
  }
  const wanted = golden.names("out.param.").filter((name) => tensors.has(name))
  return wanted.map((name) =>
    compare(
      golden,
      `out.param.${name}`,
      inFile(tensors.get(name)!, (ours) => trained.get(ours)!),
    ),
  )
}
