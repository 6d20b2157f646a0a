import { linearCrossEntropy, linearCrossEntropyGrad } from "../../lib/ops/linear-cross-entropy.ts"
import { device } from "../device.ts"
import { eightBits, precisions, rounded8, roundingOf, scaled, splitRounding } from "./linear.ts"
import { bf16, ints, normal, type OpSpec, type Tensor64, values } from "./spec.ts"

interface LossInputs {
  x: Tensor64
  weight: Tensor64
  bias?: Tensor64
  scales?: Tensor64
  targets: Tensor64
  dlosses?: Tensor64
  logsumexp?: Tensor64
}
interface LossAttrs {
  ignore: number
  smoothing: number
  precision: string
}

const rounded = (tensor: Tensor64, precision: string): Float64Array =>
  precision === "bf16" ? bf16(tensor).data : tensor.data

/** Per row: the logits and the logarithm of the sum of their exponentials. */
function logitsOf({ x, weight, bias, scales }: LossInputs, { precision }: LossAttrs) {
  const [dim, vocab] = [x.shape[1]!, weight.shape[0]!]
  const left = scales ? rounded8(x) : rounded(x, precision)
  const right = scales ? scaled(weight, scales) : rounded(weight, precision)
  return Array.from({ length: x.shape[0]! }, (_, row) => {
    const logits = Float64Array.from({ length: vocab }, (_, v) => {
      let sum = bias?.data[v] ?? 0
      for (let k = 0; k < dim; k++) sum += left[row * dim + k]! * right[v * dim + k]!
      return sum
    })
    const greatest = logits.reduce((a, b) => Math.max(a, b))
    return {
      logits,
      logsumexp: greatest + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - greatest), 0)),
    }
  })
}

function reference(inputs: LossInputs, attrs: LossAttrs) {
  const { ignore, smoothing } = attrs
  const rows = logitsOf(inputs, attrs)
  const losses = rows.map(({ logits, logsumexp }, row) => {
    const target = inputs.targets.data[row]!
    if (target === ignore) return 0
    const mean = logits.reduce((sum, logit) => sum + logsumexp - logit, 0) / logits.length
    return (1 - smoothing) * (logsumexp - logits[target]!) + smoothing * mean
  })
  return { losses: Float64Array.from(losses), logsumexp: Float64Array.from(rows.map((row) => row.logsumexp)) }
}

/** The gradient's equation for the logsumexp that is given, with dl rounded for its products as the kernel does. */
function gradientReference(inputs: LossInputs, attrs: LossAttrs) {
  const { x, weight, targets, dlosses } = inputs
  const [dim, vocab] = [x.shape[1]!, weight.shape[0]!]
  const dx = new Float64Array(x.data.length)
  const dweight = new Float64Array(weight.data.length)
  const dbias = new Float64Array(vocab)
  const [left, right] = [rounded(x, attrs.precision), rounded(weight, attrs.precision)]
  logitsOf(inputs, attrs).forEach(({ logits }, row) => {
    const [target, logsumexp] = [targets.data[row]!, inputs.logsumexp!.data[row]!]
    if (target === attrs.ignore) return
    const dlogits = logits.map(
      (logit, v) =>
        dlosses!.data[row]! *
        (Math.exp(logit - logsumexp) - attrs.smoothing / vocab - (v === target ? 1 - attrs.smoothing : 0)),
    )
    rounded({ dtype: "f32", shape: [vocab], data: dlogits }, attrs.precision).forEach((d, v) => {
      dbias[v]! += d
      for (let k = 0; k < dim; k++) {
        dx[row * dim + k]! += d * right[v * dim + k]!
        dweight[v * dim + k]! += d * left[row * dim + k]!
      }
    })
  })
  return { dx, dweight, ...(inputs.bias && { dbias }) }
}

/** Targets with an ignored row among them. */
function sized(rows: number, dim: number, vocab: number, scale = 1) {
  const targets = ints([rows], 3, 0, vocab)
  return {
    x: normal([rows, dim], 1),
    weight: normal([vocab, dim], 2, scale / Math.sqrt(dim)),
    targets: values(
      "i32",
      [rows],
      targets.data.map((target, row) => (row % 7 === 4 ? -100 : target)),
    ),
  }
}

/** Whole numbers: their logits are exact in f32, and with one word the gradient is exactly 0. */
const whole = (shape: readonly number[], seed: number): Tensor64 => ({ ...ints(shape, seed, -3, 4), dtype: "f32" })

// Around a row block (96 on the cpu), a chunk of the forward pass (256 words there, 4096 on CUDA) and a piece of the gradient
// (1024 words and 2048 rows; 4096 words and 8192 rows).
const cases = [
  { title: "one row, two words", inputs: sized(1, 3, 2) },
  { title: "one word", inputs: { ...sized(3, 5, 1), x: whole([3, 5], 1), weight: whole([1, 5], 2) } },
  { title: "7 rows, 17 words", inputs: sized(7, 33, 17) },
  { title: "95 rows, bytes", inputs: sized(95, 20, 256) },
  { title: "97 rows, 257 words", inputs: sized(97, 16, 257) },
  { title: "1025 words", inputs: sized(11, 8, 1025) },
  { title: "1367 words, smoothing", inputs: sized(13, 8, 1367), attrs: { smoothing: 0.1 } },
  { title: "smoothing 1", inputs: sized(6, 12, 40), attrs: { smoothing: 1 } },
  {
    title: "another ignored id",
    inputs: { ...sized(9, 12, 40), targets: values("i32", [9], [0, 1, 2, 0, 4, 39, 0, 7, 8]) },
    attrs: { ignore: 0 },
  },
  { title: "logits in the hundreds", inputs: sized(10, 24, 300, 100) },
  { title: "2051 rows", inputs: sized(2051, 4, 6) },
  { title: "4099 words", inputs: sized(3, 5, 4099), attrs: { smoothing: 0.2 } },
  ...[
    [5, 9, 17],
    [131, 4, 256],
    [300, 3, 1031],
  ].map(([rows, dim, vocab]) => ({
    title: `${rows} rows, ${vocab} words with a bias`,
    inputs: { ...sized(rows!, dim!, vocab!), bias: normal([vocab!], 9) },
  })),
  {
    title: "4099 words with a bias, smoothing",
    inputs: { ...sized(3, 5, 4099), bias: normal([4099], 9) },
    attrs: { smoothing: 0.2 },
  },
]

// The gradient makes the logits again, and two products more.
const work = ({ x, weight }: LossInputs) => x.data.length * weight.shape[0]!

export const specs: OpSpec[] = [
  {
    op: linearCrossEntropy,
    reference,
    work,
    differentiable: ["x", "weight", "bias"],
    cases: [
      ...cases.map((one) => (one.title.startsWith("logits") ? { ...one, rtol: 2e-5 } : one)), // losses of 300 from sums of ±1000
      { title: "bf16 weight", inputs: { ...sized(8, 30, 50), weight: bf16(normal([50, 30], 5)) } },
      { title: "16384 bytes", inputs: sized(16384, 384, 256), slow: true, bench: true },
    ],
  },
  {
    op: linearCrossEntropy,
    reference,
    work,
    differentiable: [],
    cases: cases.map((one) => ({ ...one, title: `bf16: ${one.title}`, attrs: { ...one.attrs, precision: "bf16" } })),
  },
  {
    op: linearCrossEntropy,
    reference,
    work,
    differentiable: ["x", "weight", "bias"],
    cases: cases
      .map((one) => ({
        ...one,
        title: `bf16x3: ${one.title}`,
        attrs: { ...one.attrs, precision: "bf16x3" },
        ...roundingOf("bf16x3"),
      }))
      .filter(() => device === "cpu"),
  },
  {
    op: linearCrossEntropy,
    reference,
    work,
    differentiable: [],
    cases: [
      { title: "8 bits, one row", inputs: { ...sized(1, 33, 19), ...eightBits(19, 33) } },
      { title: "8 bits, 97 rows, 257 words", inputs: { ...sized(97, 64, 257), ...eightBits(257, 64) } },
      {
        title: "8 bits, 1031 words with a bias, smoothing",
        inputs: { ...sized(13, 31, 1031), ...eightBits(1031, 31), bias: normal([1031], 9) },
        attrs: { smoothing: 0.1 },
      },
    ].filter(() => device === "cpu"),
  },
  ...precisions.map(
    (precision): OpSpec => ({
      op: linearCrossEntropyGrad,
      reference: gradientReference,
      work: (inputs) => 3 * work(inputs),
      differentiable: [],
      cases: [...cases, { title: "8195 rows", inputs: sized(8195, 3, 3), attrs: {} }].map((one) => {
        const attrs = { ignore: -100, smoothing: 0, ...one.attrs, precision }
        return {
          title: `${precision}: ${one.title}`,
          inputs: {
            ...one.inputs,
            dlosses: normal(one.inputs.targets.shape, 8),
            logsumexp: values("f32", one.inputs.targets.shape, reference(one.inputs, attrs).logsumexp),
          },
          attrs,
          // dl is rounded to bf16 from an f32 that may fall on the other side of a tie than the reference: 2⁻⁹ of one term.
          // Logits of ±1000 are off by some 1e-4 in f32, by hundredths in bf16x3, and so are relatively their exponentials.
          rtol: {
            bf16: 2e-3,
            bf16x3: one.title.startsWith("logits") ? 1e-3 : 4 * splitRounding,
            f32: one.title.startsWith("logits") ? 1e-4 : 2e-5,
          }[precision]!,
        }
      }),
    }),
  ),
]
