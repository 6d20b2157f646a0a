/**
 * Loading a model from a folder: a config file and safetensors, in the naming of any family that lib/checkpoint knows.
 */
import { fileURLToPath } from "node:url"
import { familyOfTensors, type ReadConfig, readConfig, tensorsOf } from "../checkpoint/families.ts"
import type { FileTensor } from "../checkpoint/family.ts"
import { checkTensors } from "../checkpoint/names.ts"
import { openWeights, type TensorSource } from "../checkpoint/shards.ts"
import { readPieces } from "../checkpoint/weights.ts"
import { checkOptions, expect, SelscanError } from "../errors.ts"
import { allParameters, type Parameter } from "../layers/layer.ts"
import { type Device, resolveDevice } from "../native.ts"
import { Model, type ModelOptions, modelOptionNames } from "./model.ts"

export interface LoadOptions extends ModelOptions {
  /** Positions that a session can have in attention without a window. Default: what the model's config says. */
  readonly contextMax?: number | undefined
}

/** Models that ship with the package. */
const shipped = ["demo"]

/** The folder of a model by name or path. */
function modelFolder(name: string): string {
  return shipped.includes(name) ? fileURLToPath(new URL(`../../models/${name}`, import.meta.url)) : name
}

/**
 * Loads a model: "demo", or a folder with a config file and model.safetensors, whole or in shards.
 *
 * | config file     | models                                | tensors named as in                    |
 * | --------------- | ------------------------------------- | -------------------------------------- |
 * | config.json     | Mamba                                 | state-spaces/mamba, or transformers    |
 * | config.json     | Llama, Mistral                        | transformers                           |
 * | config.json     | any pattern of blocks                 | this package                           |
 * | lit_config.json | SAMBA and what it is compared with    | microsoft/Samba                        |
 *
 * A model over the 256 bytes takes and gives text; others take and give ids. Matrices stay bf16 when the file has them so, and products
 * are then in bf16 unless `precision` says f32; f16 is widened to f32. Everything else is f32.
 *
 * @throws NO_DEVICE, NOT_FOUND, BAD_FILE, BAD_CHECKPOINT (missing or unexpected tensors, shapes, a model that is not supported),
 * NOT_FINITE (weights with NaN or infinity)
 * @example
 * const model = await load("demo")
 */
export async function load(name: string, options: LoadOptions = {}): Promise<Model> {
  expect(
    typeof name === "string" && name !== "",
    "BAD_INPUT",
    () => "load: the name or folder of a model is expected, got none",
  )
  checkOptions("load", options, [...modelOptionNames, "contextMax"])
  const device = resolveDevice(options.device) as Device
  const folder = modelFolder(name)
  const read = await readConfig(folder).catch((error: SelscanError) => {
    throw error.code === "NOT_FOUND" ? notFound(name, error) : error
  })
  await using source = await openWeights(folder)
  return await loadWeights(source, read, { ...options, device }) // awaited: the files are open until then
}

function notFound(name: string, cause: SelscanError): SelscanError {
  const message = `load: expected ${name} to be ${shipped.join(" or ")}, or a folder with config.json or lit_config.json and model.safetensors, got none; check the path`
  return new SelscanError("NOT_FOUND", message, { name }, { cause })
}

/** Puts the tensors of an open file onto a device as a model of that configuration. */
export async function loadWeights(source: TensorSource, read: ReadConfig, options: LoadOptions = {}): Promise<Model> {
  const { contextMax, ...rest } = options
  expect(
    contextMax === undefined || (Number.isSafeInteger(contextMax) && contextMax >= 1 && contextMax <= 2 ** 24),
    "BAD_OPTION",
    () => `load: contextMax is a whole number from 1 to ${2 ** 24}, got ${contextMax}`,
  )
  const config = contextMax === undefined ? read.config : read.family.withContext(read.config, contextMax)
  const family = familyOfTensors(read, source.tensors, source.path)
  const tensors = await checkTensors(source, tensorsOf(family, config), family)
  const network = family.network(config)
  const parameters = allParameters(network)
  const model = new Model(network, matrixDtype(source, tensors, parameters), rest)
  try {
    await upload(model, source, tensors, parameters)
  } catch (error) {
    await model.dispose()
    throw error
  }
  return model
}

/** bf16 where every matrix of the file is. */
function matrixDtype(
  source: TensorSource,
  tensors: readonly FileTensor[],
  parameters: ReadonlyMap<string, Parameter>,
): "f32" | "bf16" {
  const matrices = tensors.filter(({ parts }) => parts.some(({ name }) => parameters.get(name)!.matrix))
  return matrices.every(({ fileName }) => source.tensors.get(fileName)!.dtype === "BF16") ? "bf16" : "f32"
}

async function upload(
  { store, matrixDtype }: Model,
  source: TensorSource,
  tensors: readonly FileTensor[],
  parameters: ReadonlyMap<string, Parameter>,
): Promise<void> {
  for await (const { name, at, bytes, floats } of readPieces(source, tensors)) {
    const { shape, matrix } = parameters.get(name)!
    if (matrix && matrixDtype === "bf16") await store.upload("weight", { name, shape, dtype: "bf16" }, bytes, 2 * at)
    else await store.upload("weight", { name, shape, dtype: "f32" }, floats, 4 * at)
  }
}
