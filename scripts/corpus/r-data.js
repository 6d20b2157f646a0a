/**
 * Reads the character vectors of an R package's lazy-load database without R.
 *
 * `NAME.rdx` is a compressed, serialised list; its first element maps each variable to (offset, length) in `NAME.rdb`,
 * where the variable lies as a big-endian length and a zlib stream of R's serialisation, XDR format. Only the kinds of
 * values that such packages of text hold are read; any other is an error that names its type.
 * @see R Internals, section 1.8 "Serialization Formats"
 */
import { readFileSync } from "node:fs"
import { gunzipSync, inflateSync } from "node:zlib"

/** Variables by name: each the array of strings (or numbers) it holds. `base` is the path without `.rdx` or `.rdb`. */
export function readLazyLoad(base) {
  const [places] = unserialize(decompress(readFileSync(`${base}.rdx`)))
  const names = attribute(places, "names")
  const data = readFileSync(`${base}.rdb`)
  return new Map(names.map((name, i) => [name, readVariable(data, ...places[i])]))
}

function readVariable(data, offset, length) {
  const chunk = data.subarray(offset, offset + length)
  const raw = inflateSync(chunk.subarray(4))
  if (raw.length !== chunk.readUInt32BE(0)) throw new Error("R data: a variable unpacks to another length than stated")
  return unserialize(raw)
}

function decompress(bytes) {
  return bytes[0] === 0x1f ? gunzipSync(bytes) : inflateSync(bytes)
}

/** The value of one attribute in the pair list that `unserialize` leaves on a vector. */
function attribute(vector, name) {
  for (let pair = vector.attributes; pair; pair = pair.rest) if (pair.tag === name) return pair.value
  throw new Error(`R data: expected an attribute ${name}, got none`)
}

// Type numbers of R's serialisation, with the flags beside them in the same word.
const Type = { symbol: 1, pairs: 2, char: 9, logical: 10, integer: 13, real: 14, string: 16, list: 19 }
const Special = { null: 254, reference: 255 }
const HasAttributes = 0x200
const HasTag = 0x400

function unserialize(bytes) {
  const reader = new Reader(bytes)
  if (bytes.toString("latin1", 0, 2) !== "X\n") throw new Error("R data: expected the XDR format")
  reader.at = 2
  const version = reader.integer()
  reader.integer() // version of R that wrote it
  reader.integer() // oldest version that reads it
  if (version === 3) reader.text(reader.integer()) // the native encoding's name
  return reader.value()
}

class Reader {
  at = 0
  symbols = []

  constructor(bytes) {
    this.bytes = bytes
  }

  integer() {
    this.at += 4
    return this.bytes.readInt32BE(this.at - 4)
  }

  real() {
    this.at += 8
    return this.bytes.readDoubleBE(this.at - 8)
  }

  text(length) {
    this.at += length
    return this.bytes.toString("utf8", this.at - length, this.at)
  }

  value() {
    const flags = this.integer()
    switch (flags & 0xff) {
      case Special.null:
        return null
      case Special.reference:
        return this.symbols[(flags >> 8) - 1]
      case Type.symbol:
        this.symbols.push(this.value())
        return this.symbols.at(-1)
      case Type.pairs:
        return this.pair(flags)
      case Type.char: {
        const length = this.integer()
        return length < 0 ? null : this.text(length) // −1 is R's NA
      }
      case Type.logical:
      case Type.integer:
        return this.vector(flags, () => this.integer())
      case Type.real:
        return this.vector(flags, () => this.real())
      case Type.string:
      case Type.list:
        return this.vector(flags, () => this.value())
      default:
        throw new Error(`R data: type ${flags & 0xff} at byte ${this.at} is not one that packages of text hold`)
    }
  }

  pair(flags) {
    if (flags & HasAttributes) this.value()
    const tag = flags & HasTag ? this.value() : null
    const value = this.value()
    return { tag, value, rest: this.value() }
  }

  vector(flags, element) {
    const vector = Array.from({ length: this.integer() }, element)
    if (flags & HasAttributes) vector.attributes = this.value()
    return vector
  }
}
