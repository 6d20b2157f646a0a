/**
 * What `ops.bench.ts` measures: every case of test/ops marked `bench`, and sizes of real models that would be too slow to
 * hold against a reference.
 */
import { adamW } from "../lib/ops/adam-w.ts"
import { causalConv } from "../lib/ops/causal-conv.ts"
import { embedding } from "../lib/ops/embedding.ts"
import { linear } from "../lib/ops/linear.ts"
import { linearCrossEntropy } from "../lib/ops/linear-cross-entropy.ts"
import { rmsNorm } from "../lib/ops/norm.ts"
import { sample } from "../lib/ops/sample.ts"
import { selectiveScan } from "../lib/ops/selective-scan.ts"
import { allSpecs } from "../test/ops/all-specs.ts"
import { bf16, ints, normal, type OpCase, type OpSpec, segmentsOf, uniform, values } from "../test/ops/spec.ts"

export type Subject = Pick<OpSpec, "op" | "differentiable"> & Pick<OpCase, "title" | "inputs" | "attrs">

async function marked(): Promise<Subject[]> {
  return (await allSpecs()).flatMap(({ op, differentiable, cases }) =>
    cases.filter((one) => one.bench).map((one) => ({ op, differentiable, ...one })),
  )
}

/** Weights of a width-256 model over bytes and of mamba-130m, on the rows of a training batch and of one decoding step. */
function larger(): Subject[] {
  const scalar = (value: number) => values("f32", [], [value])
  const product = (rows: number, inner: number, out: number, precision: "f32" | "bf16"): Subject => {
    const weight = normal([out, inner], 2, 0.05)
    const inputs = { x: normal([rows, inner], 1), weight: precision === "bf16" && rows === 1 ? bf16(weight) : weight }
    const title = `${rows} × ${inner} × ${out}, ${precision}`
    return { op: linear, differentiable: rows > 1 ? ["x", "weight"] : [], title, inputs, attrs: { precision } }
  }
  const head = (rows: number, dim: number, vocab: number, precision: "f32" | "bf16"): Subject => ({
    op: linearCrossEntropy,
    differentiable: ["x", "weight"],
    title: `${rows} rows of ${dim}, ${vocab} words, ${precision}`,
    inputs: { x: normal([rows, dim], 1), weight: normal([vocab, dim], 2, 0.05), targets: ints([rows], 3, 0, vocab) },
    attrs: { precision },
  })
  const choice = (samples: number, vocab: number, topP: number): Subject => ({
    op: sample,
    differentiable: [],
    title: `${samples} × ${vocab} words, topP ${topP}`,
    inputs: {
      logits: normal([samples, vocab], 1, 3),
      settings: values("f32", [samples, 6], Array(samples).fill([0.8, topP, 0, 1, 0, 0]).flat()),
      limits: values("i32", [samples, 5], Array(samples).fill([0, 1, 0, 0, 0]).flat()),
      position: values(
        "i32",
        [samples],
        Array.from({ length: samples }, (_, i) => i),
      ),
    },
  })
  const rows = 4096
  const inner = 512
  const eight = segmentsOf(...Array.from({ length: 8 }, (_, i) => [512 * i, 512 * (i + 1)] as const))
  return [
    ...(["f32", "bf16"] as const).flatMap((precision) => [
      product(rows, 256, 1024, precision),
      product(1, 768, 50280, precision),
      head(512, 768, 50280, precision),
    ]),
    {
      op: rmsNorm,
      differentiable: ["x", "weight", "residual"],
      title: "8192 rows of 768",
      inputs: { x: normal([8192, 768], 1), weight: uniform([768], 2), residual: normal([8192, 768], 3) },
    },
    {
      op: adamW,
      differentiable: [],
      title: "8 million weights",
      inputs: {
        param: normal([2048, 4096], 1),
        grad: normal([2048, 4096], 2, 1e-3),
        m: normal([2048, 4096], 3, 1e-3),
        v: uniform([2048, 4096], 4, 1e-8, 1e-4),
        rate: scalar(1e-4),
        step: scalar(100),
        clip: scalar(1),
      },
    },
    {
      op: embedding,
      differentiable: ["weight"],
      title: "4096 of 50280 words, 768 wide",
      inputs: { ids: ints([rows], 1, 0, 50280), weight: normal([50280, 768], 2) },
    },
    choice(1, 50280, 0.95),
    choice(64, 256, 0.95),
    {
      op: causalConv,
      differentiable: ["x", "weight", "bias"],
      title: "4096 rows of 512 channels, 8 sequences",
      inputs: {
        x: normal([rows, inner], 1),
        weight: normal([inner, 1, 4], 2),
        bias: normal([inner], 3),
        segments: eight,
      },
    },
    {
      op: selectiveScan,
      differentiable: ["x", "delta", "A", "B", "C", "D", "z", "bias"],
      title: "4096 rows of 512 channels, 8 sequences",
      inputs: {
        x: normal([rows, inner], 1),
        delta: normal([rows, inner], 2),
        A: uniform([inner, 16], 3, -4, -0.2),
        B: normal([rows, 16], 4),
        C: normal([rows, 16], 5),
        D: normal([inner], 6),
        z: normal([rows, inner], 7),
        bias: uniform([inner], 8, -2, 1),
        segments: eight,
      },
    },
  ]
}

/** In the order of their names, so that sizes of one op stand together. */
export async function subjects(): Promise<Subject[]> {
  const name = (subject: Subject) => subject.op.definition.name
  return [...(await marked()), ...larger()].sort((a, b) => name(a).localeCompare(name(b)))
}
