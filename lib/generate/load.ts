/**
 * Loading a model from a folder: config.json and model.safetensors, in either public naming.
 */
import { access } from "node:fs/promises"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { type MambaConfig, readMambaConfig } from "../checkpoint/config.ts"
import { toF32 } from "../checkpoint/dtypes.ts"
import { checkCopies, checkNames, checkShapes, detectNaming, toOurs } from "../checkpoint/names.ts"
import { openSafetensors, type SafetensorsFile } from "../checkpoint/safetensors.ts"
import { checkOptions, expect, SelscanError } from "../errors.ts"
import { allParameters, type Parameter } from "../layers/layer.ts"
import { MambaModel } from "../models/mamba.ts"
import { type Device, resolveDevice } from "../native.ts"
import { Model, type ModelOptions, modelOptionNames } from "./model.ts"

/** Models that ship with the package. */
const shipped = ["demo"]

/** The folder of a model by name or path. */
export async function modelFolder(name: string): Promise<string> {
  const folder = shipped.includes(name) ? fileURLToPath(new URL(`../../models/${name}`, import.meta.url)) : name
  await access(join(folder, "config.json")).catch((cause: Error) => {
    throw new SelscanError(
      "NOT_FOUND",
      `load: ${name} is expected to be a folder with config.json and model.safetensors, or ${shipped.join(" or ")}; there is no ${join(folder, "config.json")}`,
      { name },
      { cause },
    )
  })
  return folder
}

/**
 * Loads a model: "demo", or a folder with config.json and model.safetensors of a Mamba model, in the naming of
 * state-spaces/mamba or of transformers. A model over the 256 bytes takes and gives text; others take and give ids.
 *
 * Matrices stay bf16 when the file has them so, and products are then in bf16 unless `precision` says f32; f16 is widened
 * to f32. Everything else is f32.
 *
 * @throws NO_DEVICE, NOT_FOUND, BAD_FILE, BAD_CHECKPOINT (missing or unexpected tensors, shapes), NOT_FINITE (weights with NaN or infinity)
 * @example
 * const model = await load("demo")
 */
export async function load(name: string, options: ModelOptions = {}): Promise<Model> {
  expect(
    typeof name === "string" && name !== "",
    "BAD_INPUT",
    () => "load: the name or folder of a model is expected, got none",
  )
  checkOptions("load", options, modelOptionNames)
  const device = resolveDevice(options.device) as Device
  const folder = await modelFolder(name)
  const config = await readMambaConfig(join(folder, "config.json"))
  await using file = await openSafetensors(join(folder, "model.safetensors"))
  return await loadWeights(file, config, { ...options, device }) // awaited: the file is open until then
}

/** Puts the tensors of an open file onto a device as a model of that configuration. */
export async function loadWeights(
  file: SafetensorsFile,
  config: MambaConfig,
  options: ModelOptions = {},
): Promise<Model> {
  const naming = detectNaming(file.tensors.keys(), file.path)
  const report = toOurs(file.tensors.keys(), naming, config)
  checkNames(report, file.path)
  checkShapes(file.tensors, naming, config, file.path)
  await checkCopies(file, report)
  const network = new MambaModel(config)
  const parameters = allParameters(network)
  const names = [...report.mapping]
  const matrices = names.filter(([, ours]) => parameters.get(ours)?.matrix)
  const half = matrices.every(([theirs]) => file.tensors.get(theirs)?.dtype === "BF16")
  const model = new Model(network, half ? "bf16" : "f32", options)
  try {
    for (const [theirs, ours] of names) await upload(model, file, theirs, ours, parameters.get(ours)!)
  } catch (error) {
    await model.dispose()
    throw error
  }
  return model
}

async function upload(
  model: Model,
  file: SafetensorsFile,
  theirs: string,
  ours: string,
  parameter: Parameter,
): Promise<void> {
  const slot = { name: ours, shape: parameter.shape }
  const bytes = await file.read(theirs)
  const floats = toF32(file.tensors.get(theirs)!.dtype, bytes)
  const bad = floats.findIndex((value) => !Number.isFinite(value))
  expect(
    bad < 0,
    "NOT_FINITE",
    () => `${file.path}: ${theirs}: finite weights are expected, got ${floats[bad]} at index ${bad}`,
    { tensor: theirs },
  )
  if (parameter.matrix && model.matrixDtype === "bf16") {
    await model.store.upload("weight", { ...slot, dtype: "bf16" }, bytes)
  } else await model.store.upload("weight", { ...slot, dtype: "f32" }, floats)
}
