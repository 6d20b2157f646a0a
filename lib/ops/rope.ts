import { expect } from "../errors.ts"
import { type Dims, op } from "../graph/op.ts"
import type { Value } from "../graph/value.ts"

// Named, since the gradient calls the op that it belongs to: types cannot be inferred in a circle.
type Gradients = Record<string, Value | null>

interface Turn {
  readonly headDim: number
  readonly heads: number
  readonly base: number
  readonly rotary: number
}

/** Bounds what the kernels index by. */
function checkTurn({ width }: Dims, { headDim, heads, base, rotary }: Turn): Dims {
  for (const [name, value] of Object.entries({ headDim, heads })) {
    const whole = Number.isSafeInteger(value) && value >= 1
    expect(whole, "BAD_OPTION", () => `rope: ${name} is a whole number of at least 1, got ${value}`)
  }
  expect(base > 1, "BAD_OPTION", () => `rope: base is above 1, got ${base}; models have 10000 or more`)
  const turning = rotary === 0 ? headDim : rotary
  const most = Math.min(headDim, 256)
  expect(
    turning % 2 === 0 && turning >= 2 && turning <= most,
    "BAD_OPTION",
    () =>
      `rope: rotary is an even number of columns, at most ${most}, or 0 for a whole head of an even headDim, got ${rotary} for headDim ${headDim}`,
  )
  expect(
    heads * headDim <= width!,
    "BAD_SHAPE",
    () => `rope: x has heads·headDim = ${heads * headDim} columns or more, got ${width}`,
    { width, heads, headDim },
  )
  return {}
}

/**
 * Rotary position embedding: pairs of columns of each head turn by an angle that grows with the row's position, so that products
 * of two rows depend on their distance alone.
 *
 *   (y₁, y₂) = (x₁·cos φ − x₂·sin φ, x₂·cos φ + x₁·sin φ)      φ = position·base^(−2i/rotary) for pair i of a head
 *
 * The first `heads` heads of `headDim` columns turn; columns after them pass as they are: of packed q, k and v, the heads of q and
 * k. Of a head its first `rotary` columns turn, 0 for all of them. Pair i is columns (i, i + rotary/2), `interleaved` (2i, 2i + 1).
 * A position is absolute: that of a segment's first row is in its line. `inverse` turns back.
 *
 * Angles are exact fractions of a turn up to the last position, 2³¹ − 1; sine and cosine are off by at most 2⁻²². Rows in no
 * segment are zero.
 * base: 10000, as in the paper; Llama 3 has 500000.
 * @throws BAD_OPTION, BAD_SHAPE for an odd or too large number of columns, and for heads that x has not
 * @example const { y } = rope({ x: qkv, segments }, { heads: 2 + 1, headDim: 64 })
 * @see Su et al. 2021, arXiv:2104.09864, Eq. 34; the half-split pairs are those of GPT-NeoX and Llama
 */
export const rope = op({
  name: "rope",
  inputs: { x: "float rows width", segments: "i32 segments 5" },
  outputs: { y: "float rows width" },
  attrs: { headDim: 64, heads: 1, base: 10000, rotary: 0, interleaved: false, inverse: false },
  dims: checkTurn,
  grad: ({ segments }, _outputs, attrs, { y: dy }): Gradients =>
    dy ? { x: rope({ x: dy, segments }, { ...attrs, inverse: !attrs.inverse }).y, segments: null } : {},
})
