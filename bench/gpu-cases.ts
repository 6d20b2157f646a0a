/**
 * What `gpu.ts` measures of single ops, most wanted first: the time may run out.
 */
import { adamW } from "../lib/ops/adam-w.ts"
import { ringCapacity, slidingAttention } from "../lib/ops/attention.ts"
import { causalConv } from "../lib/ops/causal-conv.ts"
import { embedding } from "../lib/ops/embedding.ts"
import { linear } from "../lib/ops/linear.ts"
import { linearCrossEntropy } from "../lib/ops/linear-cross-entropy.ts"
import { rmsNorm } from "../lib/ops/norm.ts"
import { selectiveScan } from "../lib/ops/selective-scan.ts"
import type { Given, GpuCase } from "./gpu-device.ts"

type Precision = "f32" | "bf16"
type Pass = GpuCase["pass"]

const state = 16

/** One sequence over all rows. */
const oneSegment = (rows: number): Given => ({ dtype: "i32", shape: [1, 5], data: Int32Array.of(0, rows, 0, 0, 0) })

const ids = (rows: number, vocab: number): Given => ({
  dtype: "i32",
  shape: [rows],
  data: Int32Array.from({ length: rows }, (_, i) => (i * 7919 + 13) % vocab),
})

const shown = (rows: number) => (rows >= 1024 && rows % 1024 === 0 ? `${rows / 1024}K` : `${rows}`)

export function scanCase(pass: Pass, dtype: Precision, inner: number, rows: number): GpuCase {
  const wide: Given = { dtype, shape: [rows, inner] }
  const bands: Given = { dtype, shape: [rows, state] }
  return {
    op: selectiveScan,
    title: `D ${inner}, L ${shown(rows)}, state ${state}`,
    pass,
    dtype,
    inputs: {
      x: wide,
      delta: wide,
      A: { dtype: "f32", shape: [inner, state], fill: "negative" },
      B: bands,
      C: bands,
      D: { dtype: "f32", shape: [inner] },
      z: wide,
      bias: { dtype: "f32", shape: [inner] },
      segments: oneSegment(rows),
    },
    differentiable: ["x", "delta", "A", "B", "C", "D", "z", "bias"],
    // One for every state; softplus and the gate take two each, in the gradient one more each.
    exponentials: rows * inner * (pass === "forward" ? state + 4 : state + 6),
  }
}

export function linearCase(dtype: Precision, rows: number, inner: number, out: number): GpuCase {
  return {
    op: linear,
    title: `${rows} × ${inner} × ${out}`,
    pass: "forward",
    dtype,
    inputs: { x: { dtype, shape: [rows, inner] }, weight: { dtype, shape: [out, inner], fill: "small" } },
    attrs: { precision: dtype },
    operations: 2 * rows * inner * out,
  }
}

function convCase(pass: Pass, dtype: Precision, inner: number, rows: number): GpuCase {
  return {
    op: causalConv,
    title: `D ${inner}, L ${shown(rows)}, width 4`,
    pass,
    dtype,
    inputs: {
      x: { dtype, shape: [rows, inner] },
      weight: { dtype: "f32", shape: [inner, 1, 4] },
      bias: { dtype: "f32", shape: [inner] },
      segments: oneSegment(rows),
    },
    differentiable: ["x", "weight", "bias"],
  }
}

interface Heads {
  heads: number
  kvHeads: number
  headDim: number
  window: number
}

const headWords = ({ heads, kvHeads, headDim, window }: Heads) =>
  `${heads} heads of ${headDim} on ${kvHeads}, window ${shown(window)}`

/** One sequence from its start. */
function attentionCase(pass: Pass, dtype: Precision, rows: number, sizes: Heads): GpuCase {
  const { heads, kvHeads, headDim, window } = sizes
  const pairs = heads * Array.from({ length: rows }, (_, i) => Math.min(i + 1, window)).reduce((a, b) => a + b, 0)
  return {
    op: slidingAttention,
    title: `${shown(rows)} rows, ${headWords(sizes)}`,
    pass,
    dtype,
    inputs: {
      qkv: { dtype, shape: [rows, (heads + 2 * kvHeads) * headDim] },
      segments: oneSegment(rows),
    },
    attrs: { ...sizes, precision: dtype },
    differentiable: ["qkv"],
    exponentials: pairs,
    // Two products forward; the gradient makes the scores again, and four more. In f32 tensor cores have no part in it.
    ...(dtype === "bf16" && { operations: (pass === "forward" ? 4 : 10) * pairs * headDim }),
  }
}

/** A row of each of `batch` sequences, far beyond its window: the rings are nearly all of the bytes. */
function decodeCase(dtype: Precision, batch: number, sizes: Heads): GpuCase {
  const { heads, kvHeads, headDim, window } = sizes
  const ring: Given = { dtype, shape: [batch + 1, kvHeads, ringCapacity(window, 1), headDim] }
  const lines = Array.from({ length: batch }, (_, s) => [s, s + 1, 9000 + 17 * s, 0, 0])
  return {
    op: slidingAttention,
    title: `decoding ${batch}, ${headWords(sizes)}`,
    pass: "forward",
    dtype,
    inputs: {
      qkv: { dtype, shape: [batch, (heads + 2 * kvHeads) * headDim] },
      segments: { dtype: "i32", shape: [batch, 5], data: Int32Array.from(lines.flat()) },
      rings: { dtype: "i32", shape: [batch], data: Int32Array.from({ length: batch }, (_, s) => s + 1) },
      keys: ring,
      values: ring,
    },
    attrs: { ...sizes, precision: dtype },
    exponentials: batch * heads * window,
  }
}

function normCase(pass: Pass, dtype: Precision, dim: number, rows: number): GpuCase {
  return {
    op: rmsNorm,
    title: `${rows} rows of ${dim}, residual added`,
    pass,
    dtype,
    inputs: {
      x: { dtype, shape: [rows, dim] },
      weight: { dtype: "f32", shape: [dim] },
      residual: { dtype: "f32", shape: [rows, dim] },
    },
    differentiable: ["x", "weight", "residual"],
  }
}

function headCase(pass: Pass, dtype: Precision, rows: number, dim: number, vocab: number): GpuCase {
  return {
    op: linearCrossEntropy,
    title: `${rows} rows of ${dim}, ${vocab} words`,
    pass,
    dtype,
    inputs: {
      x: { dtype, shape: [rows, dim] },
      weight: { dtype, shape: [vocab, dim], fill: "small" },
      targets: ids(rows, vocab),
    },
    attrs: { precision: dtype },
    differentiable: dtype === "f32" ? ["x", "weight"] : ["x"],
    exponentials: rows * vocab,
    operations: (pass === "forward" ? 2 : dtype === "f32" ? 6 : 4) * rows * dim * vocab,
  }
}

function tableCase(pass: Pass, rows: number, vocab: number, dim: number): GpuCase {
  return {
    op: embedding,
    title: `${rows} of ${vocab} words, ${dim} wide`,
    pass,
    dtype: "f32",
    inputs: { ids: ids(rows, vocab), weight: { dtype: "f32", shape: [vocab, dim] } },
    differentiable: ["weight"],
  }
}

function adamCase(elements: number): GpuCase {
  const all = (fill: "normal" | "small" | "positive"): Given => ({ dtype: "f32", shape: [elements], fill })
  const scalar: Given = { dtype: "f32", shape: [], fill: "positive" }
  return {
    op: adamW,
    title: `${elements} weights`,
    pass: "forward",
    dtype: "f32",
    inputs: {
      param: all("normal"),
      grad: all("small"),
      m: all("small"),
      v: all("positive"),
      rate: scalar,
      step: scalar,
      clip: scalar,
    },
  }
}

/** Products of the layers of mamba-790m and mamba-2.8b on 4096 rows: in, x, dt and out. */
function layerCases(): GpuCase[] {
  const sizes = [
    [1536, 6144],
    [3072, 1536],
    [2560, 10240],
    [5120, 192],
    [160, 5120],
    [5120, 2560],
  ] as const
  return sizes.map(([inner, out]) => linearCase("bf16", 4096, inner, out))
}

/** Shapes for the emulator, which takes a millisecond where a GPU takes a nanosecond. */
function tinyCases(): GpuCase[] {
  return (["bf16", "f32"] as const).flatMap((dtype) => [
    scanCase("forward", dtype, 32, 40),
    scanCase("backward", dtype, 32, 40),
    convCase("forward", dtype, 32, 40),
    convCase("backward", dtype, 32, 40),
    normCase("forward", dtype, 64, 8),
    normCase("backward", dtype, 64, 8),
    linearCase(dtype, 16, 32, 32),
    attentionCase("forward", dtype, 40, { heads: 4, kvHeads: 2, headDim: 16, window: 20 }),
    attentionCase("backward", dtype, 40, { heads: 4, kvHeads: 2, headDim: 16, window: 20 }),
    decodeCase(dtype, 2, { heads: 4, kvHeads: 2, headDim: 16, window: 20 }),
    headCase("forward", dtype, 8, 32, 64),
    headCase("backward", dtype, 8, 32, 64),
    ...(dtype === "f32" ? [tableCase("forward", 8, 16, 32), tableCase("backward", 8, 16, 32), adamCase(256)] : []),
  ])
}

/** `quick`: the sizes that the targets name. */
export function gpuCases(size: "tiny" | "quick" | "full"): GpuCase[] {
  if (size === "tiny") return tinyCases()
  const targets = [
    scanCase("forward", "bf16", 5120, 8192),
    scanCase("backward", "bf16", 5120, 8192),
    linearCase("bf16", 4096, 4096, 4096),
  ]
  if (size === "quick")
    return [...targets, scanCase("forward", "bf16", 5120, 65536), convCase("forward", "bf16", 5120, 8192)]
  const lengths = [1024, 4096, 16384, 65536]
  const grouped = { heads: 12, kvHeads: 4, headDim: 128, window: 2048 }
  const narrow = { heads: 16, kvHeads: 16, headDim: 64, window: 2048 }
  return [
    ...targets,
    ...(["forward", "backward"] as const).flatMap((pass) => [
      scanCase(pass, "f32", 5120, 8192),
      convCase(pass, "bf16", 5120, 8192),
      normCase(pass, "bf16", 2560, 8192),
      headCase(pass, "bf16", 4096, 768, 50280),
      tableCase(pass, 8192, 50280, 768),
      attentionCase(pass, "bf16", 8192, grouped),
      attentionCase(pass, "bf16", 8192, narrow),
      attentionCase(pass, "f32", 2048, grouped),
    ]),
    ...[1, 16, 64].map((batch) => decodeCase("bf16", batch, grouped)),
    decodeCase("f32", 16, grouped),
    attentionCase("forward", "bf16", 2048, { heads: 8, kvHeads: 8, headDim: 256, window: 2048 }),
    ...layerCases(),
    ...[1, 2, 4, 8, 16].map((rows) => linearCase("bf16", rows, 2560, 10240)),
    linearCase("bf16", 1, 768, 50280),
    linearCase("f32", 1024, 2048, 2048),
    adamCase(32 << 20),
    ...[5120, 2048, 1536].flatMap((inner) => lengths.map((rows) => scanCase("forward", "bf16", inner, rows))),
    ...[2048, 1536].flatMap((inner) => [1024, 8192].map((rows) => scanCase("backward", "bf16", inner, rows))),
    scanCase("forward", "bf16", 1536, 1 << 20),
  ]
}
