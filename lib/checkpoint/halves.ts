/**
 * The two 16-bit formats, on their bits: bf16 is the upper half of an f32; f16 has 5 bits of exponent and 10 of fraction.
 * Narrowing rounds to nearest, ties to even; NaN stays NaN (quiet, upper payload bits kept), infinities and signed zeros stay.
 * Everything runs on integer views, because a NaN read into a JavaScript number may lose its payload.
 */

/** f32 values of bf16 bits, exact. */
export function bf16ToF32(source: Uint16Array): Float32Array {
  const bits = new Uint32Array(source.length)
  for (let i = 0; i < source.length; i++) bits[i] = source[i]! << 16
  return new Float32Array(bits.buffer)
}

/** bf16 bits nearest to f32 values; what rounds above the largest finite bf16 is infinity. */
export function f32ToBf16(source: Float32Array): Uint16Array {
  const bits = bitsOf(source)
  const result = new Uint16Array(source.length)
  for (let i = 0; i < bits.length; i++) {
    const v = bits[i]!
    // Just under half a unit, plus the last kept bit: a tie goes up from odd only.
    const rounded = (v + 0x7fff + ((v >>> 16) & 1)) >>> 16
    result[i] = (v & 0x7fffffff) > 0x7f800000 ? (v >>> 16) | 0x40 : rounded
  }
  return result
}

/** f32 values of f16 bits, exact. A table of all halves was tried: 3.1 instead of 4.3 ns per element, not worth its 256 KB. */
export function f16ToF32(source: Uint16Array): Float32Array {
  const bits = new Uint32Array(source.length)
  const values = new Float32Array(bits.buffer)
  for (let i = 0; i < source.length; i++) {
    const half = source[i]!
    const sign = (half & 0x8000) << 16
    const exponent = (half >>> 10) & 31
    const fraction = half & 0x3ff
    if (exponent === 31) bits[i] = sign | 0x7f800000 | (fraction << 13)
    else if (exponent > 0) bits[i] = sign | ((exponent + 112) << 23) | (fraction << 13)
    else values[i] = (sign === 0 ? 1 : -1) * fraction * 2 ** -24
  }
  return values
}

/** f16 bits nearest to f32 values; magnitudes from 65520 on are infinity, subnormals are kept. */
export function f32ToF16(source: Float32Array): Uint16Array {
  const bits = bitsOf(source)
  const result = new Uint16Array(source.length)
  for (let i = 0; i < bits.length; i++) result[i] = f16Bits(bits[i]!)
  return result
}

function bitsOf(source: Float32Array): Uint32Array {
  return new Uint32Array(source.buffer, source.byteOffset, source.length)
}

function f16Bits(f32: number): number {
  const sign = (f32 >>> 16) & 0x8000
  const magnitude = f32 & 0x7fffffff
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >>> 13) & 0x3ff)
  if (magnitude >= 0x47800000) return sign | 0x7c00 // 2^16 and above
  const exponent = magnitude >>> 23
  if (exponent >= 113) {
    // Normal from 2^-14 on: rebias by 112; a carry out of the fraction moves to the next exponent, at last to infinity.
    return sign | ((magnitude - (112 << 23) + 0xfff + ((magnitude >>> 13) & 1)) >>> 13)
  }
  if (exponent < 102) return sign // below half the smallest subnormal, 2^-25
  // Subnormal, in units of 2^-24: shift the fraction with its leading one, then round.
  const fraction = (magnitude & 0x7fffff) | 0x800000
  const shift = 126 - exponent
  return sign | ((fraction + (1 << (shift - 1)) - 1 + ((fraction >>> shift) & 1)) >>> shift)
}
