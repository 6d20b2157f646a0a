/**
 * A growing little-endian byte buffer, for serialised programs and replay files.
 */
import type { Attribute } from "./value.ts"

export class ByteWriter {
  #bytes = new Uint8Array(1 << 12)
  #view = new DataView(this.#bytes.buffer)
  #length = 0

  u8(value: number): void {
    const at = this.#reserve(1)
    this.#view.setUint8(at, value)
  }

  u32(value: number): void {
    const at = this.#reserve(4)
    this.#view.setUint32(at, value, true)
  }

  i32(value: number): void {
    const at = this.#reserve(4)
    this.#view.setInt32(at, value, true)
  }

  i64(value: number): void {
    const at = this.#reserve(8)
    this.#view.setBigInt64(at, BigInt(value), true)
  }

  f64(value: number): void {
    const at = this.#reserve(8)
    this.#view.setFloat64(at, value, true)
  }

  /** Length in bytes, then UTF-8. */
  string(text: string): void {
    const bytes = new TextEncoder().encode(text)
    this.u32(bytes.length)
    this.raw(bytes)
  }

  raw(bytes: Uint8Array): void {
    const at = this.#reserve(bytes.length)
    this.#bytes.set(bytes, at)
  }

  attribute(value: Attribute): void {
    this.u8(["number", "boolean", "string"].indexOf(typeof value))
    if (typeof value === "number") this.f64(value)
    else if (typeof value === "boolean") this.u8(Number(value))
    else this.string(value)
  }

  /** The bytes written so far, followed by their 64-bit FNV-1a checksum. */
  finish(): Uint8Array<ArrayBuffer> {
    const checksum = fnv1a(this.#bytes.subarray(0, this.#length))
    this.u32(Number(checksum & 0xffffffffn))
    this.u32(Number(checksum >> 32n))
    return this.#bytes.slice(0, this.#length)
  }

  /** Makes room and returns where. May replace bytes and view, so it is called before either is looked up. */
  #reserve(count: number): number {
    const at = this.#length
    this.#length += count
    if (this.#length > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(this.#length, this.#bytes.length * 2))
      grown.set(this.#bytes)
      this.#bytes = grown
      this.#view = new DataView(grown.buffer)
    }
    return at
  }
}

/** FNV-1a over 64 bits, in two 32-bit halves: BigInt per byte is fifty times slower on the programs of large models. */
export function fnv1a(bytes: Uint8Array): bigint {
  let low = 0x84222325
  let high = 0xcbf29ce4
  for (const byte of bytes) {
    low = (low ^ byte) >>> 0
    // (high·2³² + low)·(2⁴⁰ + 0x1b3), modulo 2⁶⁴: 2⁴⁰·low reaches the high half as low·2⁸.
    const product = low * 0x1b3
    high = (Math.imul(high, 0x1b3) + Math.floor(product / 2 ** 32) + (low << 8)) >>> 0
    low = product >>> 0
  }
  return (BigInt(high) << 32n) | BigInt(low)
}
