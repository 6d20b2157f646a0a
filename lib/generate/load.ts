/**
 * Loading a model from a folder: a config file and safetensors or what PyTorch saved, in the naming of any family that lib/checkpoint knows.
 */
import { stat } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { familyOfTensors, type ReadConfig, readConfig, tensorsOf } from "../checkpoint/families.ts"
import type { FileTensor } from "../checkpoint/family.ts"
import { checkTensors } from "../checkpoint/names.ts"
import { openWeights, type TensorSource } from "../checkpoint/shards.ts"
import { readPieces } from "../checkpoint/weights.ts"
import { checkOptions, expect, SelscanError } from "../errors.ts"
import { download } from "../hub/download.ts"
import { isHubName } from "../hub/name.ts"
import { type DownloadOptions, dividedOptions, downloadOptionNames } from "../hub/options.ts"
import { allParameters, type Parameter } from "../layers/layer.ts"
import { type Device, resolveDevice } from "../native.ts"
import { namedTokenizer, readTokenizer } from "../text/read.ts"
import { nameOf } from "./fingerprint.ts"
import { Model, type ModelOptions, modelOptionNames } from "./model.ts"

interface LocalOptions extends ModelOptions {
  /** Positions that a session can have in attention without a window. Default: what the model's config says. */
  readonly contextMax?: number | undefined
  /** "bytes", or a tokenizer.json or a folder with one. Default: the model's own, else bytes for a vocabulary of 256. */
  readonly tokenizer?: string | undefined
}

export interface LoadOptions extends LocalOptions, DownloadOptions {}

/** Models that ship with the package. */
export const shipped: readonly string[] = ["demo", "demo-samba"]

/** The folder of a model by name or path: one that ships, else one that exists, else one from the Hub. */
export async function modelFolder(name: string, options: DownloadOptions = {}): Promise<string> {
  const isShipped = shipped.includes(name)
  const exists = isShipped || (await stat(name).catch(() => undefined)) !== undefined
  if (!exists && isHubName(name)) return await download(name, options).catch((error) => Promise.reject(orFolder(error)))
  expect(options.revision === undefined, "BAD_OPTION", () => {
    return `load: expected no revision, which models on the Hub have, got ${options.revision} for ${name}; leave it out`
  })
  return isShipped ? fileURLToPath(new URL(`../../models/${name}`, import.meta.url)) : name
}

/** A path with a typing error looks like a name on the Hub, and what cannot be reached cannot say that it has no such model. */
function orFolder(error: SelscanError): SelscanError {
  if (error.code !== "NETWORK") return error
  return new SelscanError("NETWORK", `${error.message}; of a folder give a path that exists`, error.details, {
    cause: error,
  })
}

/**
 * Loads a model: "demo", "demo-samba", or a folder with a config file and model.safetensors or else pytorch_model.bin, whole or in shards,
 * or else one .pth file, or from the Hugging Face Hub "owner/name", which `download` puts into its cache first.
 *
 * | config file     | models                                | tensors named as in                    |
 * | --------------- | ------------------------------------- | -------------------------------------- |
 * | config.json     | Mamba, MambaByte                      | state-spaces/mamba, or transformers    |
 * | config.json     | MambaByte's own module                | jxiw/MambaByte, or state-spaces/mamba  |
 * | config.json     | Falcon-Mamba, Llama, Mistral          | transformers                           |
 * | config.json     | any pattern of blocks                 | this package                           |
 * | lit_config.json | SAMBA and what it is compared with    | microsoft/Samba                        |
 *
 * A model whose folder has a tokenizer.json takes and gives text, and one over the 256 bytes; others take and give ids. Matrices stay bf16 when the file has them so, and products
 * are then in bf16 unless `precision` says f32; f16 is widened to f32. Everything else is f32.
 *
 * @throws NO_DEVICE, NOT_FOUND, BAD_FILE, BAD_CHECKPOINT (missing or unexpected tensors, shapes, a model that is not supported),
 * BAD_TOKENIZER (a malformed one, or one with more ids than the model), NOT_FINITE (weights with NaN or infinity), and what `download` throws
 * @example
 * const model = await load("demo")
 * const mamba = await load("state-spaces/mamba-130m-hf", { revision: "main" })
 */
export async function load(name: string, options: LoadOptions = {}): Promise<Model> {
  expect(
    typeof name === "string" && name !== "",
    "BAD_INPUT",
    () => `load: the name or folder of a model is expected, got ${name === "" ? "an empty text" : typeof name}`,
  )
  checkOptions("load", options, [...modelOptionNames, "contextMax", "tokenizer", ...downloadOptionNames])
  const { hub, own } = dividedOptions(options)
  expect(
    hub.signal?.aborted !== true,
    "ABORTED",
    () => `load: aborted before ${name} was looked for; call again to go on`,
  )
  const device = resolveDevice(options.device) as Device
  const folder = await modelFolder(name, hub)
  const read = await readConfig(folder).catch((error: SelscanError) => {
    throw error.code === "NOT_FOUND" ? notFound(name, error) : error
  })
  const { tokenizer, ...rest } = own
  const codec =
    options.codec ?? (tokenizer === undefined ? await readTokenizer(folder) : await namedTokenizer(tokenizer))
  await using source = await openWeights(folder)
  const model = await loadWeights(source, read, { ...rest, device, codec }) // awaited: the files are open until then
  model.name = nameOf(name)
  return model
}

function notFound(name: string, cause: SelscanError): SelscanError {
  const message = `load: expected ${name} to be ${shipped.join(" or ")}, a folder with config.json or lit_config.json and model.safetensors, or owner/name on the Hub, got none; check the path`
  return new SelscanError("NOT_FOUND", message, { name }, { cause })
}

/** Puts the tensors of an open file onto a device as a model of that configuration. */
export async function loadWeights(
  source: TensorSource,
  read: ReadConfig,
  options: Omit<LocalOptions, "tokenizer"> = {},
): Promise<Model> {
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
