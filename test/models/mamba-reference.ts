/** Mamba in f64, equation by equation and token by token: with either norm, a head of its own or the embedding, and norms in its mixers or none. */
import type { MambaBlock, ModelConfig } from "../../lib/models/config.ts"

type Weights = ReadonlyMap<string, Float32Array>

const sum = (values: readonly number[]) => values.reduce((all, value) => all + value, 0)
const silu = (x: number) => x / (1 + Math.exp(-x))
const softplus = (x: number) => (x > 20 ? x : Math.log1p(Math.exp(x)))
/** Wx, and b where there is one; W is row-major. */
const linear = (x: readonly number[], W: Float32Array, b?: Float32Array) =>
  Array.from(
    { length: W.length / x.length },
    (_, row) => sum(x.map((v, i) => v * W[row * x.length + i]!)) + (b?.[row] ?? 0),
  )
const rms = (x: readonly number[], eps: number) => {
  const scale = 1 / Math.sqrt(sum(x.map((v) => v * v)) / x.length + eps)
  return x.map((v) => v * scale)
}
const centred = (x: readonly number[]) => {
  const mean = sum(x as number[]) / x.length
  return x.map((v) => v - mean)
}

/** log-probabilities of the next id after each of the ids. */
export function logProbabilities(weights: Weights, config: ModelConfig, ids: readonly number[]): number[][] {
  const { dim, vocab, depth, normEps, norm, tied } = config
  const table = weights.get("backbone.embedding.weight")!
  const normed = (x: readonly number[], path: string) => {
    const [weight, bias] = [weights.get(`${path}.weight`)!, weights.get(`${path}.bias`)]
    const unit = rms(norm === "layer" ? centred(x) : x, normEps)
    return unit.map((v, i) => v * weight[i]! + (bias?.[i] ?? 0))
  }
  const mixers = Array.from({ length: depth }, (_, i) => {
    const block = config.pattern[i % config.pattern.length] as MambaBlock
    return mixer(weights, `backbone.layers.${i}.mixer`, block)
  })
  return ids.map((id) => {
    let x: number[] = [...table.subarray(id * dim, (id + 1) * dim)]
    mixers.forEach((mix, i) => {
      const y = mix(normed(x, `backbone.layers.${i}.norm`))
      x = x.map((v, at) => v + y[at]!)
    })
    const logits = linear(normed(x, "backbone.norm_f"), tied ? table : weights.get("lm_head.weight")!)
    const most = Math.max(...logits)
    const total = most + Math.log(sum(logits.map((v) => Math.exp(v - most))))
    return logits.slice(0, vocab).map((v) => v - total)
  })
}

/** One token after the other through a mixer, which keeps the convolution's last inputs and the state h. */
function mixer(weights: Weights, path: string, { inner, state, conv, rank, mixerNormEps: eps }: MambaBlock) {
  const of = (name: string) => weights.get(`${path}.${name}`)
  const unit = (x: readonly number[]) => (eps === undefined ? x : rms(x, eps))
  const [A, D, kernel, convBias] = [of("A_log")!, of("D")!, of("conv1d.weight")!, of("conv1d.bias")]
  const h = new Float64Array(inner * state)
  let tail: number[][] = Array.from({ length: conv }, () => Array(inner).fill(0))
  return (hidden: readonly number[]): number[] => {
    const both = linear(hidden, of("in_proj.weight")!, of("in_proj.bias"))
    tail = [...tail.slice(1), both.slice(0, inner)]
    const x = both
      .slice(0, inner)
      .map((_, c) => silu(sum(tail.map((row, k) => row[c]! * kernel[c * conv + k]!)) + (convBias?.[c] ?? 0)))
    const projected = linear(x, of("x_proj.weight")!)
    const [low, B, C] = [
      [0, rank],
      [rank, rank + state],
      [rank + state, rank + 2 * state],
    ].map(([from, to]) => unit(projected.slice(from, to)))
    const delta = linear(low!, of("dt_proj.weight")!, of("dt_proj.bias")).map(softplus)
    const y = x.map((v, c) => {
      let out = D[c]! * v
      for (let n = 0; n < state; n++) {
        const at = c * state + n
        h[at] = Math.exp(-delta[c]! * Math.exp(A[at]!)) * h[at]! + delta[c]! * B![n]! * v
        out += C![n]! * h[at]!
      }
      return out * silu(both[inner + c]!)
    })
    return linear(y, of("out_proj.weight")!, of("out_proj.bias"))
  }
}
