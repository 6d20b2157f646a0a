/**
 * Weights in 8 bits: whole numbers q in [−127, 127] and, for every 32 of a row, a scale s in bf16, so that w ≈ q·s and |w − q·s| ≤ s/2.
 *
 * s is the bf16 nearest to max|w|/127, at least 2⁻¹²⁶. That rounding moves max|w|/s off 127 by at most 2⁻⁸ of it, less than a half, so that q = 127
 * there and nothing is cut off; and rounding the numbers q·s once more gives the same q and s.
 *
 * Files have them as compressed-tensors of Hugging Face does: `x.weight` of I8 and `x.weight_scale` (rows, groups) beside it, and a
 * `quantization_config` in config.json. Scales of f32 and f16 are read too. Whoever reads such a file sees tensors of f32, the numbers q·s:
 * what is kept in 8 bits is rounded to its own grid again, which for files of this package and their like changes nothing.
 * @see https://github.com/vllm-project/compressed-tensors
 */
import { expect } from "../errors.ts"
import { type Parameter, scaleName, scaleShape } from "../layers/layer.ts"
import { groupSize, groupsOf } from "../ops/linear.ts"
import type { Fields } from "./config-fields.ts"
import { dtypeSize, toF32 } from "./dtypes.ts"
import type { FileTensor } from "./family.ts"
import type { TensorEntry } from "./safetensors-writer.ts"
import { type StoredTensor, shown, type TensorSource } from "./source.ts"
import { filePieces, type ReadElements, rowElements } from "./weights.ts"

/** Whole numbers and the bf16 bits of their scales. */
export interface Int8Rows {
  readonly q: Int8Array
  readonly scales: Uint16Array
}

const smallest = 2 ** -126
const word = new Uint32Array(1)
const float = new Float32Array(word.buffer)

/** The bits of the scale of a group whose largest magnitude is `top`. */
function scaleBits(top: number): number {
  float[0] = Math.max(top / 127, smallest)
  return (word[0]! + 0x7fff + ((word[0]! >>> 16) & 1)) >>> 16
}

/** Rounds whole rows of so many columns, or some groups of one row. */
export function toInt8(values: Float32Array, columns: number): Int8Rows {
  const width = Math.min(columns, values.length)
  const groups = groupsOf(width)
  const q = new Int8Array(values.length)
  const scales = new Uint16Array((values.length / width) * groups)
  for (let row = 0, at = 0; row < values.length; row += width)
    for (let first = row; first < row + width; first += groupSize, at++) {
      const end = Math.min(first + groupSize, row + width)
      let top = 0
      for (let i = first; i < end; i++) top = Math.max(top, Math.abs(values[i]!))
      scales[at] = scaleBits(top)
      word[0] = scales[at]! << 16
      const inverse = 1 / float[0]!
      for (let i = first; i < end; i++) q[i] = Math.round(values[i]! * inverse)
    }
  return { q, scales }
}

/** The numbers q·s of `q`, which begin at element `at` of a tensor; its scales are given from that of `scaleAt` on. */
export function fromInt8(q: Int8Array, at: number, columns: number, scales: Float32Array, scaleAt = 0): Float32Array {
  const groups = groupsOf(columns)
  const values = new Float32Array(q.length)
  for (let i = 0; i < q.length; ) {
    const [row, column] = [Math.floor((at + i) / columns), (at + i) % columns]
    const scale = scales[row * groups + Math.floor(column / groupSize) - scaleAt]!
    const end = Math.min(i + groupSize - (column % groupSize), i + columns - column, q.length)
    for (; i < end; i++) values[i] = q[i]! * scale
  }
  return values
}

/** The first scale of element `at`, and how many scales `count` elements from there on have. */
export function scalesOf(
  columns: number,
  at: number,
  count: number,
): { readonly first: number; readonly count: number } {
  const of = (i: number) => Math.floor(i / columns) * groupsOf(columns) + Math.floor((i % columns) / groupSize)
  return { first: of(at), count: of(at + count - 1) - of(at) + 1 }
}

/** A tensor of a file in 8 bits, and its scales; `read` gives its elements as bytes of f32. */
export function int8Entries(tensor: FileTensor, read: ReadElements): [TensorEntry, TensorEntry] {
  const { fileName: name, shape } = tensor
  const pieces = async function* (bytesOf: (rows: Int8Rows) => ArrayBufferView) {
    for await (const piece of filePieces(tensor, 4, read)) {
      const { buffer, byteOffset, byteLength } = bytesOf(toInt8(toF32("F32", piece), rowElements(shape)))
      yield new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength)
    }
  }
  return [
    { name, dtype: "I8", shape, data: () => pieces(({ q }) => q) },
    { name: scaleName(name), dtype: "BF16", shape: scaleShape(shape), data: () => pieces(({ scales }) => scales) },
  ]
}

/** Groups of a row in the blocks of llama.cpp's Q8_0: a scale of f16, then 32 whole numbers. Rows are whole groups. */
export function toQ8Blocks(values: Float32Array, halfBytes: (scales: Float32Array) => Uint8Array): Uint8Array {
  const { q, scales } = toInt8(values, values.length)
  const halves = halfBytes(toF32("BF16", new Uint8Array(scales.buffer)))
  const blocks = new Uint8Array(scales.length * (2 + groupSize))
  for (let i = 0, at = 0; i < scales.length; i++, at += 2 + groupSize) {
    blocks.set(halves.subarray(2 * i, 2 * i + 2), at)
    blocks.set(new Uint8Array(q.buffer, i * groupSize, groupSize), at + 2)
  }
  return blocks
}

const scheme = { num_bits: 8, type: "int", symmetric: true, strategy: "group", group_size: groupSize } as const

/** What the config file of such a folder says; `others` are its matrices that are not in 8 bits. */
export const quantizationConfig = (others: readonly FileTensor[]) => ({
  quantization_config: {
    quant_method: "compressed-tensors",
    format: "int-quantized",
    quantization_status: "compressed",
    ignore: others.map(({ fileName }) => fileName.replace(/\.weight$/, "")),
    config_groups: {
      group_0: {
        targets: ["Linear", "Embedding"],
        weights: { ...scheme, dynamic: false },
        input_activations: null,
        output_activations: null,
      },
    },
  },
})

/** Whether a config says that weights are in 8 bits as here. Throws BAD_CHECKPOINT for those that are rounded in another way. */
export function readsInt8(fields: Fields): boolean {
  const quantised = fields.optionalObject("quantization_config")
  if (quantised === undefined) return false
  const { raw } = quantised
  quantised.require(raw.quant_method === "compressed-tensors", "quant_method", "compressed-tensors")
  quantised.require(raw.format === "int-quantized", "format", "int-quantized")
  const groups = quantised.optionalObject("config_groups") ?? quantised.empty("config_groups")
  groups.require(Object.keys(groups.raw).length > 0, "group_0", "an object")
  for (const name of Object.keys(groups.raw)) {
    const group = groups.optionalObject(name) ?? groups.empty(name)
    const weights = group.optionalObject("weights") ?? group.empty("weights")
    for (const [field, value] of Object.entries(scheme))
      weights.require(weights.raw[field] === value, field, JSON.stringify(value))
    const none = (group.raw.input_activations ?? null) === null
    group.require(none, "input_activations", "none, for weights alone in 8 bits")
  }
  return true
}

/** A file's tensors with those of 8 bits as the f32 that they stand for. */
export interface WideSource extends TensorSource {
  /** Names of the tensors that are in 8 bits in the file. */
  readonly int8: ReadonlySet<string>
}

type Parameters = ReadonlyMap<string, Parameter>

/** Names of the parameters that can be kept in 8 bits. */
export const int8Names = (parameters: Parameters): Set<string> =>
  new Set([...parameters].flatMap(([name, { int8 }]) => (int8 === true ? [name] : [])))

/** Those that the file has so: every tensor with rows of theirs is in 8 bits. */
export function int8InFile(file: WideSource, tensors: readonly FileTensor[], parameters: Parameters): Set<string> {
  const kept = int8Names(parameters)
  for (const { fileName, parts } of tensors) {
    if (!file.int8.has(fileName)) for (const { name } of parts) kept.delete(name)
  }
  return kept
}

/** Tensors of matrices that stay as they are where only the parameters of `kept` are in 8 bits. */
export const otherMatrices = (
  tensors: readonly FileTensor[],
  parameters: Parameters,
  kept: ReadonlySet<string>,
): FileTensor[] =>
  tensors.filter(
    ({ parts }) => parts.some(({ name }) => parameters.get(name)!.matrix) && !parts.every(({ name }) => kept.has(name)),
  )

/**
 * What those are in memory: bf16 where all of the file's are, or are in 8 bits. A file that has the same in 8 bits already says the same of
 * the others, so that no model changes by being written.
 */
export function matrixDtypeOf(
  file: WideSource,
  tensors: readonly FileTensor[],
  parameters: Parameters,
  kept: ReadonlySet<string>,
): "f32" | "bf16" {
  const halves = ({ fileName }: FileTensor) => {
    return file.int8.has(fileName) || file.tensors.get(fileName)!.dtype === "BF16"
  }
  return otherMatrices(tensors, parameters, kept).every(halves) ? "bf16" : "f32"
}

const scaleDtypes: readonly string[] = ["BF16", "F16", "F32"]

/**
 * The tensors of a file whose config says `int8`, or of any other as they are.
 * @throws SelscanError BAD_CHECKPOINT for a tensor of I8 without its scales, or with scales of another shape or dtype
 */
export const wide = (source: TensorSource, int8 = false): WideSource => new Widened(source, int8)

class Widened implements WideSource {
  readonly path: string
  readonly tensors: ReadonlyMap<string, StoredTensor>
  readonly int8: ReadonlySet<string>
  readonly #source: TensorSource

  constructor(source: TensorSource, int8: boolean) {
    this.#source = source
    this.path = source.path
    const eights = [...source.tensors.values()].filter(({ dtype }) => int8 && dtype === "I8")
    const scales = new Set(eights.map((tensor) => this.#checkedScales(tensor)))
    this.int8 = new Set(eights.map(({ name }) => name))
    const seen = [...source.tensors].filter(([name]) => !scales.has(name))
    this.tensors = new Map(
      seen.map(([name, tensor]) => {
        return [name, this.int8.has(name) ? { ...tensor, dtype: "F32", sizeBytes: 4 * tensor.sizeBytes } : tensor]
      }),
    )
  }

  /** The name of a tensor's scales. */
  #checkedScales({ name, shape }: StoredTensor): string {
    const scales = this.#source.tensors.get(scaleName(name))
    const where = `${this.path}: ${shown(name)}`
    expect(
      shape.length === 2,
      "BAD_CHECKPOINT",
      () => `${where}: expected a matrix in 8 bits, got [${shape}]; get the file again`,
    )
    const wanted = scaleShape(shape)
    expect(
      scales !== undefined && `${scales.shape}` === `${wanted}` && scaleDtypes.includes(scales.dtype),
      "BAD_CHECKPOINT",
      () => {
        const got = scales ? `${scales.dtype} [${scales.shape}]` : "none"
        return `${where}: expected scales of ${scaleDtypes.join(", ")} [${wanted}], got ${got}; get the file again`
      },
      { tensor: name },
    )
    return scales.name
  }

  async readInto(name: string, target: Uint8Array, from = 0): Promise<void> {
    if (!this.int8.has(name)) return await this.#source.readInto(name, target, from)
    const [at, count] = [from / 4, target.length / 4]
    if (count === 0) return
    const columns = this.tensors.get(name)!.shape[1]!
    const q = new Int8Array(count)
    await this.#source.readInto(name, new Uint8Array(q.buffer), at)
    const scales = this.#source.tensors.get(scaleName(name))!
    const of = scalesOf(columns, at, count)
    const size = dtypeSize[scales.dtype]
    const bytes = new Uint8Array(of.count * size)
    await this.#source.readInto(scales.name, bytes, of.first * size)
    const values = fromInt8(q, at, columns, toF32(scales.dtype, bytes), of.first)
    target.set(new Uint8Array(values.buffer))
  }

  same(name: string, other: string): boolean {
    const one = (a: string, b: string) => this.#source.same?.(a, b) === true
    if (!one(name, other) || this.int8.has(name) !== this.int8.has(other)) return false
    return !this.int8.has(name) || one(scaleName(name), scaleName(other))
  }

  close(): Promise<void> {
    return this.#source.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}
