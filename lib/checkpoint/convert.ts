/**
 * A model's files made into files of another form, by position: no more of the weights is in memory than a piece of a tensor, and the
 * addon is not needed.
 */
import { basename, join, resolve } from "node:path"
import { checkOptions, expect } from "../errors.ts"
import { allParameters, type Parameter } from "../layers/layer.ts"
import { writeFileAtomically } from "./atomic.ts"
import { dtypeSize, fromF32, toF32 } from "./dtypes.ts"
import { Elements } from "./elements.ts"
import { familyOf, familyOfTensors, modelConfigFields, readConfig, tensorsOf } from "./families.ts"
import { type AnyConfig, type FileTensor, type Naming, namings, type Part } from "./family.ts"
import { type GgufMetadata, type GgufTensor, writeGguf } from "./gguf.ts"
import { ggufMamba } from "./gguf-mamba.ts"
import { ggufTokenizer } from "./gguf-tokenizer.ts"
import { checkTensors } from "./names.ts"
import { copyTokenizer, publishFile, publishFolder } from "./publish.ts"
import { type TensorEntry, writeSafetensors } from "./safetensors-writer.ts"
import { openWeights } from "./shards.ts"
import { checkFinite, filePieces } from "./weights.ts"

/** A naming of a folder with safetensors, or one file for llama.cpp. */
export type ConvertForm = Naming | "gguf"
export const convertForms: readonly ConvertForm[] = [...namings, "gguf"]

export interface ConvertOptions {
  /**
   * The names of tensors and config fields, as `SaveOptions.naming`, or gguf. Default: gguf for a path that ends in .gguf, else the
   * form that other programs read.
   */
  readonly to?: ConvertForm | undefined
  /** Of the matrices; everything else is f32. Default: the file's where all its matrices are bf16, or all f16, else f32. */
  readonly dtype?: "f32" | "bf16" | "f16" | undefined
  /** The name that a GGUF file says of its model. Default: the folder's. */
  readonly modelName?: string | undefined
  /** Whether to replace a model that is there already. Default false. */
  readonly force?: boolean | undefined
  readonly signal?: AbortSignal | undefined
  /** Called after every piece, with bytes of weights written and in all. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined
}

/** What was written. */
export interface Converted {
  readonly out: string
  readonly to: ConvertForm
  readonly dtype: "f32" | "bf16" | "f16"
  readonly tensors: number
  /** Bytes of weights. */
  readonly bytes: number
}

const fileDtype = { f32: "F32", bf16: "BF16", f16: "F16" } as const

/**
 * Writes a model's folder in another form: a folder that load() and the reference implementations read, with the tokenizer's files, or
 * a GGUF file for llama.cpp. A new `out` appears complete or not at all; in a folder that is there, files are replaced once all are written.
 *
 * GGUF is for Mamba alone, and there for what llama.cpp computes: inner of 2·dim, no biases of projections.
 * @throws BAD_OPTION for options, and for an `out` that is there already or is the model itself; BAD_CHECKPOINT for a model that the form
 * has no words for, NOT_FINITE for a weight that is none or is none in `dtype`, NOT_FOUND, BAD_FILE, DISK, ABORTED
 * @example
 * await convert("models/demo", "demo.gguf", { dtype: "f16" })
 */
export async function convert(folder: string, out: string, options: ConvertOptions = {}): Promise<Converted> {
  checkConvertOptions(options, folder, out)
  const { config, family } = await readConfig(folder)
  const to = options.to ?? (out.endsWith(".gguf") ? "gguf" : familyOf(config).naming)
  await using source = await openWeights(folder)
  const found = familyOfTensors({ config, family }, source.tensors, source.path)
  const tensors = await checkTensors(source, tensorsOf(found, config), found)
  const weights = new Weights(config, new Elements(source, tensors), options, out)
  const force = options.force === true
  if (to === "gguf") {
    const name = options.modelName ?? basename(resolve(folder))
    await publishFile(out, force, async () => writeGguf(out, await ggufKeys(folder, name, weights), weights.gguf()))
  } else await publishFolder(folder, out, force, (staged) => writeFolder(folder, staged, to, weights))
  return { out, to, dtype: weights.dtype, ...weights.written }
}

const ggufFileType = { f32: 0, f16: 1, bf16: 32 } as const

const kindOf = (value: unknown): string => (value === null ? "null" : typeof value)

const optionNames = ["to", "dtype", "modelName", "force", "signal", "onProgress"]

function checkConvertOptions(options: ConvertOptions, folder: string, out: string): void {
  checkOptions("convert", options, optionNames)
  for (const [name, path] of Object.entries({ model: folder, out }))
    expect(typeof path === "string" && path !== "", "BAD_OPTION", () => `convert: ${name} is a path, got ${path}`)
  const { to, dtype, modelName } = options
  expect(to === undefined || convertForms.includes(to), "BAD_OPTION", () => {
    return `convert: to is one of ${convertForms.join(", ")}, got ${to}`
  })
  expect(dtype === undefined || Object.hasOwn(fileDtype, dtype), "BAD_OPTION", () => {
    return `convert: dtype is f32, bf16 or f16, got ${dtype}`
  })
  const named = modelName === undefined || (typeof modelName === "string" && modelName !== "")
  expect(named, "BAD_OPTION", () => `convert: modelName is a text, got ${JSON.stringify(modelName)}`)
  const { force, signal, onProgress } = options
  const want = (good: boolean, name: keyof ConvertOptions, expected: string): void =>
    expect(good, "BAD_OPTION", () => `convert: ${name} is ${expected}, got ${kindOf(options[name])}`, { option: name })
  want(force === undefined || typeof force === "boolean", "force", "true or false")
  want(signal === undefined || signal instanceof AbortSignal, "signal", "an AbortSignal")
  want(onProgress === undefined || typeof onProgress === "function", "onProgress", "a function")
}

async function ggufKeys(folder: string, name: string, { config, dtype }: Weights): Promise<GgufMetadata> {
  return {
    "general.architecture": ["text", "mamba"],
    "general.type": ["text", "model"],
    "general.name": ["text", name],
    "general.file_type": ["u32", ggufFileType[dtype]],
    ...ggufMamba(config).metadata,
    ...(await ggufTokenizer(folder, config.vocab)),
  }
}

/** The config file last: nothing is a model without it. */
async function writeFolder(folder: string, staged: string, to: Naming, weights: Weights): Promise<void> {
  const { configFile } = familyOf(weights.config, to)
  const fields = modelConfigFields(weights.config, to)
  const format = { metadata: { format: "pt" } }
  await writeSafetensors(join(staged, "model.safetensors"), weights.safetensors(to), format)
  await copyTokenizer(folder, staged)
  await writeFileAtomically(join(staged, configFile), `${JSON.stringify(fields, null, 2)}\n`)
}

/** The tensors of the new files, read from the old ones when their turn comes. */
class Weights {
  readonly config: AnyConfig
  readonly dtype: keyof typeof fileDtype
  readonly #elements: Elements
  readonly #parameters: ReadonlyMap<string, Parameter>
  readonly #options: ConvertOptions
  readonly #out: string
  #tensors = 0
  #total = 0
  #done = 0

  constructor(config: AnyConfig, elements: Elements, options: ConvertOptions, out: string) {
    this.config = config
    this.#elements = elements
    this.#parameters = allParameters(familyOf(config, "selscan").network(config))
    this.#options = options
    this.#out = out
    this.dtype = options.dtype ?? this.#dtypeOfFile()
  }

  /** What has been planned and written. */
  get written(): { readonly tensors: number; readonly bytes: number } {
    return { tensors: this.#tensors, bytes: this.#done }
  }

  safetensors(to: Naming): TensorEntry[] {
    const tensors = tensorsOf(familyOf(this.config, to), this.config).filter(({ copyOf }) => copyOf === undefined)
    return tensors.map((tensor) => {
      return this.#entry(tensor, this.#parameters.get(tensor.parts[0]!.name)!.matrix === true, (values) => values)
    })
  }

  gguf(): GgufTensor[] {
    return ggufMamba(this.config).parts.map(({ name: fileName, shape, parameter = "", matrix, change }) => {
      const tensor = { fileName, shape, parts: [{ name: parameter, row: 0, fileRow: 0, rows: shape[0]! }] }
      return this.#entry(tensor, matrix, change)
    })
  }

  #entry(tensor: FileTensor, matrix: boolean, change: (values: Float32Array) => Float32Array): GgufTensor {
    const dtype = matrix ? fileDtype[this.dtype] : "F32"
    const { fileName: name, shape } = tensor
    this.#tensors += 1
    this.#total += shape.reduce((product, dim) => product * dim, dtypeSize[dtype])
    const read = async (part: Part, at: number, count: number) => {
      const { signal, onProgress } = this.#options
      expect(!signal?.aborted, "ABORTED", () => `convert: aborted at ${this.#done} of ${this.#total} bytes`)
      // A part without a name is zeros.
      const values = part.name === "" ? new Float32Array(count) : await this.#elements.read(part.name, at, count)
      const bytes = fromF32(dtype, change(values))
      checkFinite(toF32(dtype, bytes), `${this.#out}: ${name} in ${dtype}`, at)
      this.#done += bytes.length
      onProgress?.(this.#done, this.#total)
      return bytes
    }
    return { name, dtype, shape, data: () => filePieces(tensor, dtypeSize[dtype], read) }
  }

  #dtypeOfFile(): keyof typeof fileDtype {
    const matrices = [...this.#parameters].filter(([, { matrix }]) => matrix).map(([name]) => name)
    const stored = new Set(matrices.flatMap((name) => this.#elements.dtypes(name)))
    const [only] = stored
    return stored.size > 1 ? "f32" : only === "BF16" ? "bf16" : only === "F16" ? "f16" : "f32"
  }
}
