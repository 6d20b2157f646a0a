/**
 * Sliding-window attention: decoding from rings that no cache holds, a prompt, and training with its linears.
 */
import { f32ToBf16 } from "../lib/checkpoint/halves.ts"
import { gradients } from "../lib/graph/gradient.ts"
import { type Program, trace } from "../lib/graph/program.ts"
import type { Trace } from "../lib/graph/trace.ts"
import { type HostArray, Store } from "../lib/native.ts"
import { ringCapacity, slidingAttention } from "../lib/ops/attention.ts"
import { arithmetic } from "../lib/ops/cast.ts"
import { linear } from "../lib/ops/linear.ts"
import { random } from "../test/ops/spec.ts"
import { type Measurement, type Outcome, type Statistics, statistics } from "./measure.ts"
import { type Limits, limits, shareOf } from "./native.ts"

export const summary = "attention: decoding at window 2048, prompts beside a linear, training beside its linears"

type Precision = "f32" | "bf16"
type Inputs = Record<string, HostArray>

/** Uniform in [−1, 1). */
function noise(length: number, seed: number): Float32Array {
  const next = random(seed)
  return Float32Array.from({ length }, () => 2 * next() - 1)
}

/** Milliseconds in every kind of node, run by run; the first runs warm caches. */
async function perOp(
  store: Store,
  program: Program,
  inputs: (run: number) => Inputs,
  runs: number,
): Promise<Map<string, Statistics>> {
  const executable = await store.compile(program)
  const samples = new Map<string, number[]>()
  let before = await executable.profile()
  for (let run = -2; run < runs; run++) {
    await executable.run(inputs(run + 2))
    const after = await executable.profile()
    const now = new Map<string, number>()
    program.nodes.forEach(({ op }, i) => {
      now.set(op.name, (now.get(op.name) ?? 0) + (after[i]! - before[i]!) * 1e3)
    })
    if (run >= 0) for (const [name, value] of now) samples.set(name, [...(samples.get(name) ?? []), value])
    before = after
  }
  return new Map([...samples].map(([name, values]) => [name, statistics(values)]))
}

/** One segment at a position that fills the window, its keys before in the ring named `rings`. */
function attention(
  tr: Trace,
  rows: number,
  heads: readonly [number, number],
  headDim: number,
  window: number,
  rings: number,
) {
  const capacity = ringCapacity(window, rows)
  const ring = (name: string) => tr.state(name, tr.factorDtype, [rings + 1, heads[1], capacity, headDim])
  const inputs = {
    qkv: tr.input("qkv", "f32", [rows, (heads[0] + 2 * heads[1]) * headDim]),
    segments: tr.input("segments", "i32", [1, 5]),
    rings: tr.input("rings", "i32", [1]),
    keys: ring("keys"),
    values: ring("values"),
  }
  const [all, kvHeads] = heads
  return slidingAttention(inputs, { heads: all, kvHeads, headDim, window, precision: tr.precision }).y
}

/** Fills both rings of every slot, one slot's worth of noise for all. */
async function fillRings(store: Store, program: Program): Promise<void> {
  for (const slot of program.stored("state")) {
    const size = slot.shape.slice(1).reduce((a, b) => a * b, 1)
    const floats = noise(size, 7)
    const bytes = slot.dtype === "bf16" ? f32ToBf16(floats) : floats
    for (let ring = 0; ring < slot.shape[0]!; ring++) await store.upload("state", slot, bytes, ring * bytes.byteLength)
  }
}

const window = 2048
const [kvHeads, headDim] = [8, 128]
const bytesTarget = 0.6

/** One token after another, every one from another ring. */
async function decoding(precision: Precision, heads: number): Promise<{ result: Measurement; share: number }> {
  await using store = new Store("cpu")
  // 16 MB of f32 each: more than 256 MB in all, several times a large last-level cache.
  const rings = precision === "f32" ? 16 : 32
  const program = trace("decode", (tr) => ({ y: attention(tr, 1, [heads, kvHeads], headDim, window, rings) }), {
    precision,
  })
  await fillRings(store, program)
  const qkv = noise((heads + 2 * kvHeads) * headDim, 1)
  const inputs = (run: number) => ({
    qkv,
    segments: Int32Array.of(0, 1, 2 * window + 17, 0, 0),
    rings: Int32Array.of(1 + (run % rings)),
  })
  const beside: Limits[] = [limits()]
  const taken = (await perOp(store, program, inputs, 6 * rings)).get("slidingAttention")!
  beside.push(limits())
  const readGBps = Math.max(...beside.map((one) => one.readGBps))
  const bytes = 2 * window * kvHeads * headDim * (precision === "f32" ? 4 : 2)
  const { rate, share } = shareOf({ ...beside[0]!, readGBps }, { milliseconds: taken.median, bytes })
  const shape = `decode, window ${window}, ${heads} heads on ${kvHeads} of ${headDim}, ${precision}`
  return { result: { shape, unit: "ms", ...taken, bytes, rate, share }, share: share.value }
}

/** 512 rows whose windows are full, and a linear of a usual size in the same program. */
async function prompt(precision: Precision, window: number): Promise<Measurement[]> {
  await using store = new Store("cpu")
  const [rows, heads, width] = [512, 16, 1024]
  const program = trace(
    "prompt",
    (tr) => ({
      y: attention(tr, rows, [heads, 4], 64, window, 1),
      product: linear({ x: tr.input("x", "f32", [rows, width]), weight: tr.weight("w", "f32", [width, width]) }).y,
    }),
    { precision },
  )
  await fillRings(store, program)
  await store.upload("weight", { name: "w", dtype: "f32", shape: [width, width] }, noise(width * width, 2))
  const fixed = {
    qkv: noise(rows * (heads + 8) * 64, 1),
    x: noise(rows * width, 3),
    segments: Int32Array.of(0, rows, 2 * window, 0, 0),
    rings: Int32Array.of(1),
  }
  const taken = await perOp(store, program, () => fixed, 9)
  const speed = (name: string, operations: number): Measurement => {
    const { median, min, max } = taken.get(name)!
    const of = (milliseconds: number) => operations / milliseconds / 1e6
    return { shape: "", unit: "GFLOP/s", median: of(median), min: of(max), max: of(min), operations }
  }
  const own = speed("slidingAttention", 4 * rows * window * heads * 64)
  const beside = speed("linear", 2 * rows * width * width)
  const shape = `512 rows, window ${window}, 16 heads on 4 of 64, ${precision}`
  return [
    {
      ...own,
      shape,
      share: { value: own.median / beside.median, of: `${Math.round(beside.median)} GFLOP/s, linear f32` },
    },
  ]
}

/** Forward and backward of 16 × 512 rows of an attention layer 256 wide: attention over its two linears. */
async function training(heads: number, window: number): Promise<Measurement> {
  await using store = new Store("cpu")
  const [batch, length, dim] = [16, 512, 256]
  const rows = batch * length
  const program = trace("train", (tr) => {
    const x = tr.input("x", "f32", [rows, dim])
    const [into, out] = [tr.weight("in", "f32", [3 * dim, dim]), tr.weight("out", "f32", [dim, dim])]
    const qkv = linear({ x, weight: into }).y
    const segments = tr.input("segments", "i32", [batch, 5])
    const attrs = { heads, kvHeads: heads, headDim: dim / heads, window }
    const { y } = linear({ x: slidingAttention({ qkv, segments }, attrs).y, weight: out })
    const [dx, dInto, dOut] = gradients([[y, tr.input("dy", "f32", y.shape)]], [x, into, out], arithmetic)
    return { dx: dx!, dInto: dInto!, dOut: dOut! }
  })
  for (const slot of program.stored("weight")) await store.upload("weight", slot, noise(slot.sizeBytes / 4, 2))
  const lines = Array.from({ length: batch }, (_, b) => [b * length, (b + 1) * length, 0, 0, 0])
  const inputs = { x: noise(rows * dim, 1), dy: noise(rows * dim, 3), segments: Int32Array.from(lines.flat()) }
  const taken = await perOp(store, program, () => inputs, 7)
  const all = (of: (name: string) => boolean) =>
    [...taken].reduce((total, [name, { median }]) => (of(name) ? total + median : total), 0)
  const [own, linears] = [all((name) => name.startsWith("sliding")), all((name) => name.startsWith("linear"))]
  const backward = taken.get("slidingAttentionGrad")!.median
  const shape = `training 16 × 512, ${heads} heads of ${dim / heads}, window ${window}: attention`
  return {
    shape,
    unit: "ms",
    median: own,
    min: own,
    max: own,
    rate: { value: backward / (own - backward), unit: "backward over forward" },
    share: { value: own / linears, of: `${linears.toFixed(1)} ms, its linears` },
  }
}

export async function run(): Promise<Outcome> {
  const results: Measurement[] = []
  const notes: string[] = []
  for (const [precision, heads] of [
    ["f32", 8],
    ["f32", 32],
    ["bf16", 8],
    ["bf16", 32],
  ] as const) {
    const { result, share } = await decoding(precision, heads)
    results.push(result)
    const verdict = share >= bytesTarget ? "met" : "missed"
    notes.push(
      `target at least ${bytesTarget * 100}% of read bandwidth: ${verdict}, ${(share * 100).toFixed(0)}%, ${result.shape}`,
    )
  }
  for (const precision of ["f32", "bf16"] as const) {
    for (const window of [512, 1024, 2048]) results.push(...(await prompt(precision, window)))
  }
  for (const [heads, window] of [
    [4, 256],
    [8, 256],
    [4, 128],
    [8, 128],
  ] as const)
    results.push(await training(heads, window))
  return { results, notes }
}
