/**
 * Files that are either the old one or the new one, whatever happens in between: written under another name in the same
 * folder, forced to disk, renamed over the old one, and the folder forced to disk too.
 */
import { randomInt } from "node:crypto"
import { type FileHandle, open, readdir, rename, rm, stat } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { SelscanError } from "../errors.ts"

/** The file being written. Every failure of the disk comes out of `write` as a SelscanError DISK. */
export interface AtomicFile {
  /** Appends bytes. */
  write(bytes: Uint8Array): Promise<void>
  /** Bytes written so far. */
  readonly sizeBytes: number
}

export interface AtomicOptions {
  /** Opens the temporary file for writing, where it must not exist yet; tests stand in a disk that fills up. */
  readonly open?: (path: string) => Promise<FileHandle>
}

/** A killed process leaves its temporary file; the next write of the same path removes what is older than this. */
const staleMs = 3_600_000

/**
 * Replaces the file at `path` by what `write` appends. When anything fails, the temporary file is removed and the old file
 * stays as it was; an error that `write` throws comes out unchanged.
 * @throws SelscanError DISK when the folder cannot be written or the disk is full
 * @example
 * await writeAtomically("runs/a/state.bin", async (file) => {
 *   for (const part of parts) await file.write(part)
 * })
 */
export async function writeAtomically(
  path: string,
  write: (file: AtomicFile) => Promise<void>,
  options: AtomicOptions = {},
): Promise<void> {
  // Random, because a restarted container has the process number of the killed one, and threads share theirs.
  const temporary = `${temporaryPrefix(path)}${randomInt(2 ** 47)}.tmp`
  const openNew = options.open ?? ((name) => open(name, "wx"))
  await removeStale(path)
  const handle = await disk(path, () => openNew(temporary))
  try {
    try {
      await write(new Appender(path, handle))
      await disk(path, () => handle.sync())
    } catch (error) {
      await handle.close().catch(() => {}) // the first error is the one to tell
      throw error
    }
    await disk(path, () => handle.close())
    await disk(path, () => rename(temporary, path))
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {})
    throw error
  }
  await disk(path, () => syncFolder(dirname(path)))
}

/** Replaces the file at `path` by `data`, text as UTF-8; as `writeAtomically`. */
export function writeFileAtomically(path: string, data: string | Uint8Array, options?: AtomicOptions): Promise<void> {
  const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data
  return writeAtomically(path, (file) => file.write(bytes), options)
}

/** One write call's most; the kernel takes less than 2 GiB at once. */
const writeBytesMax = 1 << 26

class Appender implements AtomicFile {
  readonly #path: string
  readonly #handle: FileHandle
  sizeBytes = 0

  constructor(path: string, handle: FileHandle) {
    this.#path = path
    this.#handle = handle
  }

  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const length = Math.min(bytes.length - at, writeBytesMax)
      const { bytesWritten } = await disk(this.#path, () => this.#handle.write(bytes, at, length))
      at += bytesWritten
      this.sizeBytes += bytesWritten
    }
  }
}

/** Runs a file operation; its failure becomes one sentence with the system's own words in it. */
export async function disk<T>(path: string, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation()
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    const remedy = code === "ENOSPC" || code === "EDQUOT" ? "free some space" : "check the folder and the disk"
    throw new SelscanError(
      "DISK",
      `${path}: expected to write the file, got ${message}; ${remedy}`,
      { path, reason: code },
      { cause },
    )
  }
}

function temporaryPrefix(path: string): string {
  return join(dirname(path), `.${basename(path)}.`)
}

async function removeStale(path: string): Promise<void> {
  const folder = dirname(path)
  const prefix = basename(temporaryPrefix(path))
  const names = await readdir(folder).catch(() => []) // a folder that cannot be listed may still be written
  for (const name of names) {
    if (!name.startsWith(prefix) || !/^\d+\.tmp$/.test(name.slice(prefix.length))) continue
    const file = join(folder, name)
    const age = Date.now() - ((await stat(file).catch(() => undefined))?.mtimeMs ?? Date.now())
    if (age > staleMs) await rm(file, { force: true }).catch(() => {}) // somebody else's to remove then
  }
}

/** The rename is on disk when the folder is. Windows opens no folders, and some file systems cannot sync one. */
async function syncFolder(folder: string): Promise<void> {
  if (process.platform === "win32") return
  const handle = await open(folder, "r")
  try {
    await handle.sync()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EINVAL") throw error
  } finally {
    await handle.close()
  }
}
