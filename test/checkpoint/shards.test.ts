import { execFileSync } from "node:child_process"
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import { writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { openWeights, parseIndex } from "../../lib/checkpoint/shards.ts"
import { temporaryFolder } from "./helpers.ts"
import * as w from "./torch-writer.ts"

const folder = temporaryFolder()
let made = 0

/** A folder of shards, each with tensors of one number, and an index. */
async function shards(files: Record<string, Record<string, number>>, index: unknown): Promise<string> {
  const path = join(folder, String(made++))
  mkdirSync(path)
  for (const [file, tensors] of Object.entries(files)) {
    const entries = Object.entries(tensors).map(([name, value]) => {
      return { name, dtype: "F32" as const, shape: [1], data: new Uint8Array(Float32Array.of(value).buffer) }
    })
    await writeSafetensors(join(path, file), entries)
  }
  const text = typeof index === "string" ? index : JSON.stringify(index)
  if (index !== undefined) writeFileSync(join(path, "model.safetensors.index.json"), text)
  return path
}

const [one, two] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] as const
const files = { [one]: { a: 1, b: 2 }, [two]: { c: 3 } }
const weight_map = { a: one, b: one, c: two }

test("tensors are read from the shards that the index names", async (t) => {
  await using weights = await openWeights(await shards(files, { metadata: { total_size: 12 }, weight_map }))
  t.deepEqual([...weights.tensors.keys()], ["a", "b", "c"])
  for (const [name, value] of [
    ["b", 2],
    ["c", 3],
  ] as const) {
    const bytes = new Uint8Array(4)
    await weights.readInto(name, bytes)
    t.deepEqual([...new Float32Array(bytes.buffer)], [value])
  }
  await t.throwsAsync(weights.readInto("d", new Uint8Array(4)), { code: "NOT_FOUND", message: /tensor named "d"/ })
  await t.throwsAsync(weights.readInto("a", new Uint8Array(8)), { code: "BAD_INPUT" })
})

test("a whole file is taken where there is one, whatever lies beside it", async (t) => {
  await using weights = await openWeights(await shards({ "model.safetensors": { z: 1 }, ...files }, { weight_map }))
  t.deepEqual([...weights.tensors.keys()], ["z"])
})

const torchNames = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"] as const
/** A file of torch.save with tensors of one number, all in one storage. */
const torchOf = (...names: readonly string[]) => {
  const number = (i: number) => w.tensor(w.storage("0", 4), { shape: [1], offset: i })
  return w.torchFile(w.dict(Object.fromEntries(names.map((name, i) => [name, number(i)]))), { 0: w.counted(4) })
}

test("a folder is searched for safetensors, then .bin, then one .pth, each whole before in shards", async (t) => {
  const path = await shards({}, undefined)
  const index = JSON.stringify({ weight_map: { e: torchNames[0], f: torchNames[1] } })
  // From what is found last to what is found first: each file that is added is the one that is taken.
  const steps: [file: string, data: Uint8Array | string, taken: string[]][] = [
    ["other.pth", torchOf("g"), ["g"]],
    [torchNames[0], torchOf("e"), ["g"]],
    [torchNames[1], torchOf("f"), ["g"]],
    ["pytorch_model.bin.index.json", index, ["e", "f"]],
    ["pytorch_model.bin", torchOf("d"), ["d"]],
  ]
  for (const [file, data, taken] of steps) {
    writeFileSync(join(path, file), data)
    await using weights = await openWeights(path)
    t.deepEqual([...weights.tensors.keys()], taken, file)
  }
  const both = await shards(files, { weight_map })
  writeFileSync(join(both, "pytorch_model.bin"), torchOf("d"))
  await using weights = await openWeights(both)
  t.deepEqual([...weights.tensors.keys()], ["a", "b", "c"])
})

test("shards of torch.save are read, and know which of their tensors are the same", async (t) => {
  const path = await shards({}, undefined)
  const twice = w.tensor(w.storage("0", 4), { shape: [1], offset: 2 })
  writeFileSync(join(path, torchNames[0]), w.torchFile(w.dict({ a: twice, b: twice }), { 0: w.counted(4) }))
  writeFileSync(join(path, torchNames[1]), torchOf("c"))
  const index = { weight_map: { a: torchNames[0], b: torchNames[0], c: torchNames[1] } }
  writeFileSync(join(path, "pytorch_model.bin.index.json"), JSON.stringify(index))
  await using weights = await openWeights(path)
  const bytes = new Uint8Array(4)
  await weights.readInto("b", bytes)
  t.is(new Float32Array(bytes.buffer)[0], 2)
  t.deepEqual([weights.same?.("a", "b"), weights.same?.("a", "c"), weights.same?.("x", "a")], [true, false, false])
  const wrong = { weight_map: { ...index.weight_map, c: "model.safetensors" } }
  writeFileSync(join(path, "pytorch_model.bin.index.json"), JSON.stringify(wrong))
  await t.throwsAsync(openWeights(path), { code: "BAD_CHECKPOINT", message: /plain name of a \.bin file for "c"/ })
})

test("several .pth files are not guessed among", async (t) => {
  const path = await shards({}, undefined)
  for (const name of ["b", "a"]) writeFileSync(join(path, `${name}.pth`), torchOf("x"))
  const few = await t.throwsAsync(openWeights(path), {
    code: "BAD_CHECKPOINT",
    message: /got a\.pth and b\.pth; leave the one/,
  })
  t.regex(
    few!.message,
    /^[^\n]*: expected model\.safetensors, pytorch_model\.bin, the index of either, or one \.pth file, got/,
  )
  for (let i = 0; i < 5; i++) writeFileSync(join(path, `c${i}.pth`), torchOf("x"))
  await t.throwsAsync(openWeights(path), { code: "BAD_CHECKPOINT", message: /got a\.pth, b\.pth, c0\.pth and 4 more;/ })
})

test("a closed source reads nothing", async (t) => {
  const weights = await openWeights(await shards(files, { weight_map }))
  await weights.close()
  await weights.close()
  await t.throwsAsync(weights.readInto("a", new Uint8Array(4)), { code: "DISPOSED" })
})

const refused: [string, typeof files | Record<string, never>, unknown, string, RegExp][] = [
  ["no weights at all", {}, undefined, "NOT_FOUND", /: expected model\.safetensors, .* none there/],
  ["a missing shard", { [one]: files[one] } as never, { weight_map }, "NOT_FOUND", /00002\.safetensors: .* none there/],
  [
    "a tensor in another shard",
    files,
    { weight_map: { ...weight_map, b: two } },
    "BAD_CHECKPOINT",
    /"b" in model-00002\S+, got it in model-00001/,
  ],
  [
    "a tensor that no shard has",
    files,
    { weight_map: { ...weight_map, x: two } },
    "BAD_CHECKPOINT",
    /"x" in \S+, got no shard that has it/,
  ],
  [
    "a tensor that the index leaves out",
    files,
    { weight_map: { a: one, c: two } },
    "BAD_CHECKPOINT",
    /"b" in the index, got it in model-00001/,
  ],
  [
    "a tensor in two shards",
    { [one]: { a: 1, b: 2, c: 3 }, [two]: { c: 3 } } as never,
    { weight_map },
    "BAD_CHECKPOINT",
    /"c" in model-00002\S+ alone, got it in model-00001/,
  ],
  ["an index that is no JSON", files, "{", "BAD_CHECKPOINT", /expected JSON/],
  ["an index that is null", files, "null", "BAD_CHECKPOINT", /object weight_map/],
  ["an index without a map", files, { metadata: {} }, "BAD_CHECKPOINT", /object weight_map/],
  ["an index of nothing", files, { weight_map: {} }, "BAD_CHECKPOINT", /tensors in weight_map, got none/],
  ["a list of shards", files, { weight_map: [one] }, "BAD_CHECKPOINT", /object weight_map/],
  ["a shard that is a number", files, { weight_map: { a: 1 } }, "BAD_CHECKPOINT", /plain name .* for "a", got number/],
]

for (const [what, files, index, code, says] of refused) {
  test(`${what} is one clear error`, async (t) => {
    const path = await shards(files, index)
    const error = await t.throwsAsync(openWeights(path), { name: "SelscanError", code, message: says })
    t.regex(error.message, /^[^\n]*: expected [^\n]*, got [^\n]*; [^\n]*$/)
  })
}

test("no name in an index leads out of the folder", (t) => {
  const names = ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "..\\x.safetensors"]
  const more = [
    "C:x.safetensors",
    ".safetensors",
    "..safetensors",
    "x.bin",
    "",
    "a\0.safetensors",
    "x.safetensors/..",
    "é.safetensors",
  ]
  for (const name of [...names, ...more]) {
    const index = JSON.stringify({ weight_map: { a: name } })
    t.throws(
      () => parseIndex(index, "i"),
      { code: "BAD_CHECKPOINT", message: /plain name of a \.safetensors file/ },
      name,
    )
  }
  t.is(parseIndex('{"weight_map": {"__proto__": "m.safetensors"}}', "i").get("__proto__"), "m.safetensors")
})

test("a shard that is no regular file is refused, and those opened before it are closed", async (t) => {
  const path = await shards({ [one]: { a: 1, b: 2 } }, { weight_map })
  mkdirSync(join(path, two))
  await t.throwsAsync(openWeights(path), { code: "BAD_FILE", message: /no regular file/ })
  const looping = await shards({ [one]: { a: 1, b: 2 } }, { weight_map })
  symlinkSync(two, join(looping, two))
  await t.throwsAsync(openWeights(looping), { code: "BAD_FILE", message: /ELOOP/ })
})

test("an index that is no regular file is refused, not waited for", async (t) => {
  const [piped, endless] = [await shards(files, undefined), await shards(files, undefined)]
  execFileSync("mkfifo", [join(piped, "model.safetensors.index.json")])
  symlinkSync("/dev/zero", join(endless, "model.safetensors.index.json"))
  for (const one of [piped, endless]) {
    await t.throwsAsync(openWeights(one), { code: "BAD_FILE", message: /an index of .* bytes, got no regular file/ })
  }
})

test("a text that is no JSON is quoted on one line, without what a terminal obeys", async (t) => {
  const path = await shards(files, '{\n "weight_map": \u001b[2J,\n}')
  const { message } = await t.throwsAsync(openWeights(path), { code: "BAD_CHECKPOINT", message: /expected JSON/ })
  t.notRegex(message, /\p{Cc}/u)
})
