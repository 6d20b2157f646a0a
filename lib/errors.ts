/**
 * The one error class of the package. Its message is one sentence, `<where>: <what was expected>, got <what>; <what to do>`;
 * programs match on `code` and `details`, people read the message.
 */
import { closest } from "fastest-levenshtein"

/** Every reason this package gives for refusing something. */
export type ErrorCode =
  | "ABORTED"
  | "ADDON_MISSING"
  | "BAD_CHECKPOINT"
  | "BAD_FILE"
  | "BAD_INPUT"
  | "BAD_OPTION"
  | "BAD_SHAPE"
  | "BAD_SNAPSHOT"
  | "BAD_TEMPLATE"
  | "BAD_TOKENIZER"
  | "DEVICE_LOST"
  | "DISPOSED"
  | "DISK"
  | "NETWORK"
  | "NO_ACCESS"
  | "NO_DEVICE"
  | "NO_GRADIENT"
  | "NO_KERNEL"
  | "NOT_FINITE"
  | "NOT_FOUND"
  | "NATIVE"
  | "OUT_OF_MEMORY"
  | "SESSION_BUSY"
  | "SLOTS_EXHAUSTED"

export class SelscanError extends Error {
  override readonly name = "SelscanError"
  readonly code: ErrorCode
  /** What was expected and got, as fields, for code that acts on the error. */
  readonly details: Readonly<Record<string, unknown>>

  constructor(code: ErrorCode, message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super(message, options)
    this.code = code
    this.details = details
  }
}

/** Throws a `SelscanError` unless `condition` holds. */
export function expect(condition: unknown, code: ErrorCode, message: () => string, details = {}): asserts condition {
  if (!condition) throw new SelscanError(code, message(), details)
}

/**
 * What another program's error says, as part of a sentence: on one line and cut. It may quote a stranger's file, whose line ends,
 * escape sequences and turns of direction would do in a terminal what they like.
 */
export const oneLine = (cause: unknown): string =>
  String((cause as Error | undefined)?.message ?? cause)
    .replace(/[\s\p{Cc}\p{Cf}]+/gu, " ")
    .trim()
    .slice(0, 200)

/** `did you mean window?`, or the whole list when nothing is near. */
export function suggestion(word: string, known: readonly string[]): string {
  if (known.length === 0) return "none is known here"
  const near = closest(word, known)
  const plausible = sharedLetters(word, near) >= Math.min(word.length, near.length) / 2
  return plausible ? `did you mean ${near}?` : `known are ${known.join(", ")}`
}

function sharedLetters(a: string, b: string): number {
  return [...new Set(a)].filter((letter) => b.includes(letter)).length
}

/** Refuses option names that nobody reads: a misspelt option must not silently mean its default. */
export function checkOptions(where: string, options: object, known: readonly string[]): void {
  expect(
    typeof options === "object" && options !== null && !Array.isArray(options),
    "BAD_OPTION",
    () => `${where}: options are an object, got ${Array.isArray(options) ? "an array" : options}`,
  )
  for (const name of Object.keys(options)) {
    expect(known.includes(name), "BAD_OPTION", () => `${where}: unknown option ${name}, ${suggestion(name, known)}`, {
      option: name,
      known,
    })
  }
}

/**
 * Refuses a signal that is none, and one that has fired: also where nothing is left to run that would look at it.
 * @throws BAD_OPTION, ABORTED
 */
export function checkSignal(where: string, signal: AbortSignal | undefined): void {
  expect(
    signal === undefined || signal instanceof AbortSignal,
    "BAD_OPTION",
    () => `${where}: signal is an AbortSignal, got ${signal === null ? "null" : typeof signal}`,
    { option: "signal" },
  )
  expect(!signal?.aborted, "ABORTED", () => `${where}: aborted before it began`)
}
