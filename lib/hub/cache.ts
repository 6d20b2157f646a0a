/**
 * One model in the standard cache of the Hub, the same folders as of Python's huggingface_hub:
 *
 *   models--owner--name/blobs/<hash>               content, by its hash
 *   models--owner--name/snapshots/<commit>/<file>  a relative link to its blob; a copy where links cannot be made
 *   models--owner--name/refs/<revision>            the commit that a branch or tag meant when the Hub was asked last
 *   models--owner--name/.no_exist/<commit>/<file>  an empty file: the commit has no such file
 */
import { randomInt } from "node:crypto"
import { constants, copyFile, mkdir, readdir, readFile, rename, rm, stat, symlink, writeFile } from "node:fs/promises"
import { basename, dirname, join, relative } from "node:path"
import { disk, writeFileAtomically } from "../checkpoint/atomic.ts"
import { SelscanError } from "../errors.ts"
import { configOf, type RemoteFile, shardsOf, tokenizerFile, weightsOf } from "./files.ts"
import { isCommit } from "./name.ts"
import type { Settings } from "./options.ts"

/** What the cache has of a commit. */
export interface Cached {
  /** What a loader would miss; undefined when config and weights are whole. */
  readonly lacks: string | undefined
  /** Nothing that the Hub could add: the tokenizer is there, or known not to be. */
  readonly settled: boolean
}

/** Reasons not to link that a copy does away with. */
const linkless = new Set(["EPERM", "EACCES", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EINVAL", "UNKNOWN"])
/** Reasons not to write that a cache for reading alone gives. */
const readOnly = new Set(["EROFS", "EACCES", "EPERM"])

export interface CacheOptions {
  /** Makes a link; tests stand in a file system that has none. */
  readonly link?: (target: string, path: string) => Promise<void>
}

export class ModelCache {
  readonly folder: string
  readonly #where: string
  readonly #link: (target: string, path: string) => Promise<void>

  constructor({ where, folder }: Settings, { link = symlink }: CacheOptions = {}) {
    this.folder = folder
    this.#where = where
    this.#link = link
  }

  snapshot(commit: string): string {
    return join(this.folder, "snapshots", commit)
  }

  blob({ hash }: RemoteFile): string {
    return join(this.folder, "blobs", hash)
  }

  /** The commit that a revision meant when it was last asked for. */
  async commitOf(revision: string): Promise<string | undefined> {
    const text = await readFile(join(this.folder, "refs", revision), "utf8").catch(() => "")
    return isCommit(text.trim()) ? text.trim() : undefined
  }

  async state(commit: string): Promise<Cached> {
    const folder = this.snapshot(commit)
    const names = await this.#names(folder)
    const config = configOf(names)
    const weights = weightsOf(names, this.#where)
    if (config === undefined || weights === undefined) {
      return { lacks: names.size === 0 ? "all" : config === undefined ? "config" : "weights", settled: false }
    }
    if (weights.sharded) {
      const lacks = await missingShard(join(folder, weights.file), names)
      if (lacks !== undefined) return { lacks, settled: false }
    }
    const known = names.has(tokenizerFile) || (await exists(this.#absence(commit, tokenizerFile)))
    return { lacks: undefined, settled: known }
  }

  /** Files of a snapshot that can be read: a link whose blob is gone is none. */
  async #names(folder: string): Promise<Set<string>> {
    const names = await readdir(folder).catch(() => [])
    const there = await Promise.all(names.map((name) => exists(join(folder, name))))
    return new Set(names.filter((_, i) => there[i]))
  }

  /** Whether a snapshot has a file of this size. */
  async has(commit: string, { name, sizeBytes }: RemoteFile): Promise<boolean> {
    return (await sizeOf(join(this.snapshot(commit), name))) === sizeBytes
  }

  /** Where to read a file: its snapshot may have it without a blob, as Python writes it where links cannot be made. */
  async contentOf(commit: string, file: RemoteFile): Promise<string> {
    return (await this.has(commit, file)) ? join(this.snapshot(commit), file.name) : this.blob(file)
  }

  async hasBlob(file: RemoteFile): Promise<boolean> {
    return (await sizeOf(this.blob(file))) === file.sizeBytes
  }

  async prepare(commit: string): Promise<void> {
    for (const folder of [join(this.folder, "blobs"), this.snapshot(commit)]) {
      await disk(folder, () => mkdir(folder, { recursive: true }))
    }
  }

  /** Puts a blob into a snapshot under its file's name, in one step. */
  async link(commit: string, file: RemoteFile): Promise<void> {
    if (await this.has(commit, file)) return
    const path = join(this.snapshot(commit), file.name)
    const blob = this.blob(file)
    const temporary = `${path}.${randomInt(2 ** 47)}.tmp`
    try {
      await this.#link(relative(dirname(path), blob), temporary).catch((error: NodeJS.ErrnoException) => {
        if (!linkless.has(error.code ?? "")) throw error
        return copyFile(blob, temporary, constants.COPYFILE_FICLONE)
      })
      await rename(temporary, path)
    } catch (error) {
      await rm(temporary, { force: true }).catch(() => {})
      await disk(path, () => Promise.reject(error))
    }
  }

  /** Remembers what a revision means. */
  async refer(revision: string, commit: string): Promise<void> {
    if (isCommit(revision) || (await this.commitOf(revision)) === commit) return
    const path = join(this.folder, "refs", revision)
    await optional(async () => {
      await disk(path, () => mkdir(dirname(path), { recursive: true }))
      await writeFileAtomically(path, commit)
    })
  }

  /** Remembers that a commit has no tokenizer. */
  async markAbsent(commit: string, name: string): Promise<void> {
    const path = this.#absence(commit, name)
    await optional(async () => {
      await disk(path, () => mkdir(dirname(path), { recursive: true }))
      await disk(path, () => writeFile(path, ""))
    })
  }

  #absence(commit: string, name: string): string {
    return join(this.folder, ".no_exist", commit, name)
  }
}

/** The first shard of an index that is not there; the index itself where it cannot be read. */
async function missingShard(index: string, names: ReadonlySet<string>): Promise<string | undefined> {
  try {
    return shardsOf(await readFile(index, "utf8"), index).find((shard) => !names.has(shard))
  } catch {
    return basename(index)
  }
}

/** Notes for the next time, which a cache for reading alone does without. */
async function optional(write: () => Promise<void>): Promise<void> {
  try {
    await write()
  } catch (error) {
    if (!(error instanceof SelscanError && readOnly.has(String(error.details.reason)))) throw error
  }
}

const exists = async (path: string): Promise<boolean> => (await sizeOf(path)) !== undefined

async function sizeOf(path: string): Promise<number | undefined> {
  const info = await stat(path).catch(() => undefined)
  return info?.isFile() ? info.size : undefined
}
