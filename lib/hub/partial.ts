/**
 * A blob that is being written, beside the place where it will stand:
 *
 *   <hash>.<random>.selscan.incomplete   of one writer, who touches it every few seconds
 *   <hash>.selscan.incomplete            left by a download that was ended, free for the next
 *
 * A writer takes what another left by renaming it, which of two succeeds for one. So no lock is needed, and none can be left
 * behind: whoever finds a living writer waits, and two who find none write two files, of which either is right. Python's
 * `<hash>.incomplete` is left alone, since what guards it, flock, Node does not have.
 */
import { randomInt } from "node:crypto"
import { type FileHandle, open, readdir, rename, rm, stat, utimes } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { disk } from "../checkpoint/atomic.ts"

const suffix = ".selscan.incomplete"

export interface PartialOptions {
  /** A file that nobody has touched for so long has lost its writer. */
  readonly staleMs: number
  /** Opens a file that must not exist; tests stand in a disk that fills up. */
  readonly create?: (path: string) => Promise<FileHandle>
}

/** Another writer has taken the file: this one was silent for so long that it seemed dead. */
export class Lost extends Error {}

export class Partial {
  readonly #blob: string
  readonly #options: PartialOptions
  readonly #beat: NodeJS.Timeout
  #path: string
  #handle: FileHandle
  #position = 0
  /** When this writer last showed that it lives. */
  #alive = performance.now()

  private constructor(blob: string, options: PartialOptions, path: string, handle: FileHandle) {
    this.#blob = blob
    this.#options = options
    this.#path = path
    this.#handle = handle
    this.#beat = setInterval(() => this.#touch(), options.staleMs / 4).unref()
  }

  /**
   * The unfinished blob for this caller alone, with what an earlier one left of it; undefined while another writes it.
   * `alone` looks for no other. @throws SelscanError DISK
   */
  static async claim(blob: string, options: PartialOptions, alone = false): Promise<Partial | undefined> {
    const path = newPath(blob)
    if (!alone) {
      const { free, busy } = await survey(blob, options.staleMs)
      if (busy) return undefined
      for (const other of free) {
        const taken = await take(other, path)
        if (taken === undefined) continue
        const partial = new Partial(blob, options, path, taken.handle)
        partial.#position = taken.sizeBytes
        return partial
      }
    }
    return new Partial(blob, options, path, await created(path, options))
  }

  /** Bytes written, in this run or before it. */
  get sizeBytes(): number {
    return this.#position
  }

  /** What has been written, from the beginning. */
  async *read(): AsyncGenerator<Uint8Array> {
    const buffer = Buffer.alloc(Math.min(1 << 20, this.#position))
    for (let at = 0; at < this.#position; ) {
      const length = Math.min(buffer.length, this.#position - at)
      const { bytesRead } = await disk(this.#path, () => this.#handle.read(buffer, 0, length, at))
      if (bytesRead === 0) this.#position = at // cut by somebody else
      yield buffer.subarray(0, bytesRead)
      at += bytesRead
    }
  }

  async write(bytes: Uint8Array): Promise<void> {
    // A process that slept, as laptops do, may have been taken for dead.
    if (performance.now() - this.#alive > this.#options.staleMs / 2) await this.#assertOwned()
    for (let at = 0; at < bytes.length; ) {
      const { bytesWritten } = await disk(this.#path, () =>
        this.#handle.write(bytes, at, bytes.length - at, this.#position),
      )
      at += bytesWritten
      this.#position += bytesWritten
    }
    this.#alive = performance.now()
  }

  /** Begins again in a new file, so that a writer who was taken for dead and wakes up cuts nobody's. */
  async restart(): Promise<void> {
    await this.#handle.close()
    await rm(this.#path, { force: true }).catch(() => {})
    this.#path = newPath(this.#blob)
    this.#handle = await created(this.#path, this.#options)
    this.#position = 0
  }

  /** Makes it the blob, and removes what dead writers left of it. @throws Lost, SelscanError DISK */
  async complete(): Promise<void> {
    await this.#assertOwned()
    await disk(this.#path, () => this.#handle.sync())
    await this.#close()
    await rename(this.#path, this.#blob).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") throw new Lost()
      await disk(this.#blob, () => Promise.reject(error))
    })
    const { free } = await survey(this.#blob, this.#options.staleMs)
    await Promise.all(free.map((path) => rm(path, { force: true }).catch(() => {})))
  }

  /** Leaves what there is to the next download. */
  async release(): Promise<void> {
    await this.#close()
    if (this.#position === 0) await rm(this.#path, { force: true }).catch(() => {})
    else await rename(this.#path, this.#blob + suffix).catch(() => {}) // then it is free once it is stale
  }

  async discard(): Promise<void> {
    await this.#close()
    await rm(this.#path, { force: true }).catch(() => {})
  }

  async #close(): Promise<void> {
    clearInterval(this.#beat)
    await this.#handle.close().catch(() => {}) // what was written has been told apart already
  }

  async #assertOwned(): Promise<void> {
    const [there, mine] = await Promise.all([
      stat(this.#path, { bigint: true }).catch(() => undefined),
      disk(this.#path, () => this.#handle.stat({ bigint: true })),
    ])
    if (there?.ino !== mine.ino) throw new Lost()
  }

  #touch(): void {
    const now = new Date()
    this.#handle.utimes(now, now).then(
      () => {
        this.#alive = performance.now()
      },
      () => {}, // closed, or a file system without times: writing shows life too
    )
  }
}

const newPath = (blob: string): string => `${blob}.${randomInt(2 ** 47)}${suffix}`

function created(path: string, { create = (name) => open(name, "wx+") }: PartialOptions): Promise<FileHandle> {
  return disk(path, () => create(path))
}

/** Unfinished files of a blob that nobody writes, the longest first, and whether somebody writes one. */
async function survey(blob: string, staleMs: number): Promise<{ free: string[]; busy: boolean }> {
  const folder = dirname(blob)
  const prefix = `${basename(blob)}.`
  const names = await disk(folder, () => readdir(folder))
  const found = names.filter((name) => name.startsWith(prefix) && name.endsWith(suffix))
  const files = await Promise.all(
    found.map(async (name) => {
      const path = join(folder, name)
      const info = await stat(path).catch(() => undefined) // taken or finished since
      const free = path === blob + suffix || Date.now() - (info?.mtimeMs ?? 0) > staleMs
      return { path, free, sizeBytes: info?.size }
    }),
  )
  const there = files.filter(({ sizeBytes }) => sizeBytes !== undefined)
  const free = there.filter((file) => file.free).sort((a, b) => b.sizeBytes! - a.sizeBytes!)
  return { free: free.map(({ path }) => path), busy: there.some((file) => !file.free) }
}

/** Renames a file to this caller's; undefined when another was faster. */
async function take(other: string, path: string): Promise<{ handle: FileHandle; sizeBytes: number } | undefined> {
  const now = new Date()
  try {
    await utimes(other, now, now) // before it has a writer's name, under which it would seem dead
    await rename(other, path)
    const handle = await open(path, "r+")
    return { handle, sizeBytes: (await handle.stat()).size }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined
    return await disk(path, () => Promise.reject(error))
  }
}
