/**
 * One file from the Hub into its blob: resumed where an earlier download ended, and held to its hash before it gets its name.
 *
 * A file is asked for at its commit, whose content never changes, by plain HTTP with ranges. The Hub sends those who do not ask
 * for Xet to a plain copy of every file, large ones on another host.
 */
import { createHash, type Hash } from "node:crypto"
import { setTimeout as sleep } from "node:timers/promises"
import { expect, SelscanError } from "../errors.ts"
import type { ModelCache } from "./cache.ts"
import { type Connection, piecesOf, Transient } from "./connection.ts"
import type { RemoteFile } from "./files.ts"
import { Lost, Partial, type PartialOptions } from "./partial.ts"

/** How often to look whether another writer is done. */
const pollMs = 200
/** Having received so much, a connection is worth another try, however many were cut before. */
const progressBytes = 1 << 20

export interface BlobRequest {
  readonly connection: Connection
  readonly cache: ModelCache
  readonly file: RemoteFile
  /** Where the file lies. */
  readonly url: string
  /** Begins messages. */
  readonly where: string
  /** Bytes that have come; fewer than none when they have to come again. */
  readonly onBytes: (count: number) => void
  readonly partial: PartialOptions
}

/**
 * Makes sure that the blob of a file is there. When it fails, what has come is left for the next time.
 * @throws SelscanError BAD_FILE for content of another hash or size, which is removed; DISK, NETWORK, NOT_FOUND, NO_ACCESS, ABORTED
 */
export async function fetchBlob(request: BlobRequest): Promise<void> {
  const { cache, file, onBytes, connection } = request
  for (let alone = false; ; ) {
    connection.throwIfAborted()
    if (await cache.hasBlob(file)) return onBytes(file.sizeBytes)
    const partial = await Partial.claim(cache.blob(file), request.partial, alone)
    if (partial === undefined) {
      await sleep(pollMs)
      continue
    }
    const transfer = new Transfer(request, partial)
    try {
      await transfer.run()
      return await partial.complete()
    } catch (error) {
      if (error instanceof SelscanError && error.code === "BAD_FILE") await partial.discard()
      else await partial.release()
      transfer.forget()
      if (!(error instanceof Lost)) throw error
      alone = true // two who take from one another would never end
    }
  }
}

class Transfer {
  readonly #request: BlobRequest
  readonly #partial: Partial
  #hash: Hash
  #position = 0
  /** Of the response that the last bytes came with. */
  #etag: string | undefined
  /** Whether the bytes came in one piece. */
  #whole = true
  /** How far the file has ever come when a failure counted: what only comes again is no progress. */
  #mark = 0

  constructor(request: BlobRequest, partial: Partial) {
    this.#request = request
    this.#partial = partial
    this.#hash = hashOf(request.file)
  }

  /** Receives the file until its hash is right. */
  async run(): Promise<void> {
    await this.#readPartial()
    await this.#receive()
    if (this.#isRight()) return
    // One of the pieces may be another file's: once more from the beginning.
    if (!this.#whole) {
      await this.#restart()
      this.#mark = 0
      await this.#receive()
    }
    const { where, file } = this.#request
    expect(this.#isRight(), "BAD_FILE", () => {
      return `${where}: expected ${file.name} with ${named(file)} ${file.hash}, got another; it is removed, try again later or another endpoint`
    })
  }

  /** Takes back what was counted. */
  forget(): void {
    this.#request.onBytes(-this.#position)
    this.#position = 0
  }

  #isRight(): boolean {
    return this.#hash.copy().digest("hex") === this.#request.file.hash
  }

  /** Goes on where an earlier download ended. */
  async #readPartial(): Promise<void> {
    if (this.#partial.sizeBytes > this.#request.file.sizeBytes) return await this.#restart()
    for await (const bytes of this.#partial.read()) {
      this.#request.connection.throwIfAborted()
      this.#count(bytes)
      this.#whole = false
    }
  }

  #count(bytes: Uint8Array): void {
    this.#hash.update(bytes)
    this.#position += bytes.length
    this.#request.onBytes(bytes.length)
  }

  async #restart(): Promise<void> {
    await this.#partial.restart()
    this.forget()
    this.#hash = hashOf(this.#request.file)
    this.#etag = undefined
    this.#whole = true
  }

  async #receive(): Promise<void> {
    const { connection, file, url } = this.#request
    const progressed = () => {
      const enough = this.#position - this.#mark >= progressBytes
      if (enough) this.#mark = this.#position
      return enough
    }
    const attempt = () => connection.attempt(url, this.#headers(), (response, alive) => this.#take(response, alive))
    if (this.#position < file.sizeBytes) await connection.retry(attempt, progressed)
  }

  #headers(): Record<string, string> {
    if (this.#position === 0) return {}
    this.#whole = false
    // Another file by now is sent whole.
    const unchanged = this.#etag?.startsWith('"') ? { "if-range": this.#etag } : {}
    return { range: `bytes=${this.#position}-`, ...unchanged }
  }

  async #take(response: Response, alive: () => void): Promise<void> {
    const { sizeBytes } = this.#request.file
    const etag = response.headers.get("etag") ?? undefined
    const from = beginOf(response)
    const changed = this.#etag !== undefined && etag !== undefined && etag !== this.#etag
    if (from !== this.#position || (from > 0 && changed)) {
      await this.#restart()
      if (from !== 0) throw new Transient("another part than was asked for")
    }
    this.#etag = etag
    this.#checkSize(sizeOf(response, from))
    for await (const bytes of piecesOf(response)) {
      alive()
      if (this.#position + bytes.length > sizeBytes) this.#checkSize(this.#position + bytes.length)
      await this.#partial.write(bytes)
      this.#count(bytes)
    }
    if (this.#position < sizeBytes) throw new Transient(`${this.#position} of ${sizeBytes} bytes and the end`)
  }

  #checkSize(size: number | undefined): void {
    const { where, file } = this.#request
    expect(size === undefined || size === file.sizeBytes, "BAD_FILE", () => {
      return `${where}: expected ${file.sizeBytes} bytes of ${file.name}, as it is listed, got ${size}; it is removed, try again later or another endpoint`
    })
  }
}

const named = ({ algorithm }: RemoteFile): string => (algorithm === "git" ? "git hash" : "sha256")

function hashOf({ algorithm, sizeBytes }: RemoteFile): Hash {
  return algorithm === "git" ? createHash("sha1").update(`blob ${sizeBytes}\0`) : createHash("sha256")
}

const rangePattern = /^bytes (\d+)-\d+\/(\d+|\*)$/

/** The position of a response's first byte. */
function beginOf({ status, headers }: Response): number {
  if (status !== 206) return 0
  const begin = rangePattern.exec(headers.get("content-range") ?? "")?.[1]
  return begin === undefined ? Number.NaN : Number(begin)
}

/** What a response says of the whole file's size. */
function sizeOf({ headers }: Response, from: number): number | undefined {
  const total = rangePattern.exec(headers.get("content-range") ?? "")?.[2]
  if (total !== undefined) return total === "*" ? undefined : Number(total)
  const length = headers.get("content-length")
  return length === null || headers.has("content-encoding") ? undefined : from + Number(length)
}
