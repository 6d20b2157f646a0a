/** A folder per test file, removed at the end, and small safetensors files made by hand. */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "ava"

export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "selscan-test-"))
  test.after.always(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** A file from the text of its header and its data, whatever they are. */
export function fileOf(header: string | object, data: Uint8Array | number = 0): Uint8Array {
  const text = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header))
  return fileOfBytes(text, data)
}

export function fileOfBytes(
  header: Uint8Array,
  data: Uint8Array | number = 0,
  length = BigInt(header.length),
): Uint8Array {
  const bytes = typeof data === "number" ? new Uint8Array(data) : data
  const file = new Uint8Array(8 + header.length + bytes.length)
  new DataView(file.buffer).setBigUint64(0, length, true)
  file.set(header, 8)
  file.set(bytes, 8 + header.length)
  return file
}
