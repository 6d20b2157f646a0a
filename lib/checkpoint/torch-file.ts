/**
 * Reads what torch.save writes, PyTorch's `.bin` and `.pth`, by position: opening reads the archive's directory and its pickle of some
 * kilobytes, a tensor's bytes are read when asked for. Nothing of the file is ever run.
 *
 *   name/data.pkl   the objects; a tensor is a view of a storage      name/data/0, name/data/1, …   the storages
 *   name/byteorder  little or big                                     name/version                  3
 *
 * The state dict is the outermost dict, or the one under `state_dict`, `model_state_dict` or `model` (SAMBA's training has the latter beside
 * `iter_num` and `step_count`). A prefix that DistributedDataParallel or torch.compile put before every name is left out.
 */
import { SelscanError } from "../errors.ts"
import { dtypeSize, toF32 } from "./dtypes.ts"
import { tensorBytes } from "./header.ts"
import { kindOf, type PickleValue, unpickle } from "./pickle.ts"
import {
  allocate,
  type Bytes,
  checkInside,
  findTensor,
  PositionedFile,
  type StoredTensor,
  shown,
  type TensorSource,
} from "./source.ts"
import { gather, isContiguous, reachOf } from "./strided.ts"
import { TorchTensor, torchBuilder } from "./torch-globals.ts"
import { isZip, readZip, type ZipEntry } from "./zip.ts"

export type { PickleValue } from "./pickle.ts"
export { TorchTensor } from "./torch-globals.ts"

const kind = "a file of torch.save"
/** Some 200 bytes a tensor: room for a hundred thousand. */
const pickleBytesMost = 1 << 25
/** Where training scripts put the state dict. */
const holders = ["state_dict", "model_state_dict", "model"]
const prefixes = ["module.", "_orig_mod."]
/** What the format of torch before 1.6 begins with: its magic number, pickled. */
const legacyStart = [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19]
const pointerStart = "version https://git-lfs"

/** A tensor of the state dict, and where its elements lie. */
interface Placed extends StoredTensor {
  readonly view: TorchTensor
  readonly entry: ZipEntry
  readonly contiguous: boolean
}

/**
 * Opens a file of torch.save and checks all of it but the tensors' values.
 * @throws SelscanError NOT_FOUND when there is no file, BAD_FILE when it is damaged, of torch before 1.6, big-endian or TorchScript, or
 * names a global other than tensors and plain values need
 * @example
 * await using file = await openTorch("pytorch_model.bin")
 * const { shape } = file.tensors.get("backbone.embedding.weight")!
 * const weight = await file.readF32("backbone.embedding.weight")
 */
export async function openTorch(path: string): Promise<TorchFile> {
  return await readTorch(await PositionedFile.open(path, kind))
}

/** As `openTorch`, of bytes that are read by position; they are closed with the file, and when it is refused. */
export async function readTorch(bytes: Bytes): Promise<TorchFile> {
  try {
    const { path } = bytes
    await checkStart(bytes)
    const archive = archiveOf(await readZip(bytes), path)
    await checkOrder(bytes, archive)
    const pickle = archive.entry("data.pkl")!
    if (pickle.sizeBytes > pickleBytesMost) {
      refuse(path, `data.pkl of at most ${pickleBytesMost} bytes`, `${pickle.sizeBytes}`)
    }
    const text = new Uint8Array(pickle.sizeBytes)
    await bytes.readInto(text, pickle.offset)
    const contents = unpickle(text, `${path}: data.pkl`, torchBuilder(path))
    return new TorchFile(bytes, contents, placed(stateDict(contents, path), archive, path))
  } catch (error) {
    await bytes.close()
    throw error
  }
}

/** An open file; close it, or declare it with `await using`. */
export class TorchFile implements TensorSource {
  readonly path: string
  /** Of the state dict. */
  readonly tensors: ReadonlyMap<string, StoredTensor>
  /** All that was saved: dicts are Maps, lists and tuples arrays, tensors `TorchTensor`. */
  readonly contents: PickleValue
  readonly #placed: ReadonlyMap<string, Placed>
  readonly #bytes: Bytes

  /** @internal use `openTorch` */
  constructor(bytes: Bytes, contents: PickleValue, placed: ReadonlyMap<string, Placed>) {
    this.path = bytes.path
    this.tensors = placed
    this.contents = contents
    this.#placed = placed
    this.#bytes = bytes
  }

  /**
   * A tensor's bytes in a buffer of their own, row-major whatever its strides.
   * @throws SelscanError NOT_FOUND for an unknown name, BAD_FILE when the file was cut since, DISPOSED after close
   */
  async read(name: string): Promise<Uint8Array> {
    const bytes = allocate(findTensor(this.tensors, name, this.path), this.path)
    await this.readInto(name, bytes)
    return bytes
  }

  /**
   * Fills `target` with a tensor's bytes from byte `from` on: a large tensor passes through a small buffer.
   * @throws SelscanError BAD_INPUT when the tensor has fewer bytes, else as `read`
   */
  async readInto(name: string, target: Uint8Array, from = 0): Promise<void> {
    const tensor = findTensor(this.#placed, name, this.path)
    checkInside(tensor, from, target.length, this.path)
    if (target.length === 0) return
    const { view, entry, contiguous } = tensor
    const size = dtypeSize[tensor.dtype]
    if (contiguous) {
      await this.#bytes.readInto(target, entry.offset + view.offset * size + from)
      return
    }
    const first = Math.floor(from / size)
    const count = Math.ceil((from + target.length) / size) - first
    const direct = count * size === target.length && target.byteOffset % size === 0
    const elements = direct ? target : new Uint8Array(count * size)
    await gather(view, size, first, elements, (bytes, at) => this.#bytes.readInto(bytes, entry.offset + at * size))
    if (!direct) target.set(elements.subarray(from - first * size, from - first * size + target.length))
  }

  /** A tensor's elements as f32, whatever their dtype. */
  async readF32(name: string): Promise<Float32Array> {
    const { dtype } = findTensor(this.tensors, name, this.path)
    return toF32(dtype, await this.read(name))
  }

  /** Whether two names are one tensor, as a tied model's embedding and head are. */
  same(name: string, other: string): boolean {
    const [a, b] = [name, other].map((one) => findTensor(this.#placed, one, this.path)) as [Placed, Placed]
    const equal = (x: readonly number[], y: readonly number[]) => x.length === y.length && x.every((v, i) => v === y[i])
    const place = a.entry === b.entry && a.view.offset === b.view.offset && a.dtype === b.dtype
    return place && equal(a.shape, b.shape) && equal(a.view.strides, b.view.strides)
  }

  /** Waits for reads under way; a second call does nothing more. */
  close(): Promise<void> {
    return this.#bytes.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

const damaged = "the file is cut, damaged or not from torch.save, so get it again"

function refuse(where: string, expected: string, got: string, remedy = damaged): never {
  throw new SelscanError("BAD_FILE", `${where}: expected ${expected}, got ${got}; ${remedy}`, { expected, got })
}

/** Says what a file is that is no archive. */
async function checkStart(bytes: Bytes): Promise<void> {
  const start = new Uint8Array(Math.min(bytes.size, 64))
  await bytes.readInto(start, 0)
  if (isZip(start)) return
  const again = "load it with torch, and save it again with torch.save"
  if (legacyStart.every((byte, i) => start[i] === byte)) refuse(bytes.path, kind, "one of torch before 1.6", again)
  const text = Buffer.from(start).toString("latin1")
  if (text.startsWith(pointerStart))
    refuse(bytes.path, kind, "a pointer of Git LFS", "fetch the file itself with git lfs pull")
  refuse(bytes.path, kind, bytes.size === 0 ? "an empty file" : "one that is no zip archive")
}

interface Archive {
  entry(name: string): ZipEntry | undefined
}

/** The entries below the archive's one folder. */
function archiveOf(entries: ReadonlyMap<string, ZipEntry>, path: string): Archive {
  const roots = [...entries.keys()].filter((name) => /^[^/]+\/data\.pkl$/.test(name))
  if (roots.length !== 1)
    refuse(path, "one data.pkl in a folder of its archive", roots.length === 0 ? "none" : "several")
  const root = roots[0]!.slice(0, -"data.pkl".length)
  if (entries.has(`${root}constants.pkl`)) {
    refuse(path, kind, "a TorchScript archive, which holds a program", "save the module's state_dict() with torch.save")
  }
  return { entry: (name) => entries.get(root + name) }
}

/** Files of torch before 2.1 do not say; none of them is from a big-endian machine that anybody trains on. */
async function checkOrder(bytes: Bytes, archive: Archive): Promise<void> {
  const entry = archive.entry("byteorder")
  if (entry === undefined) return
  const word = new Uint8Array(Math.min(entry.sizeBytes, 16))
  await bytes.readInto(word, entry.offset)
  const order = Buffer.from(word).toString("latin1")
  if (order === "little") return
  const remedy = "save it again on a little-endian machine"
  refuse(bytes.path, "little-endian tensors", order === "big" ? "big-endian ones" : shown(order), remedy)
}

const isDict = (value: PickleValue | undefined): value is ReadonlyMap<PickleValue, PickleValue> => value instanceof Map

/** The tensors by name. What else a state dict holds is no weight. */
function stateDict(contents: PickleValue, path: string): ReadonlyMap<string, TorchTensor> {
  const remedy = "save the model's state_dict() with torch.save"
  if (!isDict(contents)) return refuse(path, "a dict of tensors", kindOf(contents), remedy)
  const hasTensors = (dict: ReadonlyMap<PickleValue, PickleValue>) =>
    [...dict.values()].some((value) => value instanceof TorchTensor)
  const held = holders.map((name) => contents.get(name)).find((dict) => isDict(dict) && hasTensors(dict))
  const dict = isDict(held) ? held : contents
  if (!hasTensors(dict)) {
    const keys = [...contents.keys()].slice(0, 5).map((key) => (typeof key === "string" ? shown(key) : kindOf(key)))
    const got = keys.length === 0 ? "an empty one" : `one of ${keys.join(", ")}`
    return refuse(path, `a dict of tensors, or one under ${holders.join(", ")}`, got, remedy)
  }
  const tensors = new Map<string, TorchTensor>()
  for (const [name, value] of dict) {
    if (!(value instanceof TorchTensor)) continue
    if (typeof name !== "string") return refuse(path, "names of tensors in text", kindOf(name), remedy)
    tensors.set(name, value)
  }
  return withoutPrefix(tensors)
}

function withoutPrefix(tensors: ReadonlyMap<string, TorchTensor>): ReadonlyMap<string, TorchTensor> {
  let named = tensors
  // Each at most once, in either order.
  for (const prefix of [...prefixes, ...prefixes]) {
    const everywhere = [...named.keys()].every((name) => name.startsWith(prefix))
    if (everywhere) named = new Map([...named].map(([name, tensor]) => [name.slice(prefix.length), tensor]))
  }
  return named
}

/** Holds every tensor to lie inside its storage, and every storage to be an entry of the size it states. */
function placed(
  tensors: ReadonlyMap<string, TorchTensor>,
  archive: Archive,
  path: string,
): ReadonlyMap<string, Placed> {
  const result = new Map<string, Placed>()
  for (const [name, view] of tensors) {
    const where = `${path}: tensor ${shown(name)}`
    const { storage, dtype, shape } = view
    const entry = archive.entry(`data/${storage.key}`)
    if (entry === undefined) return refuse(where, `a storage data/${shown(storage.key)}`, "none")
    const storageBytes = storage.elements * (storage.dtype === undefined ? 1 : dtypeSize[storage.dtype])
    if (entry.sizeBytes !== storageBytes) refuse(where, `a storage of ${storageBytes} bytes`, `${entry.sizeBytes}`)
    const elements = Math.floor(storageBytes / dtypeSize[dtype])
    const reach = reachOf(view)
    if (reach === undefined || reach > elements)
      refuse(where, `a view of its storage's ${elements} elements`, "one beyond them")
    const sizeBytes = tensorBytes(dtype, shape)
    if (sizeBytes === undefined) return refuse(where, "at most 2^53 − 1 bytes", `${dtype} [${shape}]`)
    result.set(name, { name, dtype, shape, sizeBytes, view, entry, contiguous: isContiguous(view) })
  }
  return result
}
