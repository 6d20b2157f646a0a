/**
 * Snapshots with headers of somebody else's making, whose sizes and checksum fit.
 */
import { createHash } from "node:crypto"

/** The snapshot with that text for its header, and the number of its bytes as they are or as told. */
export function sealed(snapshot: Uint8Array, header: string, headerBytes = Buffer.byteLength(header)): Uint8Array {
  const given = Buffer.from(snapshot)
  const values = given.subarray(24 + given.readUInt32LE(12), -32)
  const body = Buffer.concat([given.subarray(0, 24), Buffer.from(header), values])
  body.writeUInt32LE(headerBytes, 12)
  body.writeBigUInt64LE(BigInt(body.length + 32), 16)
  return Buffer.concat([body, createHash("sha256").update(body).digest()])
}

/** The snapshot with its header changed. */
export function resealed(snapshot: Uint8Array, change: (header: Record<string, unknown>) => void): Uint8Array {
  const given = Buffer.from(snapshot)
  const header = JSON.parse(given.toString("utf8", 24, 24 + given.readUInt32LE(12)))
  change(header)
  return sealed(snapshot, JSON.stringify(header))
}
