/**
 * What the memory and the processor of a device can do at most, measured by programs of ours: what speeds are held to.
 */
import { f32ToBf16 } from "../checkpoint/halves.ts"
import { expect } from "../errors.ts"
import { trace } from "../graph/program.ts"
import type { Precision } from "../graph/trace.ts"
import { scaleName, scaleShape } from "../layers/layer.ts"
import { Random } from "../layers/random.ts"
import { activationsOn, type Executable, type HostArray, type Store } from "../native.ts"
import { linear } from "../ops/linear.ts"
import { sum } from "../ops/reduce.ts"

/** One of them, to be measured as often as one likes. */
export interface Probe {
  /** What one run moves or computes: bytes, or multiplications and additions. */
  readonly amount: number
  /** Runs once, and gives the amount per second. */
  run(signal?: AbortSignal | undefined): Promise<number>
}

/** What a limit is of: reading memory, or multiplications and additions in a precision or with a weight in 8 bits. */
export type LimitName = "memory" | ProductKind

/** Bytes, or operations, per second; of 8 bits where they were asked for. */
export type Limits = Readonly<Record<Exclude<LimitName, "int8">, number> & { int8?: number }>

/** Which no last-level cache of common processors holds. */
export const defaultBlockBytes = 2 ** 29

/** Throws BAD_OPTION unless so many bytes can be the block of a reading probe. */
export function checkBlock(where: string, blockBytes: number): void {
  expect(
    blockBytes % 4 === 0 && blockBytes <= 2 ** 32,
    "BAD_OPTION",
    () => `${where}: blockBytes is a multiple of 4 up to 2³², got ${blockBytes}`,
  )
}

/**
 * Reads a block of memory once, as the weight of a linear of one row: on every device and with every instruction set that is as simple a
 * pass as a model makes, and what decoding is mostly made of. A sum reads less in the same time on processors with fast memory.
 */
export async function readingProbe(
  store: Store,
  blockBytes = defaultBlockBytes,
  signal?: AbortSignal | undefined,
): Promise<Probe> {
  const count = blockBytes / 4
  let inner = 1
  while (inner < 1024 && count % (2 * inner) === 0) inner *= 2
  const block = { name: "block", dtype: "f32", shape: [count / inner, inner] } as const
  const x = { name: "row", dtype: "f32", shape: [1, inner] } as const
  const program = trace("read", (t) => {
    const inputs = { x: t.training(x.name, x.dtype, x.shape), weight: t.weight(block.name, block.dtype, block.shape) }
    return { y: sum({ x: linear(inputs).y }).y }
  })
  const executable = await store.compile(program, { profile: true })
  await store.upload("training", x, new Float32Array(inner).fill(1))
  const piece = new Float32Array(Math.min(2 ** 20, count)).fill(1) // written: pages that were never touched are all one
  for (let at = 0; at < blockBytes; at += piece.byteLength) {
    if (signal?.aborted) break // the first run says so
    await store.upload("weight", block, piece.subarray(0, (blockBytes - at) / 4), at)
  }
  return { amount: blockBytes, run: async (signal) => blockBytes / (await linearSeconds(executable, signal)) }
}

/** Rows, in and out of a product. */
export type ProductSize = readonly [rows: number, inner: number, out: number]

/** Some milliseconds each; a GPU is not filled by less. */
export const defaultProduct = (device: string): ProductSize =>
  device.startsWith("cuda") ? [4096, 4096, 8192] : [512, 1024, 4096]

/** What products are made of: numbers of a precision, or a weight in 8 bits, which has the same products in every precision. */
export type ProductKind = Precision | "int8"

/** A large linear, timed inside its kernel: no node of a model has products that are faster. */
export async function productProbe(store: Store, kind: ProductKind, size: ProductSize): Promise<Probe> {
  const [rows, inner, out] = size
  const precision = kind === "int8" ? "f32" : kind
  const dtype = kind === "int8" ? "i8" : kind === "bf16" ? "bf16" : "f32"
  const x = { name: `x ${kind}`, dtype: activationsOn(store.device, precision), shape: [rows, inner] } as const
  const weight = { name: `weight ${kind}`, dtype, shape: [out, inner] } as const
  const scales = { name: scaleName(weight.name), dtype: "bf16", shape: scaleShape(weight.shape) } as const
  const program = trace(`product ${kind}`, (t) => {
    const inputs = {
      x: t.training(x.name, x.dtype, x.shape),
      weight: t.weight(weight.name, weight.dtype, weight.shape),
      ...(kind === "int8" && { scales: t.weight(scales.name, scales.dtype, scales.shape) }),
    }
    return { y: sum({ x: linear(inputs, { precision, dtype: "f32" }).y }).y } // one number comes back, not the product
  })
  for (const slot of kind === "int8" ? [x, weight, scales] : [x, weight])
    await store.upload(slot === x ? "training" : "weight", slot, noise(slot.dtype, slot.shape[0]! * slot.shape[1]!))
  const executable = await store.compile(program, { profile: true })
  const amount = 2 * rows * inner * out
  return { amount, run: async (signal) => amount / (await linearSeconds(executable, signal)) }
}

/** What the linear of a program takes, the way to it and back left out. */
async function linearSeconds(executable: Executable, signal: AbortSignal | undefined): Promise<number> {
  const at = executable.program.nodes.findIndex(({ op }) => op.name === "linear")
  const before = (await executable.profile())[at]!
  await executable.run({}, { signal })
  return (await executable.profile())[at]! - before
}

/** Elements that are drawn; larger tensors hold them over and over. */
const drawn = 1 << 16

/** Numbers of either sign between a half and one, whole ones of i8 up to 127: no zeros or subnormals, which some processors take longer for. */
function noise(dtype: "f32" | "bf16" | "i8", count: number): HostArray {
  const random = new Random(1)
  const floats = Float32Array.from({ length: Math.min(drawn, count) }, () => {
    const value = random.uniform()
    return value < 0.5 ? value - 1 : value
  })
  const [few, all] = {
    f32: () => [floats, new Float32Array(count)] as const,
    bf16: () => [f32ToBf16(floats), new Uint16Array(count)] as const,
    i8: () => [Int8Array.from(floats, (value) => Math.round(127 * value)), new Int8Array(count)] as const,
  }[dtype]()
  for (let at = 0; at < count; at += few.length) all.set(few.subarray(0, count - at), at)
  return all
}

/** The middle and the ends of what was measured. */
export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
  return { median, min: sorted[0]!, max: sorted.at(-1)! }
}

export interface LimitOptions {
  /** Bytes of the block that is read to measure the memory. Default 512 MB. */
  readonly blockBytes?: number
  /** Rows, in and out of the linear that measures products. Default: some milliseconds. */
  readonly product?: ProductSize
}

/** All limits of a device, measured between the rounds of what is held to them. */
export class LimitProbes {
  readonly #probes: readonly (readonly [LimitName, Probe])[]
  readonly #measured = new Map<LimitName, number[]>()

  private constructor(probes: readonly (readonly [LimitName, Probe])[]) {
    this.#probes = probes
  }

  static async open(
    store: Store,
    { blockBytes = defaultBlockBytes, product = defaultProduct(store.device) }: LimitOptions,
    kinds: readonly ProductKind[],
    signal?: AbortSignal | undefined,
  ): Promise<LimitProbes> {
    const probes: [LimitName, Probe][] = [["memory", await readingProbe(store, blockBytes, signal)]]
    for (const kind of kinds) probes.push([kind, await productProbe(store, kind, product)])
    return new LimitProbes(probes)
  }

  /** Runs each once; `kept` where the result counts. */
  async measure(signal: AbortSignal | undefined, kept: boolean): Promise<void> {
    for (const [name, probe] of this.#probes) {
      const found = await probe.run(signal)
      if (kept) this.#measured.set(name, [...(this.#measured.get(name) ?? []), found])
    }
  }

  limits(): Limits {
    const medians = [...this.#measured].map(([name, found]) => [name, spread(found).median])
    return Object.fromEntries(medians) as Limits
  }
}

/** Throws BAD_OPTION unless products can be measured by a linear of that size. */
export function checkProduct(where: string, product: ProductSize | undefined): void {
  const good =
    product === undefined ||
    (Array.isArray(product) &&
      product.length === 3 &&
      product.every((size) => Number.isSafeInteger(size) && size >= 1 && size <= 2 ** 16))
  expect(good, "BAD_OPTION", () => `${where}: product is rows, in and out of a linear, from 1 to 65536, got ${product}`)
}
