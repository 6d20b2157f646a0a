import { execFile } from "node:child_process"
import { existsSync, symlinkSync, writeFileSync } from "node:fs"
import { type FileHandle, lstat, mkdir, open, readFile, utimes, writeFile } from "node:fs/promises"
import { join } from "node:path"
import baseTest, { type TestFn } from "ava"
import {
  blobs,
  bytesOf,
  check,
  commit,
  config,
  contents,
  file,
  name,
  put,
  unfinished,
  weights,
  withHub,
} from "./helpers.ts"
import { answers, sha256 } from "./server.ts"

const test = baseTest.serial as TestFn
const context = withHub()
test("a download can be aborted at any point, and the next one goes on from there", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const reason = new Error("enough")
  await t.throwsAsync(get(name, { signal: AbortSignal.abort() }), { code: "ABORTED" })
  for (const at of [1, 1200, 1300, 40_000, 150_000, 301_000]) {
    const cacheDir = await newCache()
    const controller = new AbortController()
    const onProgress = ({ loadedBytes }: { loadedBytes: number }) => loadedBytes >= at && controller.abort(reason)
    const { signal } = controller
    const error = await t.throwsAsync(get(name, { cacheDir, signal, onProgress }), { code: "ABORTED" })
    t.is(error.cause, reason)
    t.regex(error.message, /^download owner\/model: aborted; call again to go on/)
    t.true((await unfinished(cacheDir)).every((path) => /[0-9a-f]{40,64}\.selscan\.incomplete$/.test(path)))
    hub.reset()
    await check(t, cacheDir, await get(name, { cacheDir }))
    if (at === 150_000) t.regex(hub.ranges(file)[0] ?? "", /^bytes=[1-9]/)
  }
})

test("an abort while the server is silent, or between two tries, ends the download at once", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  for (const bend of [() => true, answers(503, { "retry-after": "30" })]) {
    hub.bend = bend
    const began = performance.now()
    const signal = AbortSignal.timeout(50)
    await t.throwsAsync(get(name, { cacheDir: await newCache(), signal, timeoutMs: 30_000 }), { code: "ABORTED" })
    t.true(performance.now() - began < 3000)
  }
})

test("when one file fails, the others end too and keep what they have", async (t) => {
  const { hub, get, newCache } = context
  const shards = { "a.safetensors": bytesOf(2_000_000, 4), "b.safetensors": bytesOf(2_000_000, 5) }
  const index = JSON.stringify({ weight_map: { a: "a.safetensors", b: "b.safetensors" } })
  hub.put(name, { "config.json": config, ...shards, "model.safetensors.index.json": index }, commit)
  const cacheDir = await newCache()
  hub.bend = ({ host, file }, response) => {
    if (host !== "cdn") return false
    if (file === "a.safetensors") response.writeHead(200).write(shards["a.safetensors"].subarray(0, 1_000_000))
    else setTimeout(() => response.writeHead(404, { "x-error-code": "EntryNotFound" }).end(), 100)
    return true
  }
  const began = performance.now()
  await t.throwsAsync(get(name, { cacheDir, timeoutMs: 20_000 }), { code: "NOT_FOUND" })
  t.true(performance.now() - began < 5000)
  t.is((await unfinished(cacheDir)).length, 1)
  hub.reset()
  await get(name, { cacheDir })
  t.regex(hub.ranges("a.safetensors")[0] ?? "", /^bytes=[1-9]\d*-$/)
})

const onDevFull = existsSync("/dev/full") ? test : test.skip

onDevFull("a full disk is a DISK error that says so, and damages nothing", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const cacheDir = await newCache()
  /** The kernel's own ENOSPC. */
  const create = async (path: string): Promise<FileHandle> => {
    if (!path.includes(sha256(weights))) return await open(path, "wx+")
    symlinkSync("/dev/full", path)
    return await open(path, "r+")
  }
  const error = await t.throwsAsync(get(name, { cacheDir }, { create }), { code: "DISK" })
  t.regex(error.message, /no space left on device.*; free some space$/)
  t.false((await contents(cacheDir)).some((path) => path.endsWith(file)))
  hub.reset()
  await check(t, cacheDir, await get(name, { cacheDir }))
})

test("a disk that fills up in the middle of a file keeps what it took, for when there is space", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const cacheDir = await newCache()
  const create = async (path: string): Promise<FileHandle> => {
    const handle = await open(path, "wx+")
    if (!path.includes(sha256(weights))) return handle
    const write = handle.write.bind(handle) as (...given: unknown[]) => Promise<{ bytesWritten: number }>
    const full = Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" })
    const limited = async (bytes: Uint8Array, at: number, length: number, position: number) => {
      if (position >= 200_000) throw full
      return await write(bytes, at, Math.min(length, 200_000 - position), position)
    }
    return Object.assign(handle, { write: limited }) as FileHandle
  }
  const error = await t.throwsAsync(get(name, { cacheDir }, { create }), { code: "DISK" })
  t.regex(error.message, /no space left on device.*; free some space$/)
  hub.reset()
  await check(t, cacheDir, await get(name, { cacheDir }))
  t.deepEqual(hub.ranges(file), ["bytes=200000-"])
})

test("a cache that cannot be written is a DISK error", async (t) => {
  const { get, newCache } = context
  put(context.hub)
  const cacheDir = await newCache()
  writeFileSync(join(cacheDir, "models--owner--model"), "a file")
  const error = await t.throwsAsync(get(name, { cacheDir }), { code: "DISK" })
  t.regex(error.message, /expected to write the file, got E(NOTDIR|EXIST)/)
})

test("downloads of one model at once share what they fetch", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const cacheDir = await newCache()
  const folders = await Promise.all(Array.from({ length: 5 }, () => get(name, { cacheDir })))
  t.is(new Set(folders).size, 1)
  await check(t, cacheDir, folders[0]!)
  t.true(hub.ranges(file).length < folders.length) // those who look in the same moment all write
})

test("who waits for another's download goes on with it when that is aborted", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const cacheDir = await newCache()
  let isFirst = true
  hub.bend = ({ host }, response) => {
    if (host !== "cdn" || !isFirst) return false
    isFirst = false
    response.writeHead(200, { "content-length": weights.length }).write(weights.subarray(0, 100_000))
    return true
  }
  const controller = new AbortController()
  const { signal } = controller
  let first: Promise<unknown> = Promise.resolve()
  await new Promise<void>((resolve) => {
    const onProgress = ({ file: grown }: { file: string }) => grown === file && resolve()
    first = t.throwsAsync(get(name, { cacheDir, signal, onProgress }), { code: "ABORTED" })
  })
  const second = get(name, { cacheDir })
  setTimeout(() => controller.abort(), 300)
  await first
  await check(t, cacheDir, await second)
  t.is(hub.ranges(file).length, 2)
  t.regex(hub.ranges(file)[1] ?? "", /^bytes=[1-9]\d*-$/)
})

test("what a killed process left is taken over, what a living one writes is waited for", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const cacheDir = await newCache()
  await mkdir(join(cacheDir, blobs), { recursive: true })
  const blob = join(cacheDir, blobs, sha256(weights))
  const killed = `${blob}.1.selscan.incomplete`
  await writeFile(killed, weights.subarray(0, 123_456))
  await writeFile(`${blob}.2.selscan.incomplete`, weights.subarray(0, 5))
  const longAgo = new Date(Date.now() - 3_600_000)
  for (const number of [1, 2]) await utimes(`${blob}.${number}.selscan.incomplete`, longAgo, longAgo)
  await writeFile(`${blob}.incomplete`, "Python's")
  await get(name, { cacheDir })
  t.deepEqual(hub.ranges(file), ["bytes=123456-"])
  t.deepEqual(await unfinished(cacheDir), [join(blobs, `${sha256(weights)}.incomplete`)])
  hub.reset()
  const other = await newCache()
  await mkdir(join(other, blobs), { recursive: true })
  const living = join(other, blobs, `${sha256(weights)}.7.selscan.incomplete`)
  await writeFile(living, weights.subarray(0, 1000))
  const began = performance.now()
  await check(t, other, await get(name, { cacheDir: other }))
  t.true(performance.now() - began > 800) // its second of silence
  t.deepEqual(hub.ranges(file), ["bytes=1000-"])
})

test("where links cannot be made, snapshots hold copies", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const cacheDir = await newCache()
  const link = () =>
    Promise.reject(Object.assign(new Error("EPERM: operation not permitted, symlink"), { code: "EPERM" }))
  const folder = await get(name, { cacheDir }, { link })
  await check(t, cacheDir, folder)
  t.false((await lstat(join(folder, file))).isSymbolicLink())
  hub.reset()
  t.is(await get(name, { cacheDir, revision: commit }, { link }), folder)
  t.is(hub.connections, 0)
})

/** Runs a download in a process of its own; `after` bytes of progress it kills itself. */
function inProcess(cacheDir: string, after = Number.POSITIVE_INFINITY): Promise<string> {
  const options = JSON.stringify({ cacheDir, endpoint: context.hub.endpoint })
  const script = `
    import { download } from ${JSON.stringify(new URL("../../lib/hub/download.ts", import.meta.url).href)}
    const onProgress = ({ loadedBytes }) => loadedBytes > ${after} && process.kill(process.pid, "SIGKILL")
    console.log(await download("owner/model", { ...${options}, onProgress }))`
  return new Promise((resolve) => {
    const words = ["--import=tsx", "--input-type=module", "-e", script]
    execFile(process.execPath, words, (error, output) => resolve(error?.signal ?? output.trim()))
  })
}

test("several processes, one of which is killed in the middle, leave one whole model", async (t) => {
  const { newCache } = context
  const large = bytesOf(8_000_000)
  put(context.hub, large)
  const cacheDir = await newCache()
  const [killed, ...others] = await Promise.all([
    inProcess(cacheDir, 3_000_000),
    inProcess(cacheDir),
    inProcess(cacheDir),
  ])
  t.true(killed === "SIGKILL" || killed === others[0]) // another may have brought the rest
  const folder = join(cacheDir, "models--owner--model", "snapshots", commit)
  t.deepEqual(others, [folder, folder])
  t.true(large.equals(await readFile(join(folder, file))))
  const alone = await newCache()
  t.is(await inProcess(alone, 3_000_000), "SIGKILL")
  t.is((await unfinished(alone)).length, 1)
  context.hub.reset()
  await context.get(name, { cacheDir: alone })
  t.regex(context.hub.ranges(file)[0] ?? "", /^bytes=[1-9]\d{6}-$/)
  t.true(large.equals(await readFile(join(alone, "models--owner--model", "snapshots", commit, file))))
})
