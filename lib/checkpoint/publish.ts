/** Where conversions put what they write: nothing is replaced unasked, and a failure leaves what was there before, and nothing else. */
import { randomInt } from "node:crypto"
import { copyFile, mkdir, open, readdir, realpath, rename, rm, rmdir, stat } from "node:fs/promises"
import { basename, dirname, join, resolve } from "node:path"
import { expect } from "../errors.ts"
import { disk } from "./atomic.ts"
import { configFiles } from "./families.ts"

/** Files beside a model's weights that other libraries read its text with. */
const tokenizerFiles = [
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "generation_config.json",
  "chat_template.jinja",
]
/** Names that a model's folder has; those of the old model go when it is replaced. */
const modelFiles: readonly string[] = [
  ...configFiles,
  "model.safetensors",
  "model.safetensors.index.json",
  ...tokenizerFiles,
]

/** A killed process leaves its staging folder; the next conversion to the same place removes what is older than this. */
const staleMs = 3_600_000

/**
 * Runs `write`, which puts one file at `path` atomically, and makes the folders above it.
 * @throws SelscanError BAD_OPTION when something is there that is no GGUF file, or that `force` does not allow to be replaced; DISK
 */
export async function publishFile(path: string, force: boolean, write: () => Promise<void>): Promise<void> {
  const there = await stat(path).catch(() => undefined)
  if (there !== undefined) {
    expect(there.isFile(), "BAD_OPTION", () => `convert: expected the path of a file, got ${path}; name a file in it`)
    expect(force, "BAD_OPTION", () => `convert: expected no file at ${path}, got one; choose another, or force it`)
    // The path of a model's weights, say: what is lost then was not a copy.
    expect(await isGguf(path), "BAD_OPTION", () => {
      return `convert: expected a GGUF file at ${path} to replace, got another; choose another path`
    })
  }
  await withParents(path, write)
}

async function isGguf(path: string): Promise<boolean> {
  await using handle = await open(path, "r")
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(4), 0, 4, 0)
  return bytesRead === 4 && buffer.toString("latin1") === "GGUF"
}

/**
 * Runs `write` on a new folder beside `path`, and moves what it wrote there when it is complete: the folder itself where there is none,
 * else its files one by one, in the order of their writing.
 * @throws SelscanError BAD_OPTION when a model is there and `force` does not allow it to be replaced, or when it is `model` itself; DISK
 */
export async function publishFolder(
  model: string,
  path: string,
  force: boolean,
  write: (staged: string) => Promise<void>,
): Promise<void> {
  const there = await stat(path).catch(() => undefined)
  if (there !== undefined) await checkFolder(model, path, force, there.isDirectory())
  await withParents(path, async () => {
    const staged = join(dirname(resolve(path)), `.${basename(resolve(path))}.${randomInt(2 ** 47)}.tmp`)
    await removeStale(staged)
    try {
      await disk(path, () => mkdir(staged))
      await write(staged)
      if (there === undefined) await disk(path, () => rename(staged, path))
      else await moveFiles(staged, path)
    } finally {
      await rm(staged, { recursive: true, force: true }).catch(() => {}) // the first error is the one to tell
    }
  })
}

async function checkFolder(model: string, path: string, force: boolean, isFolder: boolean): Promise<void> {
  expect(isFolder, "BAD_OPTION", () => `convert: expected the path of a folder, got a file at ${path}; choose another`)
  const own = (await realpath(path)) === (await realpath(model))
  expect(!own, "BAD_OPTION", () => `convert: expected another folder than the model's own, got ${path}; choose another`)
  const files: string[] = await readdir(path).catch(() => []) // one that cannot be read may still be written
  const first = files.find((file) => modelFiles.includes(file))
  expect(force || first === undefined, "BAD_OPTION", () => {
    return `convert: expected no model in ${path}, got ${first}; choose another folder, or force it`
  })
}

/** Files of the old model that the new one has not would be taken for its own. Its config goes first, and the new one's comes last. */
async function moveFiles(staged: string, path: string): Promise<void> {
  const files = await disk(path, () => readdir(staged))
  for (const file of modelFiles) {
    if (!files.includes(file)) await disk(path, () => rm(join(path, file), { force: true }))
  }
  const isConfig = (file: string) => configFiles.includes(file)
  for (const file of [...files.filter((file) => !isConfig(file)), ...files.filter(isConfig)])
    await disk(path, () => rename(join(staged, file), join(path, file)))
}

/** Copies the files that text is read with; what is no regular file, such as a pipe, is none. */
export async function copyTokenizer(from: string, to: string): Promise<void> {
  for (const file of tokenizerFiles) {
    const there = await stat(join(from, file)).catch(() => undefined)
    if (there?.isFile()) await disk(join(to, file), () => copyFile(join(from, file), join(to, file)))
  }
}

/** Runs `work` with the folders above a path; those that it needed are removed when it fails. */
async function withParents(path: string, work: () => Promise<void>): Promise<void> {
  const parent = dirname(resolve(path))
  const made = await disk(path, () => mkdir(parent, { recursive: true }))
  try {
    await work()
  } catch (error) {
    for (let at = parent; made !== undefined && at.startsWith(made); at = dirname(at)) {
      const removed = await rmdir(at).then(
        () => true,
        () => false, // somebody has put something there
      )
      if (!removed) break
    }
    throw error
  }
}

async function removeStale(staged: string): Promise<void> {
  const folder = dirname(staged)
  const prefix = basename(staged).replace(/\d+\.tmp$/, "")
  const names = await readdir(folder).catch(() => [])
  for (const name of names) {
    if (!name.startsWith(prefix) || !/^\d+\.tmp$/.test(name.slice(prefix.length))) continue
    const age = Date.now() - ((await stat(join(folder, name)).catch(() => undefined))?.mtimeMs ?? Date.now())
    if (age > staleMs) await rm(join(folder, name), { recursive: true, force: true }).catch(() => {})
  }
}
