/** Models from the Hub: what a name means there, what of it is needed, and how that comes into the cache. */
import { readFile } from "node:fs/promises"
import { readConfig } from "../checkpoint/families.ts"
import { type ErrorCode, expect, oneLine, SelscanError } from "../errors.ts"
import { fetchBlob } from "./blob.ts"
import { type CacheOptions, ModelCache } from "./cache.ts"
import { Connection, type Patience } from "./connection.ts"
import {
  checkText,
  configOf,
  type RemoteFile,
  remoteFile,
  shardsOf,
  textFilesOf,
  tokenizerFile,
  weightsOf,
} from "./files.ts"
import { library } from "./library.ts"
import { isCommit, shownValue } from "./name.ts"
import { type DownloadOptions, type Settings, settingsOf } from "./options.ts"
import type { PartialOptions } from "./partial.ts"

/** What tests make smaller. */
export interface Limits extends Patience, PartialOptions, CacheOptions {}

/** Pauses of half a second to four: the Hub's own hiccups are shorter. */
const defaults: Limits = { tries: 5, backoffMs: 500, staleMs: 10_000 }
/** Files at once: two fill most lines, and a pause of one is another's. */
const parallel = 3
/** Of a listing, which the Hub gives a thousand entries a page; a server could send its reader in a circle. */
const pagesMost = 1000

/**
 * Downloads what a model needs of a repository on the Hub, into the cache that Python's huggingface_hub uses too, and returns the folder.
 *
 * Config, tokenizer, chat template and generation config, and the weights in one form: safetensors where there are any, else
 * pytorch_model.bin, else the one .pth. The config comes first, so a model that cannot be loaded is refused before its weights
 * come. Every file is held to its hash. What was cut, by the network, the signal or the end of the process, goes on where it
 * ended; several processes may download one model at once.
 *
 * A commit hash that is cached opens no connection, nor does anything when `offline` is set. A branch or tag asks for its commit;
 * when the Hub cannot be reached, what it meant last is taken, with a warning of the process.
 *
 * @throws SelscanError BAD_INPUT, BAD_OPTION, NOT_FOUND (model, revision or file; or not in the cache), NO_ACCESS (private or gated),
 * NETWORK, DISK, BAD_FILE (content of another hash), BAD_CHECKPOINT (a model that is not supported), ABORTED
 * @example
 * const folder = await download("state-spaces/mamba-130m-hf", {
 *   onProgress: ({ loadedBytes, totalBytes }) => console.log(`${Math.round((100 * loadedBytes) / totalBytes)} %`),
 * })
 */
export async function download(name: string, options: DownloadOptions = {}): Promise<string> {
  return await downloadWithin(name, options, defaults)
}

/** `download` with other limits than its own. */
export async function downloadWithin(name: string, options: DownloadOptions, limits: Limits): Promise<string> {
  const settings = await settingsOf(name, options)
  using connection = new Connection(settings, limits)
  connection.throwIfAborted()
  return await new Download(settings, limits, connection).folder()
}

class Download {
  readonly #settings: Settings
  readonly #limits: Limits
  readonly #connection: Connection
  readonly #cache: ModelCache

  constructor(settings: Settings, limits: Limits, connection: Connection) {
    this.#settings = settings
    this.#limits = limits
    this.#connection = connection
    this.#cache = new ModelCache(settings, limits)
  }

  /** The folder of the snapshot, complete. */
  async folder(): Promise<string> {
    const { revision, offline } = this.#settings
    const commit = await this.#commit()
    const { lacks, settled } = await this.#cache.state(commit)
    if (!settled && (lacks !== undefined || !offline)) {
      if (offline) throw this.#notCached(lacks!)
      try {
        await this.#fill(commit)
      } catch (error) {
        // Only the tokenizer was in question: also a model that has left the Hub can be used.
        if (lacks !== undefined || !hasCode(error, ["NETWORK", "NOT_FOUND", "NO_ACCESS"])) throw error
        this.#warn(error, commit)
      }
    }
    if (!offline) await this.#cache.refer(revision, commit)
    return this.#cache.snapshot(commit)
  }

  async #commit(): Promise<string> {
    const { where, repository, revision, endpoint, offline } = this.#settings
    if (isCommit(revision)) return revision
    const cached = await this.#cache.commitOf(revision)
    if (offline) {
      if (cached === undefined) throw this.#notCached(`the revision ${revision}`)
      return cached
    }
    const usable = cached !== undefined && (await this.#cache.state(cached)).lacks === undefined
    const { modelInfo } = await library()
    const fetch = this.#connection.api(usable ? 1 : this.#limits.tries)
    try {
      const ask = () => modelInfo({ name: repository, revision, hubUrl: endpoint, fetch, additionalFields: ["sha"] })
      const { sha } = await this.#asked(ask)
      expect(typeof sha === "string" && isCommit(sha), "NETWORK", () => {
        return `${where}: expected the commit of ${revision} from ${endpoint}, got ${shownValue(sha)}; check the endpoint`
      })
      return sha
    } catch (error) {
      if (!usable || !hasCode(error, ["NETWORK"])) throw error
      this.#warn(error, cached)
      return cached
    }
  }

  /** Downloads what a snapshot lacks. Its weights get their name last, so a snapshot that has them is complete. */
  async #fill(commit: string): Promise<void> {
    const { where } = this.#settings
    const listing = await this.#listing(commit)
    const names = new Set(listing.keys())
    const config = configOf(names)
    const weights = weightsOf(names, where)
    const lacks = (what: string) => () => {
      const got = [...names].slice(0, 20).join(", ") || "no files"
      return `${where}: expected ${what} in the repository, got ${got}; choose a model in one of the forms that load() reads`
    }
    expect(config !== undefined, "NOT_FOUND", lacks("a config file"))
    expect(weights !== undefined, "NOT_FOUND", lacks("weights in safetensors, pytorch_model.bin or .pth"))
    const file = (name: string): RemoteFile => {
      expect(names.has(name), "NOT_FOUND", lacks(name))
      return listing.get(name)!
    }
    const texts = [config, ...textFilesOf(names), ...(weights.sharded ? [weights.file] : [])]
    for (const name of texts) checkText(file(name), where)
    await this.#cache.prepare(commit)
    // What decides whether and what to download; small, and counted when the sizes of all are known.
    await this.#fetch(commit, file(config), () => {})
    await this.#cache.link(commit, file(config))
    await readConfig(this.#cache.snapshot(commit))
    const shards: RemoteFile[] = []
    if (weights.sharded) {
      await this.#fetch(commit, file(weights.file), () => {})
      const path = await this.#cache.contentOf(commit, file(weights.file))
      const index = await readFile(path, "utf8")
      shards.push(...shardsOf(index, `${where}: ${weights.file}`).map(file))
    }
    await this.#fetchAll(commit, [file(config), ...textFilesOf(names).map(file), ...shards, file(weights.file)])
    await this.#cache.link(commit, file(weights.file))
    if (!names.has(tokenizerFile)) await this.#cache.markAbsent(commit, tokenizerFile)
  }

  /** Files of a commit, by name. */
  async #listing(commit: string): Promise<Map<string, RemoteFile>> {
    const { where, repository, endpoint } = this.#settings
    const { listFiles } = await library()
    const ask = this.#connection.api()
    let pages = 0
    const fetch: typeof ask = async (url, init) => {
      if (++pages > pagesMost) throw new Error(`more than ${pagesMost} pages of files`)
      return await ask(url, init)
    }
    return await this.#asked(async () => {
      const files = new Map<string, RemoteFile>()
      for await (const entry of listFiles({ repo: repository, revision: commit, hubUrl: endpoint, fetch })) {
        const file = remoteFile(entry, where)
        if (file !== undefined) files.set(file.name, file)
      }
      return files
    })
  }

  /** Fetches files, some at once; all but the last, the weights, are linked too. */
  async #fetchAll(commit: string, files: readonly RemoteFile[]): Promise<void> {
    const totalBytes = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    const { onProgress } = this.#settings
    let loadedBytes = 0
    let failure: { error: unknown } | undefined
    const queue = [...files]
    const work = async () => {
      for (let file = queue.shift(); file !== undefined && failure === undefined; file = queue.shift()) {
        const { name } = file
        await this.#fetch(commit, file, (count) => {
          loadedBytes += count
          if (count > 0 && failure === undefined) onProgress?.({ file: name, loadedBytes, totalBytes })
        })
        if (file !== files.at(-1)) await this.#cache.link(commit, file)
      }
    }
    const fail = (error: unknown) => {
      failure ??= { error }
      this.#connection.stop() // the others' pieces are kept
    }
    await Promise.all(Array.from({ length: parallel }, () => work().catch(fail)))
    if (failure !== undefined) throw failure.error
  }

  async #fetch(commit: string, file: RemoteFile, onBytes: (count: number) => void): Promise<void> {
    if (await this.#cache.has(commit, file)) return onBytes(file.sizeBytes)
    const { where, repository, endpoint } = this.#settings
    const url = `${endpoint}/${repository}/resolve/${commit}/${encodeURIComponent(file.name)}`
    const connection = this.#connection
    await fetchBlob({ connection, cache: this.#cache, file, url, where, onBytes, partial: this.#limits })
  }

  /** Asks the Hub through its library, which throws what it will for answers of another form. */
  async #asked<T>(ask: () => Promise<T>): Promise<T> {
    try {
      return await ask()
    } catch (cause) {
      if (cause instanceof SelscanError) throw cause
      const { where, endpoint } = this.#settings
      const message = `${where}: expected an answer that the Hub gives of ${endpoint}, got another (${oneLine(cause)}); check the endpoint and the network`
      throw new SelscanError("NETWORK", message, { endpoint }, { cause })
    }
  }

  #notCached(lacks: string): SelscanError {
    const { where, repository, cacheDir } = this.#settings
    const message = `${where}: expected ${lacks === "all" ? "the model" : lacks} in the cache, as offline is set, got none in ${cacheDir}; download it once without offline`
    return new SelscanError("NOT_FOUND", message, { repository, lacks })
  }

  #warn(error: unknown, commit: string): void {
    process.emitWarning(`${(error as Error).message}; the cached commit ${commit} is used`, { code: "SELSCAN_HUB" })
  }
}

const hasCode = (error: unknown, codes: readonly ErrorCode[]): boolean =>
  error instanceof SelscanError && codes.includes(error.code)
