import { mkdirSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { readFile } from "node:fs/promises"
import { dirname, join } from "node:path"
import baseTest, { type TestFn } from "ava"
import type { DownloadProgress } from "../../lib/hub/options.ts"
import { bytesOf, commit, config, contents, name, withHub } from "./helpers.ts"
import { gitHash, hashOf, sha256 } from "./server.ts"

const test = baseTest.serial as TestFn
const context = withHub()
const weights = bytesOf(300_000)
const tokenizer = '{"model": {}}'
const files = { "config.json": config, "model.safetensors": weights, "tokenizer.json": tokenizer, "README.md": "words" }
const second = "2".repeat(40)
const root = "models--owner--model"

test("a model comes into the standard layout, with the files that it needs and no others", async (t) => {
  const { hub, get, newCache } = context
  const others = { "pytorch_model.bin": weights, "flax_model.msgpack": "x", "model.onnx": "x", ".gitattributes": "x" }
  hub.put(name, { ...files, ...others, "chat_template.jinja": "{{ x }}" }, commit)
  const cacheDir = await newCache()
  const folder = await get(name, { cacheDir })
  t.is(folder, join(cacheDir, root, "snapshots", commit))
  const wanted = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
  const hashes = [gitHash(Buffer.from("{{ x }}")), gitHash(config), sha256(weights), gitHash(Buffer.from(tokenizer))]
  t.deepEqual(
    await contents(join(cacheDir, root)),
    [
      ...hashes.map((hash) => join("blobs", hash)),
      join("refs", "main"),
      ...wanted.map((file) => join("snapshots", commit, file)),
    ].sort(),
  )
  for (const [i, file] of wanted.entries())
    t.is(readlinkSync(join(folder, file)), join("..", "..", "blobs", hashes[i]!))
  t.deepEqual(await readFile(join(folder, "model.safetensors")), weights)
  t.is(await readFile(join(cacheDir, root, "refs", "main"), "utf8"), commit)
})

test("what is cached is asked for once: a branch for its commit, a commit not at all, and offline nothing", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, files, commit)
  const cacheDir = await newCache()
  const folder = await get(name, { cacheDir })
  hub.reset()
  t.is(await get(name, { cacheDir }), folder)
  t.is(hub.asked.length, 1)
  hub.reset()
  t.is(await get(`${name}@${commit}`, { cacheDir }), folder)
  t.is(await get(name, { cacheDir, offline: true }), folder)
  t.is(await get(name, { cacheDir, offline: true, revision: "main" }), folder)
  process.env.HF_HUB_OFFLINE = "True"
  process.env.HF_HUB_CACHE = cacheDir
  t.teardown(() => {
    delete process.env.HF_HUB_OFFLINE
    delete process.env.HF_HUB_CACHE
  })
  t.is(await get(name), folder)
  const error = await t.throwsAsync(get("owner/other"), { code: "NOT_FOUND" })
  t.regex(
    error.message,
    /^download owner\/other: expected the revision main in the cache, as offline is set, got none in/,
  )
  t.is(hub.connections, 0)
})

test("a new commit of a branch shares what did not change, and the old one stays", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, files, commit)
  const cacheDir = await newCache()
  const old = await get(name, { cacheDir })
  hub.put(name, { ...files, "tokenizer.json": "{}" }, second)
  hub.reset()
  const now = await get(name, { cacheDir })
  t.not(now, old)
  t.deepEqual(
    hub.asked.flatMap(({ file }) => file ?? []),
    ["tokenizer.json"],
  )
  t.is(await readFile(join(now, "tokenizer.json"), "utf8"), "{}")
  t.is(await readFile(join(old, "tokenizer.json"), "utf8"), tokenizer)
  t.is(await readFile(join(cacheDir, root, "refs", "main"), "utf8"), second)
  t.is(await get(name, { cacheDir, revision: commit }), old)
  hub.put(name, files, commit, "refs/pr/1")
  t.is(await get(`${name}@refs/pr/1`, { cacheDir }), old)
  t.is(await readFile(join(cacheDir, root, "refs", "refs", "pr", "1"), "utf8"), commit)
})

const shards = {
  "model-00001-of-00002.safetensors": bytesOf(5000, 2),
  "model-00002-of-00002.safetensors": bytesOf(6000, 3),
}
const index = JSON.stringify({ weight_map: { a: Object.keys(shards)[0], b: Object.keys(shards)[1] } })

test("weights come in one form: whole, else as the index says, else PyTorch's", async (t) => {
  const { hub, get, newCache } = context
  const bin = { "pytorch_model.bin": weights }
  const binIndex = JSON.stringify({ weight_map: { a: "pytorch_model-1.bin" } })
  const binShards = { "pytorch_model.bin.index.json": binIndex, "pytorch_model-1.bin": weights }
  const forms: [Record<string, Uint8Array | string>, string[]][] = [
    [{ "model.safetensors": weights, ...shards, ...bin }, ["model.safetensors"]],
    [
      { ...shards, "model.safetensors.index.json": index, ...bin },
      [...Object.keys(shards), "model.safetensors.index.json"],
    ],
    [{ ...bin, "old.pth": weights }, ["pytorch_model.bin"]],
    [
      { ...binShards, "old.pth": weights, "notes.pth.txt": "" },
      ["pytorch_model-1.bin", "pytorch_model.bin.index.json"],
    ],
    [{ "iter-100.pth": weights }, ["iter-100.pth"]],
  ]
  for (const [given, wanted] of forms) {
    hub.put("owner/forms", { "lit_config.json": "{}", "config.json": config, ...given }, commit)
    const cacheDir = await newCache()
    const folder = await get("owner/forms", { cacheDir })
    const there = (await contents(folder)).filter((file) => file !== "config.json")
    t.deepEqual(there, wanted.sort())
    hub.reset()
    t.is(await get("owner/forms", { cacheDir, revision: commit }), folder)
    t.is(hub.connections, 0)
  }
  hub.put("owner/forms", { "config.json": config, "a.pth": weights, "b.pth": weights }, commit)
  const cacheDir = await newCache()
  const message = /expected weights in one \.pth file, got a\.pth, b\.pth/
  await t.throwsAsync(get("owner/forms", { cacheDir }), { code: "BAD_CHECKPOINT", message })
})

test("progress counts the bytes of all files, whose sum is known from the first call", async (t) => {
  const { hub, get, newCache } = context
  hub.put(
    name,
    { "config.json": config, ...shards, "model.safetensors.index.json": index, "tokenizer.json": tokenizer },
    commit,
  )
  const seen: DownloadProgress[] = []
  await get(name, { cacheDir: await newCache(), onProgress: (progress) => seen.push(progress) })
  const total = config.length + index.length + tokenizer.length + 11_000
  t.true(seen.every(({ totalBytes }) => totalBytes === total))
  t.is(seen.at(-1)!.loadedBytes, total)
  t.true(seen.every(({ loadedBytes }, i) => i === 0 || loadedBytes > seen[i - 1]!.loadedBytes))
  t.is(new Set(seen.map(({ file }) => file)).size, 5)
  t.true(hub.openMost <= 3)
})

test("what a progress function throws ends the download and comes out unchanged", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, files, commit)
  const cacheDir = await newCache()
  const mine = new TypeError("mine")
  const onProgress = () => {
    throw mine
  }
  t.is(await t.throwsAsync(get(name, { cacheDir, onProgress })), mine)
  await get(name, { cacheDir })
})

test("a model that cannot be loaded is refused before its weights come", async (t) => {
  const { hub, get, newCache } = context
  const cases: [Record<string, string | Uint8Array>, string, RegExp][] = [
    [{ "config.json": '{"model_type": "gpt2"}', "model.safetensors": weights }, "BAD_CHECKPOINT", /model_type.*"gpt2"/],
    [{ "config.json": "{", "model.safetensors": weights }, "BAD_CHECKPOINT", /config\.json/],
    [
      { "model.safetensors": weights },
      "NOT_FOUND",
      /expected a config file in the repository, got model\.safetensors;/,
    ],
    [
      { "config.json": config, "model.gguf": weights },
      "NOT_FOUND",
      /expected weights in .*, got config\.json, model\.gguf;/,
    ],
    [{}, "NOT_FOUND", /got no files/],
    [
      { "config.json": config, "model.safetensors.index.json": index, [Object.keys(shards)[0]!]: weights },
      "NOT_FOUND",
      /expected model-00002-of-00002\.safetensors in the repository/,
    ],
    [{ "config.json": config, "model.safetensors.index.json": "[" }, "BAD_CHECKPOINT", /expected JSON/],
    [
      { "config.json": config, "model.safetensors.index.json": '{"weight_map": {"a": "../../x.safetensors"}}' },
      "BAD_CHECKPOINT",
      /expected plain names of files in weight_map, got "\.\.\/\.\.\/x\.safetensors"/,
    ],
  ]
  for (const [given, code, message] of cases) {
    hub.put("owner/bad", given, commit)
    hub.reset()
    await t.throwsAsync(get("owner/bad", { cacheDir: await newCache() }), { code, message })
    t.false(hub.asked.some(({ file }) => file?.endsWith(".safetensors")))
  }
})

/** A cache as Python's huggingface_hub writes it. */
function pythonCache(cacheDir: string, given: Record<string, Uint8Array | string>, links = true): string {
  const folder = join(cacheDir, root, "snapshots", commit)
  for (const [file, data] of Object.entries(given)) {
    const bytes = Buffer.from(data)
    const blob = join(cacheDir, root, "blobs", hashOf(file, bytes))
    const path = join(folder, file)
    mkdirSync(dirname(path), { recursive: true })
    mkdirSync(dirname(blob), { recursive: true })
    writeFileSync(links ? blob : path, bytes)
    if (links) symlinkSync(`../../blobs/${hashOf(file, bytes)}`, path)
  }
  mkdirSync(join(cacheDir, root, "refs"), { recursive: true })
  writeFileSync(join(cacheDir, root, "refs", "main"), commit)
  return folder
}

test("a cache that Python wrote is used as it is, with links or, as on Windows, without", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, files, commit)
  for (const links of [true, false]) {
    const cacheDir = await newCache()
    const folder = pythonCache(cacheDir, files, links)
    hub.reset()
    t.is(await get(name, { cacheDir, revision: commit }), folder)
    t.is(await get(name, { cacheDir, offline: true }), folder)
    t.is(hub.connections, 0)
    // What Python left out is added; what it has is not asked for.
    rmSync(join(folder, "tokenizer.json"))
    t.is(await get(name, { cacheDir, revision: commit }), folder)
    t.deepEqual(
      hub.asked.flatMap(({ file }) => file ?? []),
      links ? [] : ["tokenizer.json"],
    )
    t.is(await readFile(join(folder, "tokenizer.json"), "utf8"), tokenizer)
  }
})

test("a model without a tokenizer is known to have none after the first time", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, { "config.json": config, "model.safetensors": weights }, commit)
  const cacheDir = await newCache()
  const folder = pythonCache(cacheDir, { "config.json": config, "model.safetensors": weights })
  t.is(await get(name, { cacheDir, revision: commit }), folder)
  t.is(hub.asked.length, 1)
  t.true((await contents(cacheDir)).includes(join(root, ".no_exist", commit, "tokenizer.json")))
  hub.reset()
  t.is(await get(name, { cacheDir, revision: commit }), folder)
  t.is(hub.connections, 0)
})

test("a cached file that is gone, cut or of another size comes again", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, files, commit)
  const cacheDir = await newCache()
  const folder = await get(name, { cacheDir })
  const blob = join(cacheDir, root, "blobs", sha256(weights))
  rmSync(blob) // the link leads nowhere
  const message = /expected weights in the cache, as offline is set/
  await t.throwsAsync(get(name, { cacheDir, offline: true }), { code: "NOT_FOUND", message })
  await get(name, { cacheDir, revision: commit })
  t.deepEqual(await readFile(join(folder, "model.safetensors")), weights)
  rmSync(join(folder, "config.json"))
  writeFileSync(blob, weights.subarray(1))
  await get(name, { cacheDir })
  t.deepEqual(await readFile(blob), weights)
})

test("a listing of many pages is read to its end", async (t) => {
  const { hub, get, newCache } = context
  const many = Object.fromEntries(Array.from({ length: 9 }, (_, i) => [`note-${i}.md`, "x"]))
  hub.put(name, { ...many, ...files }, commit)
  hub.pageSize = 2
  const folder = await get(name, { cacheDir: await newCache() })
  t.deepEqual(await readFile(join(folder, "model.safetensors")), weights)
})

test("when the Hub cannot be reached, the commit that a branch meant last is used, with a warning", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, files, commit)
  const cacheDir = await newCache()
  const folder = await get(name, { cacheDir })
  hub.reset()
  const warned = new Promise<Error>((resolve) => process.once("warning", resolve))
  const endpoint = "http://127.0.0.1:2"
  t.is(await get(name, { cacheDir, endpoint }), folder)
  t.regex(
    (await warned).message,
    /expected an answer of http:\/\/127\.0\.0\.1:2, got .*; the cached commit 1{40} is used/,
  )
  t.is(hub.asked.length, 0)
  const message = /^download owner\/model: expected an answer of http:\/\/127\.0\.0\.1:2, got .*; check the network/
  await t.throwsAsync(get(name, { cacheDir: await newCache(), endpoint }), { code: "NETWORK", message })
})
