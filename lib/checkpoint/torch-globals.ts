/** The names that torch.save's pickles may refer to, and what each builds. A checkpoint that names another one is not read. */
import { SelscanError } from "../errors.ts"
import { isDtype, type TensorDtype } from "./dtypes.ts"
import { type Builder, isKey, isTuple, kindOf, PickleGlobal, PickleObject, type PickleValue } from "./pickle.ts"
import { shown } from "./source.ts"

/** Bytes that tensors share: an entry `data/{key}` of the archive. */
export class TorchStorage extends PickleObject {
  readonly kind = "a storage"
  readonly key: string
  /** Of its elements; undefined where it has bytes, and each tensor says what they are. */
  readonly dtype: TensorDtype | undefined
  readonly elements: number

  constructor(key: string, dtype: TensorDtype | undefined, elements: number) {
    super()
    this.key = key
    this.dtype = dtype
    this.elements = elements
  }
}

/** A view of a storage: element (i, j, …) is the storage's at offset + i·strides[0] + j·strides[1] + … */
export class TorchTensor extends PickleObject {
  readonly kind = "a tensor"
  readonly storage: TorchStorage
  readonly dtype: TensorDtype
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  /** In elements. */
  readonly offset: number

  constructor(
    storage: TorchStorage,
    dtype: TensorDtype,
    view: { readonly shape: readonly number[]; readonly strides: readonly number[]; readonly offset: number },
  ) {
    super()
    this.storage = storage
    this.dtype = dtype
    this.shape = view.shape
    this.strides = view.strides
    this.offset = view.offset
  }
}

/** The storage classes of module torch by their dtypes; complex, quantised and 8-bit floating ones are none that a model here has. */
const storageDtypes: Readonly<Record<string, TensorDtype | undefined>> = {
  DoubleStorage: "F64",
  FloatStorage: "F32",
  HalfStorage: "F16",
  BFloat16Storage: "BF16",
  LongStorage: "I64",
  IntStorage: "I32",
  ShortStorage: "I16",
  CharStorage: "I8",
  ByteStorage: "U8",
  BoolStorage: "BOOL",
}
const untyped = "UntypedStorage"

/** torch's dtypes by ours: `torch.bfloat16` is BF16. */
const dtypeNames: Readonly<Record<string, TensorDtype>> = {
  ...{ float64: "F64", double: "F64", float32: "F32", float: "F32", float16: "F16", half: "F16", bfloat16: "BF16" },
  ...{ int64: "I64", long: "I64", int32: "I32", int: "I32", int16: "I16", short: "I16", int8: "I8" },
  ...{ uint8: "U8", uint16: "U16", uint32: "U32", uint64: "U64", bool: "BOOL" },
}
const dimensionsMost = 64

/** What a pickle of the file `where` may build; each storage is one object, however often it is referred to. */
export function torchBuilder(where: string): Builder {
  const storages = new Map<string, TorchStorage>()
  const known = globalsOf(where)
  return {
    global: (module, name) => {
      const global = known.get(`${module}.${name}`)
      if (global !== undefined) return global
      const got = `the global ${shown(`${module}.${name}`)}`
      const remedy = "save the model's state_dict() alone with torch.save, in torch, if you trust the file"
      const message = `${where}: expected tensors and plain values only, got ${got}, which is never loaded; ${remedy}`
      throw new SelscanError("BAD_FILE", message, { global: `${module}.${name}` })
    },
    persistent: (id) => {
      const storage = storageOf(id, where)
      const before = storages.get(storage.key)
      if (before === undefined) {
        storages.set(storage.key, storage)
        return storage
      }
      if (before.dtype !== storage.dtype || before.elements !== storage.elements) {
        refuse(where, `storage ${shown(storage.key)} to be one`, "two descriptions of it")
      }
      return before
    },
  }
}

function refuse(where: string, expected: string, got: string): never {
  const remedy = "get the file again, or save the model's state_dict() alone with torch.save"
  throw new SelscanError("BAD_FILE", `${where}: expected ${expected}, got ${got}; ${remedy}`, { expected, got })
}

/** Elements and characters that calls may copy: a list that the memo has once can be given to any number of calls. */
const copiedMost = 1 << 24
const deviceMost = 32

function globalsOf(where: string): ReadonlyMap<string, PickleGlobal> {
  const known = new Map<string, PickleGlobal>()
  const add = (name: string, call?: PickleGlobal["call"]) => known.set(name, new PickleGlobal(name, call))
  let copied = 0
  const copy = <Long extends { readonly length: number }>(long: Long): Long => {
    copied += long.length
    return copied <= copiedMost
      ? long
      : refuse(where, `at most ${copiedMost} elements in lists that calls copy`, "more")
  }
  const list = (value: PickleValue | undefined) => copy(listOf(value ?? [], where))
  const tensor = (args: readonly PickleValue[]) => tensorOf(args, undefined, where)
  const first = ([value]: readonly PickleValue[]) => value ?? null
  add("collections.OrderedDict", ([pairs]) => dictOf(list(pairs), where))
  for (const builtins of ["builtins", "__builtin__"]) {
    for (const kind of ["set", "frozenset"]) add(`${builtins}.${kind}`, ([values]) => setOf(list(values), where))
  }
  add("_codecs.encode", ([text]) => latin1Bytes(typeof text === "string" ? copy(text) : text, where))
  add("torch.Size", ([sizes]) => Object.freeze([...list(sizes)]))
  add("torch.device", ([type, index = null]) => deviceOf(type, index, where))
  add("torch._utils._rebuild_tensor", tensor)
  add("torch._utils._rebuild_tensor_v2", tensor)
  // Of dtypes that have no storage class: the storage has bytes, the seventh argument is the dtype.
  add("torch._utils._rebuild_tensor_v3", (args) => tensorOf(args, args[6], where))
  // A parameter's own attributes, such as whether weight decay applies, say nothing about its elements.
  add("torch._utils._rebuild_parameter", first)
  add("torch._utils._rebuild_parameter_with_state", first)
  add("torch._tensor._rebuild_from_type_v2", ([build, , args]) => {
    const call = build instanceof PickleGlobal && build.name.startsWith("torch._utils.") ? build.call : undefined
    return call && isTuple(args) ? call(args) : refuse(where, "a tensor to rebuild", kindOf(build))
  })
  for (const name of ["torch.Tensor", "torch.nn.parameter.Parameter"]) add(name)
  for (const name of [...Object.keys(storageDtypes), untyped, `storage.${untyped}`]) add(`torch.${name}`)
  for (const name of Object.keys(dtypeNames)) add(`torch.${name}`)
  return known
}

function listOf(value: PickleValue, where: string): readonly PickleValue[] {
  return Array.isArray(value) ? value : refuse(where, "a list", kindOf(value))
}

function dictOf(pairs: readonly PickleValue[], where: string): ReadonlyMap<PickleValue, PickleValue> {
  const entries = pairs.map((pair) => {
    const [key, value] = Array.isArray(pair) && pair.length === 2 ? (pair as PickleValue[]) : []
    if (key === undefined || value === undefined) return refuse(where, "pairs of a dict", kindOf(pair))
    return [keyOf(key, where), value] as const
  })
  return new Map(entries)
}

const setOf = (values: readonly PickleValue[], where: string): ReadonlySet<PickleValue> =>
  new Set(values.map((value) => keyOf(value, where)))

const keyOf = (key: PickleValue, where: string): PickleValue => (isKey(key) ? key : refuse(where, "keys", kindOf(key)))

function deviceOf(type: PickleValue | undefined, index: PickleValue, where: string): string {
  const named = typeof type === "string" && type.length <= deviceMost && (index === null || isNatural(index))
  if (!named) return refuse(where, "the name of a device", kindOf(type))
  return index === null ? type : `${type}:${index}`
}

/** Bytes as protocol 2 has them, which knows text alone. */
function latin1Bytes(text: PickleValue | undefined, where: string): Uint8Array {
  if (typeof text !== "string") return refuse(where, "text to encode", kindOf(text))
  return new Uint8Array(Buffer.from(text, "latin1"))
}

/** ("storage", class, key, where it was, elements) */
function storageOf(id: PickleValue, where: string): TorchStorage {
  const [word, type, key, , elements] = isTuple(id) ? id : []
  const name = type instanceof PickleGlobal ? /^torch\.(?:storage\.)?(\w+)$/.exec(type.name)?.[1] : undefined
  const known = name !== undefined && (name === untyped || Object.hasOwn(storageDtypes, name))
  if (word !== "storage" || !known || typeof key !== "string") return refuse(where, "a storage", kindOf(id))
  if (!isNatural(elements)) return refuse(where, `a size of storage ${shown(key)}`, kindOf(elements))
  return new TorchStorage(key, storageDtypes[name], elements)
}

const isNatural = (value: PickleValue | undefined): value is number =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= 0

/** (storage, offset, shape, strides, …) */
function tensorOf(args: readonly PickleValue[], dtypeGiven: PickleValue | undefined, where: string): TorchTensor {
  const [storage, offset, shape, strides] = args
  if (!(storage instanceof TorchStorage)) return refuse(where, "a tensor's storage", kindOf(storage))
  const dtype = storage.dtype ?? dtypeOf(dtypeGiven)
  if (dtype === undefined) return refuse(where, `a dtype of ${Object.keys(dtypeNames).join(", ")}`, kindOf(dtypeGiven))
  const sizes = naturals(shape)
  const steps = naturals(strides)
  const view = isNatural(offset) && sizes && steps && sizes.length === steps.length
  if (!view)
    return refuse(where, `a tensor's offset, shape and strides, of at most ${dimensionsMost} dimensions`, "others")
  return new TorchTensor(storage, dtype, { offset, shape: sizes, strides: steps })
}

function naturals(value: PickleValue | undefined): readonly number[] | undefined {
  const good = Array.isArray(value) && value.length <= dimensionsMost && value.every(isNatural)
  return good ? (value as readonly number[]) : undefined
}

function dtypeOf(value: PickleValue | undefined): TensorDtype | undefined {
  const name = value instanceof PickleGlobal ? /^torch\.(\w+)$/.exec(value.name)?.[1] : undefined
  const dtype = name !== undefined && Object.hasOwn(dtypeNames, name) ? dtypeNames[name] : undefined
  return dtype !== undefined && isDtype(dtype) ? dtype : undefined
}
