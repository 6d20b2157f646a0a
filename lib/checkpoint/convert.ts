/**
 * A model's files made into files of another form, by position: no more of the weights is in memory than a piece of a tensor, and the
 * addon is not needed.
 */
import { basename, join, resolve } from "node:path"
import { checkOptions, expect } from "../errors.ts"
import { allParameters, type Parameter } from "../layers/layer.ts"
import { groupSize } from "../ops/linear.ts"
import { writeFileAtomically } from "./atomic.ts"
import { dtypeSize, fromF32, toF32 } from "./dtypes.ts"
import { Elements } from "./elements.ts"
import { familyOf, familyOfTensors, modelConfigFields, readConfig, tensorsOf } from "./families.ts"
import { type AnyConfig, type FileTensor, type Naming, namings, type Part } from "./family.ts"
import { type GgufMetadata, type GgufTensor, writeGguf } from "./gguf.ts"
import { ggufMamba } from "./gguf-mamba.ts"
import { ggufTokenizer } from "./gguf-tokenizer.ts"
import {
  int8Entries,
  int8InFile,
  int8Names,
  matrixDtypeOf,
  otherMatrices,
  quantizationConfig,
  toQ8Blocks,
  type WideSource,
  wide,
} from "./int8.ts"
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
  /**
   * "int8": the matrices of linears, the embedding and the head in 8 bits, a scale for every 32 of a row, the other matrices in `dtype`; in
   * GGUF that is Q8_0, of rows that are a multiple of 32. Default: as the file has them where `dtype` is not given either.
   */
  readonly weights?: "int8" | undefined
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
  /** Of the matrices that are not in 8 bits; bf16 where all are. */
  readonly dtype: "f32" | "bf16" | "f16"
  /** Whether matrices are in 8 bits. */
  readonly int8: boolean
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
  const { config, family, int8 } = await readConfig(folder)
  const to = options.to ?? (out.endsWith(".gguf") ? "gguf" : familyOf(config).naming)
  await using file = await openWeights(folder)
  const source = wide(file, int8)
  const found = familyOfTensors({ config, family }, source.tensors, source.path)
  const tensors = await checkTensors(source, tensorsOf(found, config), found)
  const elements = new Elements(source, tensors)
  const parameters = allParameters(familyOf(config, "selscan").network(config))
  const asFile = options.dtype === undefined ? int8InFile(source, tensors, parameters) : new Set<string>()
  const eights = options.weights === "int8" ? int8Names(parameters) : asFile
  const dtype = options.dtype ?? dtypeOfFile(source, tensors, parameters, eights)
  const weights = new Weights({ config, parameters, eights, dtype }, elements, options, out)
  const force = options.force === true
  if (to === "gguf") {
    const name = options.modelName ?? basename(resolve(folder))
    await publishFile(out, force, async () => writeGguf(out, await ggufKeys(folder, name, weights), weights.gguf()))
  } else await publishFolder(folder, out, force, (staged) => writeFolder(folder, staged, to, weights))
  return { out, to, dtype: weights.dtype, int8: weights.int8, ...weights.written }
}

const ggufFileType = { f32: 0, f16: 1, bf16: 32, int8: 7 } as const

const kindOf = (value: unknown): string => (value === null ? "null" : typeof value)

const optionNames = ["to", "dtype", "weights", "modelName", "force", "signal", "onProgress"]

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
  const { weights } = options
  expect(weights === undefined || weights === "int8", "BAD_OPTION", () => {
    return `convert: weights is int8, got ${weights}; leave it out for those of the file`
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

async function ggufKeys(folder: string, name: string, { config, dtype, int8 }: Weights): Promise<GgufMetadata> {
  return {
    "general.architecture": ["text", "mamba"],
    "general.type": ["text", "model"],
    "general.name": ["text", name],
    "general.file_type": ["u32", ggufFileType[int8 ? "int8" : dtype]],
    ...ggufMamba(config).metadata,
    ...(await ggufTokenizer(folder, config.vocab)),
  }
}

/** The config file last: nothing is a model without it. */
async function writeFolder(folder: string, staged: string, to: Naming, weights: Weights): Promise<void> {
  const { configFile } = familyOf(weights.config, to)
  const fields = { ...modelConfigFields(weights.config, to), ...weights.quantization(to) }
  const format = { metadata: { format: "pt" } }
  await writeSafetensors(join(staged, "model.safetensors"), weights.safetensors(to), format)
  await copyTokenizer(folder, staged)
  await writeFileAtomically(join(staged, configFile), `${JSON.stringify(fields, null, 2)}\n`)
}

/** What both kinds of files can have. */
type PlainTensor = TensorEntry & { readonly dtype: "F32" | "F16" | "BF16" }

/** A model, and the names of its parameters that are written in 8 bits. */
interface Converting {
  readonly config: AnyConfig
  readonly parameters: ReadonlyMap<string, Parameter>
  readonly eights: ReadonlySet<string>
  /** Of its other matrices. */
  readonly dtype: keyof typeof fileDtype
}

/** bf16 where load() has the other matrices so, f16 where the file has all of them so. */
function dtypeOfFile(source: WideSource, ...model: Parameters<typeof otherMatrices>): keyof typeof fileDtype {
  if (matrixDtypeOf(source, ...model) === "bf16") return "bf16"
  const half = ({ fileName }: FileTensor) => source.tensors.get(fileName)!.dtype === "F16"
  return otherMatrices(...model).every(half) ? "f16" : "f32"
}

/** The tensors of the new files, read from the old ones when their turn comes. */
class Weights {
  readonly config: AnyConfig
  readonly dtype: keyof typeof fileDtype
  readonly int8: boolean
  readonly #elements: Elements
  readonly #parameters: ReadonlyMap<string, Parameter>
  readonly #eights: ReadonlySet<string>
  readonly #options: ConvertOptions
  readonly #out: string
  #tensors = 0
  #total = 0
  #done = 0

  constructor(
    { config, parameters, eights, dtype }: Converting,
    elements: Elements,
    options: ConvertOptions,
    out: string,
  ) {
    this.config = config
    this.#elements = elements
    this.#parameters = parameters
    this.#eights = eights
    this.#options = options
    this.#out = out
    this.int8 = eights.size > 0
    this.dtype = dtype
  }

  /** What has been planned and written. */
  get written(): { readonly tensors: number; readonly bytes: number } {
    return { tensors: this.#tensors, bytes: this.#done }
  }

  safetensors(to: Naming): TensorEntry[] {
    return this.#tensorsOf(to).flatMap((tensor) => {
      if (this.#inInt8(tensor)) return this.#int8(tensor)
      return [this.#entry(tensor, this.#parameters.get(tensor.parts[0]!.name)!.matrix === true, (values) => values)]
    })
  }

  /** The config's fields of weights in 8 bits. */
  quantization(to: Naming): object {
    const matrix = ({ parts }: FileTensor) => parts.some(({ name }) => this.#parameters.get(name)!.matrix)
    const others = () => this.#tensorsOf(to).filter((tensor) => matrix(tensor) && !this.#inInt8(tensor))
    return this.int8 ? quantizationConfig(others()) : {}
  }

  #tensorsOf(to: Naming): FileTensor[] {
    return tensorsOf(familyOf(this.config, to), this.config).filter(({ copyOf }) => copyOf === undefined)
  }

  #inInt8({ parts }: FileTensor): boolean {
    return parts.every(({ name }) => this.#eights.has(name))
  }

  gguf(): GgufTensor[] {
    return ggufMamba(this.config).parts.map(({ name: fileName, shape, parameter = "", matrix, change }) => {
      const tensor = { fileName, shape, parts: [{ name: parameter, row: 0, fileRow: 0, rows: shape[0]! }] }
      const eight = this.#eights.has(parameter) && shape[1]! % groupSize === 0
      return eight ? this.#q8(tensor) : this.#entry(tensor, matrix, change)
    })
  }

  /** In 8 bits, with its scales. */
  #int8(tensor: FileTensor): TensorEntry[] {
    const entries = int8Entries(tensor, async ({ name }, at, count) =>
      fromF32("F32", await this.#values(name, at, count)),
    )
    for (const { dtype, shape } of entries) this.#plan(shape.reduce((product, dim) => product * dim, dtypeSize[dtype]))
    return entries.map((entry) => ({
      ...entry,
      data: () => this.#counted(entry.data as () => AsyncIterable<Uint8Array>),
    }))
  }

  async *#counted(data: () => AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const piece of data()) {
      this.#wrote(piece)
      yield piece
    }
  }

  /** In the blocks of llama.cpp's Q8_0. */
  #q8(tensor: FileTensor): GgufTensor {
    const { fileName: name, shape } = tensor
    this.#plan((shape.reduce((product, dim) => product * dim, 1) / groupSize) * (2 + groupSize))
    const read = async (part: Part, at: number, count: number) => {
      const blocks = toQ8Blocks(await this.#values(part.name, at, count), (scales) => {
        const halves = fromF32("F16", scales)
        checkFinite(toF32("F16", halves), `${this.#out}: scales of ${name} in F16`, at / groupSize)
        return halves
      })
      return this.#wrote(blocks)
    }
    return { name, dtype: "Q8_0", shape, data: () => filePieces(tensor, 4, read) }
  }

  #plan(bytes: number): void {
    this.#tensors += 1
    this.#total += bytes
  }

  #wrote(bytes: Uint8Array): Uint8Array {
    this.#done += bytes.length
    this.#options.onProgress?.(this.#done, this.#total)
    return bytes
  }

  async #values(name: string, at: number, count: number): Promise<Float32Array> {
    expect(!this.#options.signal?.aborted, "ABORTED", () => {
      return `convert: aborted at ${this.#done} of ${this.#total} bytes`
    })
    // A part without a name is zeros.
    return name === "" ? new Float32Array(count) : await this.#elements.read(name, at, count)
  }

  #entry(tensor: FileTensor, matrix: boolean, change: (values: Float32Array) => Float32Array): PlainTensor {
    const dtype = matrix ? fileDtype[this.dtype] : "F32"
    const { fileName: name, shape } = tensor
    this.#plan(shape.reduce((product, dim) => product * dim, dtypeSize[dtype]))
    const read = async (part: Part, at: number, count: number) => {
      const bytes = fromF32(dtype, change(await this.#values(part.name, at, count)))
      checkFinite(toF32(dtype, bytes), `${this.#out}: ${name} in ${dtype}`, at)
      return this.#wrote(bytes)
    }
    return { name, dtype, shape, data: () => filePieces(tensor, dtypeSize[dtype], read) }
  }
}
