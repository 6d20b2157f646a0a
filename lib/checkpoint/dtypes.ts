/** Element types of safetensors files, their sizes, and what each is as f32. All data are little-endian, as every host here is. */
import { expect } from "../errors.ts"
import { bf16ToF32, f16ToF32, f32ToBf16, f32ToF16 } from "./halves.ts"

/** Bytes per element. */
export const dtypeSize = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  U16: 2,
  U32: 4,
  U64: 8,
  BOOL: 1,
} as const

export type TensorDtype = keyof typeof dtypeSize

export function isDtype(name: string): name is TensorDtype {
  return Object.hasOwn(dtypeSize, name)
}

const littleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1

/**
 * Elements of a tensor as f32: exact for F32, F16, BF16, BOOL (0 or 1) and 8- and 16-bit integers, else rounded to nearest.
 * `bytes` must start at a multiple of the element size in its buffer; an F32 result shares that buffer.
 */
export function toF32(dtype: TensorDtype, bytes: Uint8Array): Float32Array {
  expect(
    littleEndian,
    "NO_DEVICE",
    () => "safetensors: expected a little-endian machine, got a big-endian one; use another",
  )
  const { buffer, byteOffset } = bytes
  const length = bytes.byteLength / dtypeSize[dtype]
  switch (dtype) {
    case "F32":
      return new Float32Array(buffer, byteOffset, length)
    case "F16":
      return f16ToF32(new Uint16Array(buffer, byteOffset, length))
    case "BF16":
      return bf16ToF32(new Uint16Array(buffer, byteOffset, length))
    case "F64":
      return Float32Array.from(new Float64Array(buffer, byteOffset, length))
    case "I64":
      return wideToF32(new BigInt64Array(buffer, byteOffset, length))
    case "U64":
      return wideToF32(new BigUint64Array(buffer, byteOffset, length))
    case "I32":
      return Float32Array.from(new Int32Array(buffer, byteOffset, length))
    case "U32":
      return Float32Array.from(new Uint32Array(buffer, byteOffset, length))
    case "I16":
      return Float32Array.from(new Int16Array(buffer, byteOffset, length))
    case "U16":
      return Float32Array.from(new Uint16Array(buffer, byteOffset, length))
    case "I8":
      return Float32Array.from(new Int8Array(buffer, byteOffset, length))
    case "U8":
      return Float32Array.from(bytes)
    case "BOOL":
      return Float32Array.from(bytes, (v) => (v === 0 ? 0 : 1))
  }
}

/** Bytes of f32 values in one of the three formats of weights; rounds to nearest even. F32 shares the values' buffer. */
export function fromF32(dtype: "F32" | "F16" | "BF16", values: Float32Array): Uint8Array {
  const elements = dtype === "F32" ? values : dtype === "F16" ? f32ToF16(values) : f32ToBf16(values)
  return new Uint8Array(elements.buffer, elements.byteOffset, elements.byteLength)
}

function wideToF32(values: BigInt64Array | BigUint64Array): Float32Array {
  const result = new Float32Array(values.length)
  for (let i = 0; i < values.length; i++) result[i] = Number(values[i])
  return result
}
