/** One JSON object of a config file with typed, checked access; errors name the file and the field. */
import { oneLine, SelscanError, suggestion } from "../errors.ts"

/** Larger counts than any model has, small enough that sums and products of a few stay exact. */
const countMax = 2 ** 24
const shownLength = 40

interface CountOptions {
  /** The value of a missing field; without it a missing field is an error. */
  readonly absent?: number
  readonly least?: number
  readonly most?: number
}

/** What a refusal advises where no family is known yet. */
const anyRemedy = "give the config file of a supported model"

export class Fields {
  readonly raw: Readonly<Record<string, unknown>>
  readonly #where: string
  /** `ssm_cfg.` in front of the names of a nested object. */
  readonly #prefix: string
  readonly #remedy: string

  private constructor(raw: Readonly<Record<string, unknown>>, where: string, prefix = "", remedy = anyRemedy) {
    this.raw = raw
    this.#where = where
    this.#prefix = prefix
    this.#remedy = remedy
  }

  static parse(text: string, where: string): Fields {
    let value: unknown
    try {
      value = JSON.parse(text)
    } catch (cause) {
      const message = `${where}: expected JSON, got a text that is none (${oneLine(cause)}); get the file again`
      throw new SelscanError("BAD_CHECKPOINT", message, {}, { cause })
    }
    if (isObject(value)) return new Fields(value, where)
    const message = `${where}: expected a JSON object, got ${shown(value)}; ${anyRemedy}`
    throw new SelscanError("BAD_CHECKPOINT", message)
  }

  static of(raw: Readonly<Record<string, unknown>>, where: string): Fields {
    return new Fields(raw, where)
  }

  /** The same fields, whose refusals name the family that was recognised. */
  named(family: string): Fields {
    return new Fields(this.raw, this.#where, this.#prefix, `load a plain ${family} checkpoint`)
  }

  /** A whole number from `least` (1) to `most` (2²⁴). */
  count(name: string, { absent, least = 1, most = countMax }: CountOptions = {}): number {
    const value = this.raw[name] ?? absent
    const good = typeof value === "number" && Number.isInteger(value) && value >= least && value <= most
    return good ? value : this.#wrong(name, `a whole number from ${least} to ${most}`)
  }

  /** A number above 0 and at most `most`, such as a factor or a small constant. */
  positive(name: string, absent?: number, most = 1024): number {
    const value = this.raw[name] ?? absent
    const good = typeof value === "number" && value > 0 && value <= most
    return good ? value : this.#wrong(name, `a number above 0 and at most ${most}`)
  }

  flag(name: string, absent?: boolean): boolean {
    const value = this.raw[name] ?? absent
    return typeof value === "boolean" ? value : this.#wrong(name, "true or false")
  }

  optionalObject(name: string): Fields | undefined {
    const value = this.raw[name]
    if (value === undefined || value === null) return undefined
    return isObject(value) ? this.#nested(value, name) : this.#wrong(name, "an object")
  }

  /** A list of at least one object. */
  objects(name: string): Fields[] {
    const value = this.raw[name]
    const good = Array.isArray(value) && value.length > 0 && value.every(isObject)
    if (!good) this.#wrong(name, "a list of objects")
    return value.map((item, i) => this.#nested(item, `${name}[${i}]`))
  }

  /** A nested object that is missing and has no field. */
  empty(name: string): Fields {
    return this.#nested({}, name)
  }

  /** Refuses fields that nobody reads: a misspelt one must not silently mean nothing. */
  only(names: readonly string[]): void {
    for (const name of Object.keys(this.raw)) {
      if (names.includes(name)) continue
      this.refuse(`no field ${this.#prefix}${shorten(name)}, ${suggestion(name.slice(0, shownLength), names)}`, "it")
    }
  }

  /** Refuses the model unless the field's condition holds. */
  require(condition: boolean, name: string, expected: string): void {
    if (!condition) this.#wrong(name, expected)
  }

  refuse(expected: string, got: string): never {
    const message = `${this.#where}: expected ${expected}, got ${got}; ${this.#remedy}`
    throw new SelscanError("BAD_CHECKPOINT", message, { expected, got })
  }

  #nested(raw: Readonly<Record<string, unknown>>, name: string): Fields {
    return new Fields(raw, this.#where, `${this.#prefix}${name}.`, this.#remedy)
  }

  #wrong(name: string, expected: string): never {
    return this.refuse(`${this.#prefix}${name} to be ${expected}`, shown(this.raw[name]))
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value)
}

function shown(value: unknown): string {
  return value === undefined ? "none" : shorten(JSON.stringify(value))
}

function shorten(text: string): string {
  return text.length > shownLength ? `${text.slice(0, shownLength)}…` : text
}
