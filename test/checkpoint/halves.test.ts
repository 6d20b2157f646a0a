import test from "ava"
import fc from "fast-check"
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from "../../lib/checkpoint/halves.ts"

const everyHalf = Uint16Array.from({ length: 65536 }, (_, i) => i)

/** The nearest value with `fractionBits` after the leading one and exponents from `least`, ties to even, from the definition. */
function nearest(value: number, fractionBits: number, least: number, largest: number): number {
  if (!Number.isFinite(value) || value === 0) return value
  const magnitude = Math.abs(value)
  let exponent = Math.floor(Math.log2(magnitude))
  if (2 ** exponent > magnitude) exponent--
  if (2 ** (exponent + 1) <= magnitude) exponent++
  const unit = 2 ** (Math.max(exponent, least) - fractionBits)
  const scaled = magnitude / unit
  const floor = Math.floor(scaled)
  const up = scaled - floor > 0.5 || (scaled - floor === 0.5 && floor % 2 === 1)
  const rounded = (floor + (up ? 1 : 0)) * unit
  return Math.sign(value) * (rounded > largest ? Number.POSITIVE_INFINITY : rounded)
}

const formats = [
  { name: "f16", widen: f16ToF32, narrow: f32ToF16, fraction: 10, least: -14, largest: 65504, infinity: 0x7c00 },
  {
    name: "bf16",
    widen: bf16ToF32,
    narrow: f32ToBf16,
    fraction: 7,
    least: -126,
    largest: (2 - 2 ** -7) * 2 ** 127,
    infinity: 0x7f80,
  },
]

for (const { name, widen, narrow, fraction, least, largest, infinity } of formats) {
  test(`every ${name} survives the way to f32 and back, NaN as a NaN of the same sign`, (t) => {
    const back = narrow(widen(everyHalf))
    const wrong = everyHalf.filter((half, i) => {
      const notNumber = (half & 0x7fff) > infinity
      return notNumber ? (back[i]! & 0x7fff) <= infinity || (back[i]! ^ half) & 0x8000 : back[i] !== half
    })
    t.is(wrong.length, 0)
  })

  test(`every finite ${name} has the value that its bits define`, (t) => {
    const values = widen(everyHalf)
    const wrong = everyHalf.filter((half, i) => {
      const exponent = (half & 0x7fff) >>> fraction
      const bits = half & ((1 << fraction) - 1)
      if (exponent === infinity >>> fraction)
        return bits === 0 ? Math.abs(values[i]!) !== Infinity : !Number.isNaN(values[i])
      const scale = 2 ** (Math.max(exponent - 1, 0) + least - fraction)
      return !Object.is(values[i], (half & 0x8000 ? -1 : 1) * (bits + (exponent > 0 ? 1 << fraction : 0)) * scale)
    })
    t.is(wrong.length, 0)
  })

  test(`f32 narrows to the nearest ${name}, ties to even`, (t) => {
    const agrees = (source: Float32Array) =>
      widen(narrow(source)).every((got, i) => Object.is(got, nearest(source[i]!, fraction, least, largest)))
    const ofBits = fc.nat({ max: 0xffffffff }).map((bits) => new Float32Array(Uint32Array.of(bits).buffer)[0]!)
    const finite = fc.array(ofBits.filter(Number.isFinite), { maxLength: 20 }).map((v) => Float32Array.from(v))
    fc.assert(fc.property(finite, agrees), { seed: 1, numRuns: 2000 })
    // Every midpoint between neighbours, where rounding to even decides, and the f32 just beside it.
    const halves = widen(everyHalf.filter((half) => half < infinity))
    const middles = Float32Array.from(halves.subarray(1), (v, i) => (v + halves[i]!) / 2)
    const beside = (step: number) =>
      new Float32Array(Uint32Array.from(new Uint32Array(middles.buffer), (v) => v + step).buffer)
    t.true([middles, beside(1), beside(-1), middles.map((v) => -v)].every(agrees))
  })

  test(`${name} keeps infinities, and what lies beyond its largest value becomes one`, (t) => {
    const beyond = name === "f16" ? 65520 : 3.4e38
    t.deepEqual([...narrow(Float32Array.of(Infinity, -Infinity, beyond))], [infinity, infinity | 0x8000, infinity])
    t.true(Number.isNaN(widen(narrow(Float32Array.of(Number.NaN)))[0]))
  })
}

test("a signalling NaN whose payload lies in the dropped bits stays a NaN", (t) => {
  const nan = new Float32Array(Uint32Array.of(0x7f800001, 0xff800001).buffer)
  t.deepEqual([...f32ToBf16(nan)], [0x7fc0, 0xffc0])
  t.deepEqual([...f32ToF16(nan)], [0x7e00, 0xfe00])
})
