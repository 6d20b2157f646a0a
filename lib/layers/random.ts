/**
 * Seeded random numbers for initialisation and for the order of training data: the same on every machine.
 */

/** xoshiro128**, seeded through splitmix32. @see Blackman & Vigna 2021, doi:10.1145/3460772 */
export class Random {
  #state: Uint32Array

  constructor(...seeds: readonly number[]) {
    let mixed = 0x9e3779b9
    for (const seed of seeds) mixed = mix((mixed ^ (seed >>> 0)) >>> 0) ^ mix(Math.floor(seed / 2 ** 32) + 1)
    this.#state = Uint32Array.from([1, 2, 3, 4], (i) => mix((mixed + Math.imul(i, 0x9e3779b9)) >>> 0))
  }

  /** A whole number in [0, 2³²). */
  bits(): number {
    const s = this.#state
    const result = Math.imul(rotate(Math.imul(s[1]!, 5), 7), 9) >>> 0
    const shifted = s[1]! << 9
    s[2]! ^= s[0]!
    s[3]! ^= s[1]!
    s[1]! ^= s[2]!
    s[0]! ^= s[3]!
    s[2]! ^= shifted
    s[3] = rotate(s[3]!, 11)
    return result
  }

  /** Uniform in [0, 1) with 53 bits. */
  uniform(): number {
    return ((this.bits() >>> 5) * 2 ** 26 + (this.bits() >>> 6)) / 2 ** 53
  }

  /** A whole number in [0, n). */
  below(n: number): number {
    return Math.floor(this.uniform() * n)
  }

  /** From N(0, 1), by Box and Muller. */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform())
  }
}

const rotate = (x: number, by: number) => ((x << by) | (x >>> (32 - by))) >>> 0

function mix(x: number): number {
  let z = x | 0
  z = Math.imul(z ^ (z >>> 16), 0x21f0aaad)
  z = Math.imul(z ^ (z >>> 15), 0x735a2d97)
  return (z ^ (z >>> 15)) >>> 0
}
