/**
 * A model of a published size without its weights: what it computes means nothing, what it costs is right.
 */
import { f32ToBf16 } from "../checkpoint/halves.ts"
import { int8Names, toInt8 } from "../checkpoint/int8.ts"
import { expect } from "../errors.ts"
import { allParameters, type Parameter, scaleName, scaleShape } from "../layers/layer.ts"
import { Random } from "../layers/random.ts"
import { PatternModel } from "../models/pattern-model.ts"
import { modelPreset } from "../models/presets.ts"
import { resolveDevice, type Store, splitsProducts } from "../native.ts"
import { checkWeights, type LoadOptions } from "./load.ts"
import { Model, type ModelOptions } from "./model.ts"

/** Elements of the noise that fills large matrices over and over: drawing each would take longer than measuring. */
const noiseElements = 1 << 18
const noiseDeviation = 0.02

/**
 * A preset with random weights: small parameters as training begins with them, matrices of normal noise that repeats.
 * @throws BAD_OPTION for an unknown preset; NO_DEVICE; ABORTED; OUT_OF_MEMORY, on the cpu before anything is written: systems that
 * promise more memory than they have end the process that uses it
 * @example
 * await using model = await randomModel("mamba-130m", "bf16")
 */
export async function randomModel(
  preset: string,
  matrixDtype: "f32" | "bf16" = "bf16",
  { weights, ...options }: ModelOptions & Pick<LoadOptions, "weights"> = {},
  signal?: AbortSignal,
): Promise<Model> {
  const network = new PatternModel(modelPreset(preset))
  checkWeights(weights, resolveDevice(options.device))
  const int8 = weights === "int8" ? int8Names(allParameters(network)) : undefined
  const model = new Model(network, matrixDtype, options, int8)
  try {
    if (model.device === "cpu") checkMemory(preset, model)
    const random = new Random(1)
    const noise = noiseOf(random)
    const halves = f32ToBf16(noise)
    for (const [name, parameter] of allParameters(network)) {
      expect(!signal?.aborted, "ABORTED", () => `preset ${preset}: aborted while its weights were made`)
      if (model.int8.has(name)) await fillInt8(model, name, parameter, noise)
      else if (elements(parameter) <= noiseElements && !parameter.matrix) {
        const floats = parameter.init(parameter.shape, random)
        await model.store.upload("weight", { name, dtype: "f32", shape: parameter.shape }, floats)
      } else await fill(model, name, parameter, parameter.matrix && matrixDtype === "bf16" ? halves : noise)
    }
  } catch (error) {
    await model.dispose()
    throw error
  }
  return model
}

/** What fills large matrices. */
export const noiseOf = (random: Random): Float32Array =>
  Float32Array.from({ length: noiseElements }, () => noiseDeviation * random.normal())

function checkMemory(preset: string, { network, matrixDtype, int8, precision }: Model): void {
  const wide = precision === "bf16x3" && splitsProducts() ? 8 : 4 // halves lie beside a matrix of f32
  const sizes = [...allParameters(network)].map(([name, one]) => {
    if (int8.has(name)) return elements(one) + 2 * elements({ shape: scaleShape(one.shape) })
    return elements(one) * (!one.matrix ? 4 : matrixDtype === "bf16" ? 2 : wide)
  })
  const [needed, free] = [sizes.reduce((sum, size) => sum + size, 0), process.availableMemory()]
  expect(needed <= free, "OUT_OF_MEMORY", () => {
    return `preset ${preset}: ${needed} bytes of memory are expected for its weights in ${int8.size > 0 ? "int8" : matrixDtype}, got ${free}; choose a smaller one`
  })
}

const elements = ({ shape }: Pick<Parameter, "shape">) => shape.reduce((product, size) => product * size, 1)

async function fillInt8({ store }: Model, name: string, { shape }: Parameter, noise: Float32Array): Promise<void> {
  const { q, scales } = toInt8(noise, noise.length)
  await repeat(store, { name, dtype: "i8", shape }, q)
  await repeat(store, { name: scaleName(name), dtype: "bf16", shape: scaleShape(shape) }, scales)
}

async function fill(
  model: Model,
  name: string,
  parameter: Parameter,
  noise: Float32Array | Uint16Array,
): Promise<void> {
  const dtype = noise instanceof Uint16Array ? "bf16" : "f32"
  const slot = { name, dtype, shape: parameter.shape } as const
  await repeat(model.store, slot, noise)
}

type StoredSlot = Parameters<Store["upload"]>[1]

/** Fills a stored value with the same elements over and over. */
export async function repeat(
  store: Store,
  slot: StoredSlot,
  noise: Float32Array | Uint16Array | Int8Array,
): Promise<void> {
  const count = elements(slot)
  for (let at = 0; at < count; at += noise.length) {
    const piece = noise.subarray(0, Math.min(noise.length, count - at))
    await store.upload("weight", slot, piece, at * noise.BYTES_PER_ELEMENT)
  }
}
