/**
 * A pickle machine that builds plain values and what it is told to build, and calls nothing: a global stands for something only when the
 * caller's `Builder` knows it.
 *
 * None, booleans, numbers, text, bytes, lists, tuples, dicts, sets; protocols 2 to 5, as torch.save and Python 3 write them. A dict is a
 * Map, a tuple a frozen array. The opcodes that import or build by other ways (INST, OBJ, NEWOBJ, EXT, PERSID, buffers) and the text ones
 * of protocol 0 are refused. The machine does not recurse, every step takes bytes of its own, and steps and containers are counted: what a
 * short pickle repeats by its memo is one object many times, never many objects.
 * @see Lib/pickletools.py of CPython, which describes every opcode
 */
import { SelscanError } from "../errors.ts"
import { shown } from "./source.ts"

/** A name of a Python module, and what it does here. */
export class PickleGlobal {
  /** As Python says it: `torch._utils._rebuild_tensor_v2`. */
  readonly name: string
  /** What calling it gives; absent where it may only be named. */
  readonly call: ((args: readonly PickleValue[]) => PickleValue) | undefined

  constructor(name: string, call?: (args: readonly PickleValue[]) => PickleValue) {
    this.name = name
    this.call = call
  }
}

/** Objects of the caller's own. */
export abstract class PickleObject {
  /** In messages: `a storage`. */
  abstract readonly kind: string
}

export type PickleValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | readonly PickleValue[]
  | ReadonlyMap<PickleValue, PickleValue>
  | ReadonlySet<PickleValue>
  | PickleGlobal
  | PickleObject

/** What a pickle can refer to. Both throw for what they do not know. */
export interface Builder {
  global(module: string, name: string): PickleGlobal
  persistent(id: PickleValue): PickleValue
}

/** A tensor takes some 25 steps and 6 containers. */
const stepsMost = 4_000_000
const containersMost = 1_000_000
const protocols = [2, 5] as const
/** Longer than any name of a module or a class. */
const lineMost = 256

/**
 * Runs a pickle to its end.
 * @throws SelscanError BAD_FILE when it is damaged, asks for what it may not, or is far longer than any checkpoint's
 */
export function unpickle(bytes: Uint8Array, where: string, builder: Builder): PickleValue {
  return new Machine(bytes, where, builder).run()
}

export const isTuple = (value: PickleValue | undefined): value is readonly PickleValue[] =>
  Array.isArray(value) && Object.isFrozen(value)

const isList = (value: PickleValue): value is PickleValue[] => Array.isArray(value) && !Object.isFrozen(value)

/**
 * What a dict or a set may have as a key. Of numbers those of 32 bits, as ids of parameters are: Map looks up fractions and larger ones by
 * bits that a file can choose to be the same, and some hundred thousand of those would take hours.
 */
export const isKey = (value: PickleValue): boolean =>
  typeof value === "number" ? (value | 0) === value : typeof value !== "bigint"

/** A value as messages name it. */
export function kindOf(value: PickleValue | undefined): string {
  if (value === undefined) return "nothing"
  if (value === null) return "None"
  if (Array.isArray(value)) return isTuple(value) ? "a tuple" : "a list"
  if (value instanceof Map) return "a dict"
  if (value instanceof Set) return "a set"
  if (value instanceof Uint8Array) return "bytes"
  if (value instanceof PickleGlobal) return `the global ${shown(value.name)}`
  if (value instanceof PickleObject) return value.kind
  return typeof value === "string" ? "a text" : `a ${typeof value}`
}

class Machine {
  readonly #bytes: Uint8Array
  readonly #view: DataView
  readonly #where: string
  readonly #builder: Builder
  readonly #memo = new Map<number, PickleValue>()
  #stack: PickleValue[] = []
  /** Lengths of the stack where lists and tuples under construction begin. */
  readonly #marks: number[] = []
  #at = 0
  #containers = 0
  #stopped = false

  constructor(bytes: Uint8Array, where: string, builder: Builder) {
    this.#bytes = bytes
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#where = where
    this.#builder = builder
  }

  run(): PickleValue {
    if (this.#bytes[0] !== 0x80) this.refuse("a pickle of protocol 2 to 5", "other bytes")
    for (let steps = 0; !this.#stopped; steps++) {
      if (steps === stepsMost) this.refuse(`at most ${stepsMost} steps`, "more")
      const code = this.#bytes[this.take(1)]!
      const operation = operations[code]
      if (operation === undefined) {
        return this.refuse("the opcodes of tensors and plain values", `opcode 0x${code.toString(16)}`)
      }
      operation(this)
    }
    if (this.#at !== this.#bytes.length) this.refuse("the end after the last opcode", "more bytes")
    const value = this.pop()
    if (this.#stack.length + this.#marks.length > 0) this.refuse("one value at the end", "more")
    return value
  }

  refuse(expected: string, got: string): never {
    const remedy = "get the file again, or save the model's state_dict() alone with torch.save"
    const message = `${this.#where}: expected ${expected}, got ${got} at byte ${this.#at}; ${remedy}`
    throw new SelscanError("BAD_FILE", message, { expected, got })
  }

  /** The position of the next bytes, behind which the machine then stands. */
  take(length: number): number {
    const at = this.#at
    if (length > this.#bytes.length - at) this.refuse(`${length} bytes`, `the last ${this.#bytes.length - at}`)
    this.#at += length
    return at
  }

  u8 = (): number => this.#bytes[this.take(1)]!
  u16 = (): number => this.#view.getUint16(this.take(2), true)
  u32 = (): number => this.#view.getUint32(this.take(4), true)
  i32 = (): number => this.#view.getInt32(this.take(4), true)
  f64 = (): number => this.#view.getFloat64(this.take(8), false)
  /** Lengths of 8 bytes: none of a pickle that is in memory needs more than a number. */
  u64 = (): number => Number(this.#view.getBigUint64(this.take(8), true))

  raw(length: number): Uint8Array {
    const at = this.take(length)
    return this.#bytes.slice(at, at + length)
  }

  text(length: number): string {
    const at = this.take(length)
    try {
      return utf8.decode(this.#bytes.subarray(at, at + length))
    } catch {
      return this.refuse("text in UTF-8", "other bytes")
    }
  }

  line(): string {
    const end = this.#bytes.subarray(this.#at, this.#at + lineMost).indexOf(0x0a)
    if (end < 0) this.refuse(`a name of less than ${lineMost} characters`, "a longer one")
    const text = this.text(end)
    this.take(1)
    return text
  }

  /** A little-endian number in two's complement. */
  long(length: number): number | bigint {
    if (length > 255) this.refuse("a number of at most 255 bytes", `${length}`)
    const bytes = this.raw(length)
    if (length === 0) return 0
    const digits = Buffer.from(bytes).reverse().toString("hex")
    const value = BigInt.asIntN(8 * length, BigInt(`0x${digits}`))
    return Number.isSafeInteger(Number(value)) ? Number(value) : value
  }

  push(value: PickleValue): void {
    this.#stack.push(value)
  }

  /** Pushes a container, of which there are not endlessly many. */
  make(value: PickleValue): void {
    if (++this.#containers > containersMost) this.refuse(`at most ${containersMost} containers`, "more")
    this.#stack.push(value)
  }

  pop(): PickleValue {
    const least = this.#marks.at(-1) ?? 0
    if (this.#stack.length <= least) this.refuse("a value on the stack", "none")
    return this.#stack.pop()!
  }

  top(): PickleValue {
    const value = this.pop()
    this.#stack.push(value)
    return value
  }

  mark(): void {
    this.#marks.push(this.#stack.length)
  }

  /** The values since the last mark. */
  popMark(): PickleValue[] {
    const from = this.#marks.pop()
    if (from === undefined) return this.refuse("a mark", "none")
    return this.#stack.splice(from)
  }

  /** Python counts from 0. Places of a file's own choice could be such as Map takes hours to tell apart. */
  put(index: number): void {
    if (index >= stepsMost) this.refuse(`places of the memo below ${stepsMost}`, `${index}`)
    this.#memo.set(index, this.top())
  }

  memoize(): void {
    this.put(this.#memo.size)
  }

  get(index: number): void {
    const value = this.#memo.get(index)
    if (value === undefined) this.refuse(`a value ${index} in the memo`, "none")
    this.push(value)
  }

  append(values: readonly PickleValue[]): void {
    const list = this.top()
    if (!isList(list)) this.refuse("a list to append to", kindOf(list))
    for (const value of values) list.push(value)
  }

  setItems(pairs: readonly PickleValue[]): void {
    const dict = this.top()
    if (!(dict instanceof Map)) this.refuse("a dict to set items of", kindOf(dict))
    if (pairs.length % 2 !== 0) this.refuse("keys with values", "a key without one")
    for (let i = 0; i < pairs.length; i += 2) dict.set(this.#key(pairs[i]!), pairs[i + 1]!)
  }

  addItems(values: readonly PickleValue[]): void {
    const set = this.top()
    if (!(set instanceof Set)) this.refuse("a set to add to", kindOf(set))
    for (const value of values) set.add(this.#key(value))
  }

  #key(value: PickleValue): PickleValue {
    return isKey(value) ? value : this.refuse("a key", kindOf(value))
  }

  dictOf(pairs: readonly PickleValue[]): void {
    this.make(new Map())
    this.setItems(pairs)
  }

  setOf(values: readonly PickleValue[]): void {
    this.make(new Set())
    this.addItems(values)
  }

  global(module: PickleValue, name: PickleValue): void {
    if (typeof module !== "string" || typeof name !== "string") this.refuse("names in text", kindOf(name))
    this.push(this.#builder.global(module, name))
  }

  reduce(): void {
    const [args, callable] = [this.pop(), this.pop()]
    if (!isTuple(args)) this.refuse("a tuple of arguments", kindOf(args))
    const call = callable instanceof PickleGlobal ? callable.call : undefined
    if (call === undefined) this.refuse("something that may be called", kindOf(callable))
    this.make(call(args))
  }

  /** An OrderedDict's attributes, such as _metadata, say nothing about its items. */
  build(): void {
    this.pop()
    const object = this.top()
    if (!(object instanceof Map)) this.refuse("a dict to give attributes to", kindOf(object))
  }

  persistent(): void {
    this.push(this.#builder.persistent(this.pop()))
  }

  protocol(): void {
    const version = this.u8()
    const [least, most] = protocols
    if (version < least || version > most) this.refuse(`protocol ${least} to ${most}`, `${version}`)
  }

  stop(): void {
    this.#stopped = true
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
const latin1 = (bytes: Uint8Array) => Buffer.from(bytes).toString("latin1")
const tuple = (values: PickleValue[]): PickleValue => Object.freeze(values)

type Operation = (machine: Machine) => void

/** By opcode, under the names of pickletools. */
const named: Readonly<Record<string, readonly [code: number | string, run: Operation]>> = {
  PROTO: [0x80, (m) => m.protocol()],
  FRAME: [0x95, (m) => void m.take(8)],
  STOP: [".", (m) => m.stop()],
  MARK: ["(", (m) => m.mark()],
  POP: ["0", (m) => void m.pop()],
  POP_MARK: ["1", (m) => void m.popMark()],
  DUP: ["2", (m) => m.push(m.top())],
  NONE: ["N", (m) => m.push(null)],
  NEWTRUE: [0x88, (m) => m.push(true)],
  NEWFALSE: [0x89, (m) => m.push(false)],
  BININT: ["J", (m) => m.push(m.i32())],
  BININT1: ["K", (m) => m.push(m.u8())],
  BININT2: ["M", (m) => m.push(m.u16())],
  LONG1: [0x8a, (m) => m.push(m.long(m.u8()))],
  LONG4: [0x8b, (m) => m.push(m.long(m.u32()))],
  BINFLOAT: ["G", (m) => m.push(m.f64())],
  SHORT_BINSTRING: ["U", (m) => m.push(latin1(m.raw(m.u8())))],
  BINSTRING: ["T", (m) => m.push(latin1(m.raw(m.u32())))],
  SHORT_BINBYTES: ["C", (m) => m.make(m.raw(m.u8()))],
  BINBYTES: ["B", (m) => m.make(m.raw(m.u32()))],
  BINBYTES8: [0x8e, (m) => m.make(m.raw(m.u64()))],
  BYTEARRAY8: [0x96, (m) => m.make(m.raw(m.u64()))],
  SHORT_BINUNICODE: [0x8c, (m) => m.push(m.text(m.u8()))],
  BINUNICODE: ["X", (m) => m.push(m.text(m.u32()))],
  BINUNICODE8: [0x8d, (m) => m.push(m.text(m.u64()))],
  EMPTY_LIST: ["]", (m) => m.make([])],
  APPEND: ["a", (m) => m.append([m.pop()])],
  APPENDS: ["e", (m) => m.append(m.popMark())],
  LIST: ["l", (m) => m.make(m.popMark())],
  EMPTY_TUPLE: [")", (m) => m.make(tuple([]))],
  TUPLE: ["t", (m) => m.make(tuple(m.popMark()))],
  TUPLE1: [0x85, (m) => m.make(tuple([m.pop()]))],
  TUPLE2: [0x86, (m) => m.make(tuple([m.pop(), m.pop()].reverse()))],
  TUPLE3: [0x87, (m) => m.make(tuple([m.pop(), m.pop(), m.pop()].reverse()))],
  EMPTY_DICT: ["}", (m) => m.make(new Map())],
  DICT: ["d", (m) => m.dictOf(m.popMark())],
  SETITEM: ["s", (m) => m.setItems([m.pop(), m.pop()].reverse())],
  SETITEMS: ["u", (m) => m.setItems(m.popMark())],
  EMPTY_SET: [0x8f, (m) => m.make(new Set())],
  ADDITEMS: [0x90, (m) => m.addItems(m.popMark())],
  FROZENSET: [0x91, (m) => m.setOf(m.popMark())],
  GLOBAL: ["c", (m) => m.global(m.line(), m.line())],
  STACK_GLOBAL: [
    0x93,
    (m) => {
      const name = m.pop()
      m.global(m.pop(), name)
    },
  ],
  REDUCE: ["R", (m) => m.reduce()],
  BUILD: ["b", (m) => m.build()],
  BINPERSID: ["Q", (m) => m.persistent()],
  BINPUT: ["q", (m) => m.put(m.u8())],
  LONG_BINPUT: ["r", (m) => m.put(m.u32())],
  MEMOIZE: [0x94, (m) => m.memoize()],
  BINGET: ["h", (m) => m.get(m.u8())],
  LONG_BINGET: ["j", (m) => m.get(m.u32())],
}

const operations: readonly (Operation | undefined)[] = (() => {
  const byCode = new Array<Operation | undefined>(256).fill(undefined)
  for (const [code, run] of Object.values(named)) byCode[typeof code === "number" ? code : code.charCodeAt(0)] = run
  return byCode
})()
