/**
 * Which option asks for memory that a device does not have.
 */
import { SelscanError } from "../errors.ts"
import type { Program } from "../graph/program.ts"
import type { Model } from "./model.ts"

/**
 * The error itself, but where compiling found no room for the places of sessions, which are made then: that is said with the options
 * that decide how many and how large they are. The device names the bytes that it could not have.
 */
export function outOfMemory(
  error: unknown,
  program: Program,
  { places: { sessions }, network, device }: Model,
): unknown {
  if (!(error instanceof SelscanError) || error.code !== "OUT_OF_MEMORY") return error
  const bytes = Number(/(\d+) bytes\)? could not be had/.exec(error.message)?.[1])
  const found = (["state", "ring"] as const).flatMap((kind) =>
    program.stored(kind).flatMap((slot) => (slot.sizeBytes === bytes ? [{ ...slot, kind }] : [])),
  )[0]
  if (found === undefined) return error
  const all = [...program.stored("state"), ...program.stored("ring")].reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
  const { contextMax } = network
  const context = contextMax === undefined ? "" : ` of contextMax = ${contextMax} tokens`
  const smaller = contextMax === undefined ? "" : ", or a smaller contextMax"
  const message = `model: ${all} bytes on device ${device} are expected for sessions = ${sessions}${context}, got no room for the ${found.kind} ${found.name}, ${bytes} bytes; load it with fewer sessions${smaller}`
  return new SelscanError("OUT_OF_MEMORY", message, { sessions, contextMax, bytes: all }, { cause: error })
}
