/**
 * Loading a model from a folder: a config file and safetensors or what PyTorch saved, in the naming of any family that lib/checkpoint knows.
 */
import { stat } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { fromF32 } from "../checkpoint/dtypes.ts"
import { familyOfTensors, type ReadConfig, readConfig, tensorsOf } from "../checkpoint/families.ts"
import type { FileTensor } from "../checkpoint/family.ts"
import { int8InFile, int8Names, matrixDtypeOf, scalesOf, toInt8, type WideSource, wide } from "../checkpoint/int8.ts"
import { checkTensors } from "../checkpoint/names.ts"
import { openWeights, type TensorSource } from "../checkpoint/shards.ts"
import { type Piece, readPieces } from "../checkpoint/weights.ts"
import { checkOptions, checkSignal, expect, SelscanError } from "../errors.ts"
import { isHubName } from "../hub/name.ts"
import { type DownloadOptions, dividedOptions, downloadOptionNames } from "../hub/options.ts"
import { allParameters, type Parameter, scaleName, scaleShape } from "../layers/layer.ts"
import { type Device, resolveDevice, type Store } from "../native.ts"
import { namedTokenizer, readTokenizer } from "../text/read.ts"
import { nameOf } from "./fingerprint.ts"
import { Model, type ModelOptions, modelOptionNames } from "./model.ts"

interface LocalOptions extends ModelOptions {
  /** Positions that a session can have in attention without a window. Default: what the model's config says. */
  readonly contextMax?: number | undefined
  /** "bytes", or a tokenizer.json or a folder with one. Default: the model's own, else bytes for a vocabulary of 256. */
  readonly tokenizer?: string | undefined
  /**
   * "int8": in_proj, out_proj, the MLP's and attention's projections, the embedding and the head are kept in 8 bits with a scale for every
   * 32 of a row, on the cpu. Default: as the file has them.
   */
  readonly weights?: "int8" | undefined
}

export interface LoadOptions extends LocalOptions, DownloadOptions {}

/** Models that ship with the package. */
export const shipped: readonly string[] = ["demo", "demo-samba"]

/** The folder of a model by name or path: one that ships, else one that exists, else one from the Hub. */
export async function modelFolder(name: string, options: DownloadOptions = {}): Promise<string> {
  const isShipped = shipped.includes(name)
  const exists = isShipped || (await stat(name).catch(() => undefined)) !== undefined
  if (!exists && isHubName(name)) {
    const { download } = await import("../hub/download.ts") // a start without the Hub loads none of it
    return await download(name, options).catch((error) => Promise.reject(orFolder(error)))
  }
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
 * are then in bf16 unless `precision` says otherwise; f16 is widened to f32. Everything else is f32.
 *
 * Matrices that a file has in 8 bits (compressed-tensors, int-quantized, symmetric groups of 32, as `selscan convert --weights int8` writes) stay
 * so on the cpu; on cuda they become bf16, or f32 where another matrix of the file is no bf16. With
 * `weights: "int8"` those of any file are rounded to 8 bits as they are read.
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
  checkOptions("load", options, [...modelOptionNames, "contextMax", "tokenizer", "weights", ...downloadOptionNames])
  const { hub, own } = dividedOptions(options)
  checkSignal("load", hub.signal)
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
  const { contextMax, weights, ...rest } = options
  const device = resolveDevice(options.device)
  checkWeights(weights, device)
  expect(
    contextMax === undefined || (Number.isSafeInteger(contextMax) && contextMax >= 1 && contextMax <= 2 ** 24),
    "BAD_OPTION",
    () => `load: contextMax is a whole number from 1 to ${2 ** 24}, got ${contextMax}`,
  )
  const config = contextMax === undefined ? read.config : read.family.withContext(read.config, contextMax)
  const file = wide(source, read.int8)
  const family = familyOfTensors(read, file.tensors, file.path)
  const tensors = await checkTensors(file, tensorsOf(family, config), family)
  const network = family.network(config)
  const parameters = allParameters(network)
  const eights = weights === "int8" ? int8Names(parameters) : int8InFile(file, tensors, parameters)
  const matrixDtype = matrixDtypeOf(file, tensors, parameters, eights)
  const model = new Model(network, matrixDtype, rest, device === "cpu" ? eights : undefined)
  try {
    await upload(model, file, tensors, parameters)
  } catch (error) {
    await model.dispose()
    throw error
  }
  return model
}

/** Throws BAD_OPTION for a word that is none, and where the device has no products of 8 bits. */
export function checkWeights(weights: string | undefined, device: string): void {
  expect(weights === undefined || weights === "int8", "BAD_OPTION", () => {
    return `load: weights is int8, got ${weights}; leave it out for those of the file`
  })
  expect(weights === undefined || device === "cpu", "BAD_OPTION", () => {
    return `load: weights int8 is for the cpu, got device ${device}; leave it out, or ask for the device cpu`
  })
}

async function upload(
  model: Model,
  source: WideSource,
  tensors: readonly FileTensor[],
  parameters: ReadonlyMap<string, Parameter>,
): Promise<void> {
  // One upload is under way while the next piece is looked at; its bytes are copied when it is called.
  let before: Promise<void> = Promise.resolve()
  for await (const piece of readPieces(source, tensors)) {
    const upload = uploadPiece(model, piece, parameters.get(piece.name)!)
    upload.catch(() => {}) // it is thrown below, or not at all where another was before it
    await before
    before = upload
  }
  await before
}

async function uploadPiece(
  { store, matrixDtype, int8 }: Model,
  piece: Piece,
  { shape, matrix }: Parameter,
): Promise<void> {
  const { name, at, dtype } = piece
  if (int8.has(name)) return await uploadInt8(store, shape, piece)
  if (!matrix || matrixDtype !== "bf16") {
    return await store.upload("weight", { name, shape, dtype: "f32" }, piece.floats, 4 * at)
  }
  const halves = dtype === "BF16" ? piece.bytes : fromF32("BF16", piece.floats) // of 8 bits, where the device has no products of them
  await store.upload("weight", { name, shape, dtype: "bf16" }, halves, 2 * at)
}

async function uploadInt8(store: Store, shape: readonly number[], { name, at, floats }: Piece): Promise<void> {
  const columns = shape[1]!
  const { q, scales } = toInt8(floats, columns)
  await store.upload("weight", { name, shape, dtype: "i8" }, q, at)
  const slot = { name: scaleName(name), shape: scaleShape(shape), dtype: "bf16" } as const
  await store.upload("weight", slot, scales, 2 * scalesOf(columns, at, floats.length).first)
}
