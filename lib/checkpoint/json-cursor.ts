/**
 * A pull reader for JSON of a known grammar. JSON.parse would hide duplicate keys and would build whatever a hostile
 * 100 MB header asks for, up to the end of the heap; this one holds nothing that its caller did not ask for, and never recurses.
 */

/** What the text has instead of the grammar's next token; the caller says in which file. */
export class JsonMismatch extends Error {}

const spaces = /[ \t\n\r]*/y
const numbers = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y
const excerptLength = 24

export class JsonCursor {
  readonly text: string
  #at = 0

  constructor(text: string) {
    this.text = text
  }

  /** Eats the sign if it comes next. */
  take(sign: string): boolean {
    this.#skip(spaces)
    if (this.text[this.#at] !== sign) return false
    this.#at++
    return true
  }

  /** Eats the sign, which must come next. */
  need(sign: string): void {
    if (!this.take(sign)) this.#fail(`\`${sign}\``)
  }

  string(): string {
    this.#skip(spaces)
    if (this.text[this.#at] !== '"') this.#fail("a string")
    let end = this.#at
    do {
      end = this.text.indexOf('"', end + 1)
      if (end < 0) this.#fail("a string that ends")
    } while (isEscaped(this.text, end))
    const literal = this.text.slice(this.#at, end + 1)
    try {
      const value: string = JSON.parse(literal)
      this.#at = end + 1
      return value
    } catch {
      return this.#fail("a well-formed string")
    }
  }

  /** A whole number from 0 to 2⁵³ − 1, without sign, fraction or exponent. */
  natural(): number {
    const start = this.#skip(spaces)
    const literal = this.text.slice(start, this.#skip(numbers))
    if (literal === "") this.#fail("a number")
    if (!/^\d+$/.test(literal) || !Number.isSafeInteger(Number(literal))) {
      this.#at = start
      this.#fail("a whole number from 0 to 2^53 − 1")
    }
    return Number(literal)
  }

  /** Calls `each` for every item of `[…]`, which it must eat. */
  array(each: () => void): void {
    this.need("[")
    if (this.take("]")) return
    do each()
    while (this.take(","))
    this.need("]")
  }

  /** Calls `each` with every key of `{…}`; it must eat the value. */
  object(each: (key: string) => void): void {
    this.need("{")
    if (this.take("}")) return
    do {
      const key = this.string()
      this.need(":")
      each(key)
    } while (this.take(","))
    this.need("}")
  }

  /** Nothing but spaces may follow. */
  end(): void {
    if (this.#skip(spaces) < this.text.length) this.#fail("the end")
  }

  #skip(pattern: RegExp): number {
    pattern.lastIndex = this.#at
    if (pattern.test(this.text)) this.#at = pattern.lastIndex
    return this.#at
  }

  #fail(expected: string): never {
    const rest = this.text.slice(this.#at, this.#at + excerptLength)
    throw new JsonMismatch(
      `expected ${expected} at character ${this.#at}, got ${rest === "" ? "the end" : JSON.stringify(rest)}`,
    )
  }
}

/** An odd number of backslashes before the quote makes it part of the string. */
function isEscaped(text: string, quote: number): boolean {
  let backslashes = 0
  while (text[quote - 1 - backslashes] === "\\") backslashes++
  return backslashes % 2 === 1
}
