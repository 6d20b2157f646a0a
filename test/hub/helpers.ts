/** A Hub, a folder for caches, and models of a few bytes, which downloads take and no device has to run. */
import { readFileSync } from "node:fs"
import { mkdtemp, readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import test, { type ExecutionContext } from "ava"
import { downloadWithin, type Limits } from "../../lib/hub/download.ts"
import type { DownloadOptions } from "../../lib/hub/options.ts"
import { temporaryFolder } from "../checkpoint/helpers.ts"
import { FakeHub } from "./server.ts"

export const commit = "1".repeat(40)
export const config = readFileSync(new URL("../../models/demo/config.json", import.meta.url))
export const name = "owner/model"

/** Nothing in the machine's environment or home counts. */
export function isolateEnvironment(home: string): void {
  for (const variable of Object.keys(process.env)) {
    if (/^(HF_|HUGGING|XDG_CACHE)/.test(variable)) delete process.env[variable]
  }
  process.env.HF_HOME = home
}

/** The weights of the model that most tests download, the file they are in, and the folder of the cache that keeps it. */
export const weights = bytesOf(300_000)
export const file = "model.safetensors"
export const blobs = join("models--owner--model", "blobs")

/** Gives a Hub the model, with other weights where they are given. */
export function put(hub: FakeHub, bytes: Uint8Array = weights): void {
  hub.put(name, { "config.json": config, [file]: bytes, "tokenizer.json": "{}" }, commit)
}

/** The weights have come whole, and nothing unfinished is left. */
export async function check(t: ExecutionContext, cacheDir: string, folder: string, bytes = weights): Promise<void> {
  t.true(bytes.equals(await readFile(join(folder, file))))
  t.deepEqual(await unfinished(cacheDir), [])
}

/** One Hub and one folder for a test file, whose tests run one after the other. */
export function withHub(): { hub: FakeHub; folder: string; get: typeof download; newCache: () => Promise<string> } {
  const folder = temporaryFolder()
  isolateEnvironment(join(folder, "home"))
  const context = { folder, newCache: () => mkdtemp(join(folder, "cache-")) } as ReturnType<typeof withHub>
  test.before(async () => {
    context.hub = await FakeHub.start()
    context.get = (from, options, limits) => download(from, { endpoint: context.hub.endpoint, ...options }, limits)
  })
  test.beforeEach(() => context.hub.reset())
  test.after.always(() => context.hub.close())
  return context
}

/** Patience that suits tests. */
export const limits: Limits = { tries: 3, backoffMs: 1, staleMs: 1000 }

function download(from: string, options: DownloadOptions = {}, changed: Partial<Limits> = {}): Promise<string> {
  return downloadWithin(from, { timeoutMs: 5000, ...options }, { ...limits, ...changed })
}

/** Paths of everything in a cache, links and unfinished files too. */
export async function contents(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  return entries
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1))
    .sort()
}

export const unfinished = async (folder: string): Promise<string[]> =>
  (await contents(folder)).filter((path) => path.endsWith(".incomplete"))

/** Bytes that repeat nowhere. */
export function bytesOf(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(length)
  let state = seed
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    bytes[i] = state >>> 24
  }
  return bytes
}
