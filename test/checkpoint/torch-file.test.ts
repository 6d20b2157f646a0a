import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import test from "ava"
import fc from "fast-check"
import { openTorch, readTorch, TorchTensor } from "../../lib/checkpoint/torch-file.ts"
import { temporaryFolder } from "./helpers.ts"
import * as w from "./torch-writer.ts"

const folder = temporaryFolder()
const golden = (name: string) => fileURLToPath(new URL(`../golden/data/checkpoints/${name}`, import.meta.url))
const read = (bytes: Uint8Array) => readTorch(w.inMemory(bytes))
const floats = (bytes: Uint8Array) => [...new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)]

test("the plain values beside the tensors of a real file are read", async (t) => {
  await using file = await openTorch(golden("edge_nested.pth"))
  const contents = file.contents as Map<string, unknown>
  t.deepEqual([...contents.keys()], ["model", "epoch", "lr", "name", "nested"])
  t.deepEqual(
    ["epoch", "lr", "name"].map((key) => contents.get(key)),
    [3, 0.001, "edge"],
  )
  const [tensor, ...rest] = (contents.get("nested") as Map<string, unknown[]>).get("list")!
  t.true(tensor instanceof TorchTensor)
  t.deepEqual(rest, [1, null, true])
  t.is(file.tensors.size, 16)
})

test("tensors that are one in the file are known to be the same, others are not", async (t) => {
  await using file = await openTorch(golden("edge_cases.bin"))
  t.true(file.same("plain", "alias_of_plain"))
  t.false(file.same("plain", "expanded"))
  t.false(file.same("offset_row_slice", "strided_column"))
  t.is((file.tensors.get("expanded") as { sizeBytes: number }).sizeBytes, 80)
})

test("any view of a storage is its elements in row-major order, whatever part is asked for", async (t) => {
  const axis = fc.record({ size: fc.integer({ min: 1, max: 6 }), stride: fc.nat({ max: 9 }) })
  const view = fc.tuple(fc.array(axis, { maxLength: 4 }), fc.nat({ max: 9 }), fc.constantFrom(1, 2, 4, 8))
  const part = fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.double({ min: 0, max: 1, noNaN: true }))
  const types = { 1: "ByteStorage", 2: "ShortStorage", 4: "IntStorage", 8: "LongStorage" } as Record<number, string>
  const same = fc.asyncProperty(view, part, async ([axes, offset, size], [a, b]) => {
    const [shape, strides] = [axes.map((one) => one.size), axes.map((one) => one.stride)]
    const elements = axes.reduce((all, one) => all + (one.size - 1) * one.stride, offset + 1)
    const data = Uint8Array.from({ length: elements * size }, (_, i) => (i * 37) % 251)
    const from = w.storage("0", elements, types[size])
    await using file = await read(w.torchFile(w.dict({ a: w.tensor(from, { shape, strides, offset }) }), { 0: data }))
    const whole = await file.read("a")
    t.deepEqual(whole, elementsOf(data, size, { shape, strides, offset }))
    const [begin, end] = [Math.floor(Math.min(a, b) * whole.length), Math.ceil(Math.max(a, b) * whole.length)]
    const some = new Uint8Array(end - begin)
    await file.readInto("a", some, begin)
    t.deepEqual(some, whole.slice(begin, end))
  })
  await fc.assert(same, { numRuns: 500, seed: 41 })
})

/** One by one. */
function elementsOf(data: Uint8Array, size: number, { shape, strides, offset }: Required<w.ViewOf>): Uint8Array {
  const count = shape.reduce((product, one) => product * one, 1)
  const result = new Uint8Array(count * size)
  for (let i = 0; i < count; i++) {
    let [rest, at] = [i, offset]
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      at += (rest % shape[axis]!) * strides[axis]!
      rest = Math.floor(rest / shape[axis]!)
    }
    result.set(data.subarray(at * size, (at + 1) * size), i * size)
  }
  return result
}

test("a transposed matrix larger than the window is read through it", async (t) => {
  const [rows, columns] = [1500, 700]
  const file = w.torchFile(
    w.dict({ a: w.tensor(w.storage("0", rows * columns), { shape: [columns, rows], strides: [1, columns] }) }),
    {
      0: w.counted(rows * columns),
    },
  )
  let largest = 0
  const bytes = w.inMemory(file)
  const counting = {
    ...bytes,
    readInto: (target: Uint8Array, at: number) => {
      largest = Math.max(largest, target.length)
      return bytes.readInto(target, at)
    },
  }
  await using opened = await readTorch(counting)
  const values = await opened.readF32("a")
  t.true(values.every((value, i) => value === (i % rows) * columns + Math.floor(i / rows)))
  t.true(largest <= 1 << 20, `${largest} bytes at once`)
})

const one = w.tensor(w.storage("0", 2), { shape: [2] })
const two = { 0: w.counted(2) }

test("a state dict is found where training scripts put it, and prefixes of wrappers are left out", async (t) => {
  const model = w.dict({ "layer.weight": one })
  const names = async (contents: Uint8Array) => {
    await using file = await read(w.torchFile(contents, two))
    return [...file.tensors.keys()]
  }
  t.deepEqual(await names(model), ["layer.weight"])
  for (const key of ["state_dict", "model_state_dict", "model"]) {
    const whole = w.dict({ iter_num: w.int(7), rng: one, [key]: model, optimizer: w.dict({ state: w.dict({}) }) })
    t.deepEqual(await names(whole), ["layer.weight"], key)
  }
  for (const prefix of ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]) {
    t.deepEqual(await names(w.dict({ [`${prefix}a`]: one, [`${prefix}b`]: one })), ["a", "b"], prefix)
  }
  t.deepEqual(await names(w.dict({ "module.a": one, b: one })), ["module.a", "b"])
  t.deepEqual(await names(w.dict({ a: one, version: w.int(1), note: w.text("x") })), ["a"])
})

test("the newer ways of torch to write a tensor are read", async (t) => {
  const untyped = w.storage("0", 8, "UntypedStorage", "torch.storage")
  const sizes = [w.int(0), w.tuple(w.int(4)), w.tuple(w.int(1)), w.no, w.orderedDict]
  const v3 = w.call(w.global("torch._utils", "_rebuild_tensor_v3"), untyped, ...sizes, w.global("torch", "uint16"))
  const parameter = w.call(
    w.global("torch._utils", "_rebuild_parameter_with_state"),
    one,
    w.no,
    w.orderedDict,
    w.dict({ _no_weight_decay: w.int(1) }),
  )
  const subclass = w.call(
    w.global("torch._tensor", "_rebuild_from_type_v2"),
    w.global("torch._utils", "_rebuild_parameter"),
    w.global("torch.nn.parameter", "Parameter"),
    w.tuple(one, w.no, w.orderedDict),
    w.dict({ tag: w.text("x") }),
  )
  const size = w.call(w.global("torch", "Size"), w.tuple(w.int(2), w.int(3)))
  const device = w.call(w.global("torch", "device"), w.text("cuda"), w.int(1))
  const encoded = w.call(w.global("_codecs", "encode"), w.text("\u00ff\u0001"), w.text("latin1"))
  const parts = { state: w.dict({ v3 }), size, device, encoded, dtype: w.global("torch", "bfloat16") }
  const plain = w.dict({ model: w.dict({ v3 }), ...parts })
  await using file = await read(w.torchFile(plain, { 0: Uint8Array.of(1, 0, 2, 0, 3, 0, 4, 1) }))
  t.deepEqual([...(await file.readF32("v3"))], [1, 2, 3, 260])
  t.is(file.tensors.get("v3")?.dtype, "U16")
  const contents = file.contents as Map<string, unknown>
  t.deepEqual(contents.get("size"), Object.freeze([2, 3]))
  t.is(contents.get("device"), "cuda:1")
  t.deepEqual(contents.get("encoded"), Uint8Array.of(255, 1))
  await using other = await read(w.torchFile(w.dict({ parameter, subclass }), two))
  t.deepEqual(floats(await other.read("parameter")), [0, 1])
  t.deepEqual(floats(await other.read("subclass")), [0, 1])
})

test("an archive without descriptors, without alignment, with wide sizes or without the wide record is the same", async (t) => {
  const contents = w.pickle(w.dict({ a: one }))
  const entries = (wide: boolean): w.Entry[] => [
    { name: "x/data.pkl", data: contents, wide },
    { name: "x/data/0", data: w.counted(2), wide },
    { name: "x/byteorder", data: w.bytesOf("little"), wide },
  ]
  for (const wide of [false, true]) {
    for (const options of [{}, { described: false }, { alignment: 1 }, { alignment: 4096 }, { wideEnd: false }]) {
      await using file = await read(w.zip(entries(wide), options))
      t.deepEqual(floats(await file.read("a")), [0, 1])
    }
  }
})

const legacy = w.bytesOf(
  Uint8Array.of(0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19),
  ".",
)
const entryOf = (name: string, data = "") => [{ name: `archive/${name}`, data: w.bytesOf(data) }]
const view = (shape: number[], strides?: number[], offset = 0) =>
  w.torchFile(w.dict({ a: w.tensor(w.storage("0", 2), { shape, ...(strides && { strides }), offset }) }), two)
const evil = w.call(w.global("os", "system"), w.text("true"))

/** What is wrong, the file, and what the message must say. */
const refused: [string, Uint8Array, RegExp][] = [
  ["an empty file", new Uint8Array(0), /got an empty file/],
  ["text", w.bytesOf("hello, world"), /got one that is no zip archive/],
  [
    "a pointer of Git LFS",
    w.bytesOf("version https://git-lfs.github.com/spec/v1\noid"),
    /pointer of Git LFS; .*git lfs pull/,
  ],
  ["a file of torch before 1.6", legacy, /got one of torch before 1\.6; load it with torch, and save it again/],
  [
    "TorchScript",
    w.torchFile(w.dict({ a: one }), two, { extra: entryOf("constants.pkl") }),
    /TorchScript .*state_dict\(\)/,
  ],
  [
    "big-endian tensors",
    w.torchFile(w.dict({ a: one }), two, { extra: entryOf("byteorder", "big") }),
    /got big-endian ones/,
  ],
  [
    "an order that is none",
    w.torchFile(w.dict({ a: one }), two, { extra: entryOf("byteorder", "middle") }),
    /got "middle"/,
  ],
  ["no pickle", w.zip([{ name: "archive/data/0", data: w.counted(2) }]), /one data\.pkl .*got none/],
  [
    "two pickles",
    w.torchFile(w.dict({ a: one }), two, { extra: [{ name: "b/data.pkl", data: w.counted(1) }] }),
    /got several/,
  ],
  [
    "a call of os.system",
    w.torchFile(w.dict({ a: one, b: evil }), two),
    /the global "os\.system", which is never loaded/,
  ],
  [
    "a global that is only named",
    w.torchFile(w.dict({ a: one, b: w.global("builtins", "eval") }), two),
    /"builtins\.eval"/,
  ],
  [
    "a numpy scalar",
    w.torchFile(w.dict({ a: one, b: w.global("numpy.core.multiarray", "scalar") }), two),
    /numpy\.core/,
  ],
  ["a name of Object.prototype", w.torchFile(w.dict({ a: w.global("torch", "__proto__") }), two), /"torch\.__proto__"/],
  [
    "a storage class that is none",
    w.torchFile(w.dict({ a: w.tensor(w.storage("0", 2, "QInt8Storage"), { shape: [2] }) }), two),
    /torch\.QInt8Storage/,
  ],
  ["no dict", w.torchFile(w.list(one), two), /a dict of tensors, got a list/],
  ["a tensor alone", w.torchFile(one, two), /a dict of tensors, got a tensor/],
  ["an empty dict", w.torchFile(w.dict({})), /got an empty one; save the model's state_dict\(\)/],
  ["a dict without tensors", w.torchFile(w.dict({ epoch: w.int(1) })), /got one of "epoch"/],
  [
    "a name that is a number",
    w.torchFile(w.bytesOf("}", w.int(1), one, "s"), two),
    /names of tensors in text, got a number/,
  ],
  ["a storage that is not there", w.torchFile(w.dict({ a: one })), /a storage data\/"0", got none/],
  ["a storage of another size", w.torchFile(w.dict({ a: one }), { 0: w.counted(3) }), /a storage of 8 bytes, got 12/],
  [
    "a storage described twice",
    w.torchFile(w.dict({ a: one, b: w.tensor(w.storage("0", 1), { shape: [1] }) }), two),
    /two descriptions/,
  ],
  ["a view beyond its storage", view([3]), /a view of its storage's 2 elements, got one beyond/],
  ["a view whose last row is beyond", view([2, 2], [1, 1]), /one beyond/],
  ["an offset beyond", view([1], [1], 2), /one beyond/],
  ["a stride beyond 2^53", view([2], [2 ** 53 - 1]), /one beyond/],
  ["a negative stride", view([2], [-1], 1), /offset, shape and strides/],
  ["strides of another rank", view([2], [1, 1]), /offset, shape and strides/],
  ["a hundred dimensions", view(Array(100).fill(1)), /at most 64 dimensions/],
  ["a shape beyond 2^53", view([2 ** 40, 2 ** 40], [0, 0]), /2\^53 − 1 bytes/],
  [
    "a persistent id that is no storage",
    w.torchFile(w.dict({ a: w.bytesOf(w.text("x"), "Q") })),
    /a storage, got a text/,
  ],
  [
    "an untyped storage without a dtype",
    w.torchFile(w.dict({ a: w.tensor(w.storage("0", 8, "UntypedStorage"), { shape: [2] }) }), two),
    /a dtype of/,
  ],
]

for (const [what, bytes, says] of refused) {
  test(`${what} is refused in one sentence`, async (t) => {
    const path = join(folder, `${what.replaceAll(/[^a-z0-9]/gi, "-")}.bin`)
    writeFileSync(path, bytes)
    const error = await t.throwsAsync(openTorch(path), { name: "SelscanError", code: "BAD_FILE", message: says })
    t.true(error!.message.startsWith(path))
    t.regex(error!.message, /^[^\n]*: expected [^\n]*, got [^\n]*; [^\n]*$/)
  })
}

test("a file that is not there, and a part that a tensor has not", async (t) => {
  await t.throwsAsync(openTorch(join(folder, "absent.bin")), {
    code: "NOT_FOUND",
    message: /a file of torch\.save, got none/,
  })
  await t.throwsAsync(openTorch(folder), { code: "BAD_FILE", message: /no regular file/ })
  await using file = await openTorch(golden("edge_cases.bin"))
  await t.throwsAsync(file.read("plane"), { code: "NOT_FOUND", message: /did you mean plain\?/ })
  await t.throwsAsync(file.readInto("plain", new Uint8Array(8), 44), {
    code: "BAD_INPUT",
    message: /part of its 48 bytes/,
  })
  await file.close()
  await file.close()
  await t.throwsAsync(file.read("plain"), { code: "DISPOSED" })
})

test("a real file cut at any offset is refused", async (t) => {
  const bytes = new Uint8Array(readFileSync(golden("edge_nested.pth")))
  for (let length = 0; length < bytes.length; length++) {
    await t.throwsAsync(read(bytes.slice(0, length)), { code: "BAD_FILE" }, `${length}`)
  }
  await t.throwsAsync(read(w.bytesOf(bytes, 0)), { code: "BAD_FILE" })
})
