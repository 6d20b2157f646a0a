/**
 * Initial values of parameters.
 */
import type { Parameter } from "./layer.ts"
import type { Random } from "./random.ts"

type Init = Parameter["init"]

const fill = (shape: readonly number[], next: (i: number) => number) =>
  Float32Array.from({ length: shape.reduce((product, size) => product * size, 1) }, (_, i) => next(i))

/** Every element the same. */
export const constant =
  (value: number): Init =>
  (shape) =>
    fill(shape, () => value)

/** N(0, deviation²). */
export const normal =
  (deviation: number): Init =>
  (shape, random) =>
    fill(shape, () => deviation * random.normal())

/** U(−bound, bound). */
export const uniform =
  (bound: number): Init =>
  (shape, random) =>
    fill(shape, () => bound * (2 * random.uniform() - 1))

/** torch.nn.Linear's and Conv1d's default: U(−1/√fanIn, 1/√fanIn), fan-in being all dimensions but the first. */
export const fanIn =
  (gain = 1): Init =>
  (shape, random) =>
    uniform(gain / Math.sqrt(shape.slice(1).reduce((product, size) => product * size, 1)))(shape, random)

/** A_log[d, n] = log(n), n = 1…N: A = −n, the S4D-real initialisation (Mamba §3.6, Gu et al. 2022, arXiv:2206.11893). */
export const logarithms: Init = (shape) => fill(shape, (i) => Math.log((i % shape.at(-1)!) + 1))

/**
 * Bias b of Δ = softplus(delta + b): softplus⁻¹ of steps drawn log-uniformly from [min, max], at least floor, as in the
 * paper's code (its text says uniform). softplus⁻¹(y) = y + log(−expm1(−y)).
 */
export const stepBias =
  (min = 0.001, max = 0.1, floor = 1e-4): Init =>
  (shape, random) =>
    fill(shape, () => {
      const step = Math.max(Math.exp(random.uniform() * (Math.log(max) - Math.log(min)) + Math.log(min)), floor)
      return step + Math.log(-Math.expm1(-step))
    })

export type { Random }
