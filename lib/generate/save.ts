/**
 * Writing a model as a folder that load() and the reference implementations read.
 */
import { mkdir, readdir } from "node:fs/promises"
import { join } from "node:path"
import { writeFileAtomically } from "../checkpoint/atomic.ts"
import { dtypeSize, fromF32, toF32 } from "../checkpoint/dtypes.ts"
import { configFiles, familyOf, modelConfigFields, tensorsOf } from "../checkpoint/families.ts"
import { type AnyConfig, type FileTensor, type Naming, namings } from "../checkpoint/family.ts"
import { fromInt8, int8Entries, quantizationConfig, scalesOf } from "../checkpoint/int8.ts"
import { type TensorEntry, writeSafetensors } from "../checkpoint/safetensors.ts"
import { checkFinite, filePieces } from "../checkpoint/weights.ts"
import { checkOptions, expect, SelscanError } from "../errors.ts"
import { allParameters, type Parameter, scaleName } from "../layers/layer.ts"
import type { Model } from "./model.ts"

export interface SaveOptions {
  /**
   * Names of the tensors and of the config's fields: as in state-spaces/mamba (original), transformers (Mamba, Llama, Mistral),
   * microsoft/Samba (samba), or our own (selscan). Default: original for Mamba, transformers for Llama and Mistral, else selscan.
   */
  readonly naming?: Naming
  /** Of the matrices; everything else is f32. Default: as the model holds them, those of 8 bits in 8 bits. */
  readonly dtype?: "f32" | "bf16" | "f16"
}

const fileDtype = { f32: "F32", bf16: "BF16", f16: "F16" } as const

/**
 * Writes the config file and model.safetensors into a folder, each atomically, a piece of a tensor in memory at a time.
 * @throws BAD_OPTION for options, and for a folder that holds a model in another form; BAD_CHECKPOINT for a model that the naming has no words for; NOT_FINITE for a weight that is none in
 * f16; DISK when the folder cannot be written or is full: what was there before stays
 * @example
 * await saveModel(model, config, "exported", { naming: "transformers", dtype: "bf16" })
 */
export async function saveModel(
  model: Model,
  config: AnyConfig,
  folder: string,
  options: SaveOptions = {},
): Promise<void> {
  checkOptions("save", options, ["naming", "dtype"])
  const { naming, dtype = model.matrixDtype as "f32" | "bf16" } = options
  expect(
    naming === undefined || namings.includes(naming),
    "BAD_OPTION",
    () => `save: naming is one of ${namings.join(", ")}, got ${naming}`,
  )
  expect(Object.hasOwn(fileDtype, dtype), "BAD_OPTION", () => `save: dtype is f32, bf16 or f16, got ${dtype}`)
  const family = familyOf(config, naming)
  const fields = modelConfigFields(config, family.naming)
  const parameters = allParameters(model.network)
  const tensors = tensorsOf(family, config).filter(({ copyOf }) => copyOf === undefined)
  const eights = options.dtype === undefined ? model.int8 : new Set<string>()
  const inInt8 = ({ parts }: FileTensor) => parts.every(({ name }) => eights.has(name))
  const entries = tensors.flatMap((tensor) => {
    if (!inInt8(tensor)) return [entry(model, tensor, parameters, fileDtype[dtype], folder)]
    return int8Entries(tensor, ({ name }, at, count) => int8Floats(model, name, parameters.get(name)!, at, count))
  })
  const others = tensors.filter((one) => !inInt8(one) && one.parts.some(({ name }) => parameters.get(name)!.matrix))
  const said = tensors.some(inInt8) ? { ...fields, ...quantizationConfig(others) } : fields
  await mkdir(folder, { recursive: true }).catch((cause: Error) => {
    throw new SelscanError("DISK", `save: folder ${folder} could not be made: ${cause.message}`, { folder }, { cause })
  })
  await checkFolder(folder, family.configFile)
  await writeSafetensors(join(folder, "model.safetensors"), entries, { metadata: { format: "pt" } })
  await writeFileAtomically(join(folder, family.configFile), `${JSON.stringify(said, null, 2)}\n`)
}

/** load() would take another form's config file for this model's. */
async function checkFolder(folder: string, configFile: string): Promise<void> {
  const files: string[] = await readdir(folder).catch(() => []) // one that cannot be read may still be written
  const other = configFiles.find((file) => file !== configFile && files.includes(file))
  expect(other === undefined, "BAD_OPTION", () => {
    return `save: ${folder} is expected to have no config file but ${configFile}, got ${other}; choose another folder, or remove it`
  })
}

type StoredDtype = (typeof fileDtype)[keyof typeof fileDtype]

function entry(
  model: Model,
  tensor: FileTensor,
  parameters: ReadonlyMap<string, Parameter>,
  matrices: StoredDtype,
  folder: string,
): TensorEntry {
  const { fileName: name, shape, parts } = tensor
  const dtype = parameters.get(parts[0]!.name)!.matrix ? matrices : "F32"
  const read = async (part: { name: string }, at: number, count: number) => {
    const parameter = parameters.get(part.name)!
    const eight = model.int8.has(part.name)
    const held = parameter.matrix && model.matrixDtype === "bf16" && !eight ? "BF16" : "F32"
    const size = dtypeSize[held]
    const bytes = eight
      ? await int8Floats(model, part.name, parameter, at, count)
      : await model.store.download("weight", part.name, at * size, count * size)
    if (held === dtype) return bytes
    const narrow = fromF32(dtype, toF32(held, bytes))
    if (dtype === "F16") checkFinite(toF32(dtype, narrow), `${folder}: ${part.name} in f16`, at)
    return narrow
  }
  return { name, dtype, shape, data: () => filePieces(tensor, dtypeSize[dtype], read) }
}

/** Elements of a parameter in 8 bits, as the bytes of the f32 that they stand for. */
async function int8Floats(
  { store }: Model,
  name: string,
  { shape }: Parameter,
  at: number,
  count: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const columns = shape[1]!
  const of = scalesOf(columns, at, count)
  const [q, scales] = await Promise.all([
    store.download("weight", name, at, count),
    store.download("weight", scaleName(name), 2 * of.first, 2 * of.count),
  ])
  const floats = fromInt8(new Int8Array(q.buffer, q.byteOffset, count), at, columns, toF32("BF16", scales), of.first)
  return new Uint8Array(floats.buffer as ArrayBuffer)
}
