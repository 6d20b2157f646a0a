/** Which files of a repository a model needs: its config, its text files, and its weights in the one form that the loader takes. */
import { configFiles } from "../checkpoint/families.ts"
import { expect, oneLine, SelscanError } from "../errors.ts"
import { shownValue } from "./name.ts"

/** A file as the Hub lists it. Its content is named by its hash, so a blob of that name is the file for ever. */
export interface RemoteFile {
  readonly name: string
  readonly sizeBytes: number
  /** sha256 of large files; of small ones git's hash, sha1 over `blob <size>\0` and the content. */
  readonly algorithm: "sha256" | "git"
  /** Hexadecimal: the blob's name in the cache. */
  readonly hash: string
}

/** What a model without is read as bytes or ids: when it is known to be missing, all of these are. */
export const tokenizerFile = "tokenizer.json"
/** Taken where they are there. */
const textFiles = [
  tokenizerFile,
  ...["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"],
]

/** Weights by the file that says them all: the file itself, or the index of its shards. */
export interface Weights {
  readonly file: string
  readonly sharded: boolean
}

/** The order of the loader. */
const weightsForms: readonly Weights[] = [
  { file: "model.safetensors", sharded: false },
  { file: "model.safetensors.index.json", sharded: true },
  { file: "pytorch_model.bin", sharded: false },
  { file: "pytorch_model.bin.index.json", sharded: true },
]
/** An open set of names, so one must be a plain name: no separator, no drive, no dot in front. */
const plainName = /^[\w-][\w.-]{0,200}$/

/** An entry of a listing; not the library's type, which users' compilers would have to read. */
interface Listed {
  readonly type: string
  readonly path: string
  readonly size: number
  readonly oid?: string
  readonly lfs?: { readonly oid: string; readonly size: number }
}

/** Reads entries of a listing: files at the root. @throws SelscanError NETWORK for entries that no Hub sends */
export function remoteFile(entry: Listed, where: string): RemoteFile | undefined {
  const { type, path: name, lfs, oid } = entry
  if (type !== "file" || typeof name !== "string" || !plainName.test(name)) return undefined
  const sizeBytes = lfs?.size ?? entry.size
  const hash = lfs?.oid ?? oid
  const length = lfs ? 64 : 40
  const good = Number.isSafeInteger(sizeBytes) && sizeBytes >= 0 && typeof hash === "string" && isHash(hash, length)
  expect(good, "NETWORK", () => {
    return `${where}: expected size and hash of ${name} in the listing, got ${shownValue(JSON.stringify(entry))}; check the endpoint`
  })
  return { name, sizeBytes, algorithm: lfs ? "sha256" : "git", hash }
}

/** The largest public tokenizer.json has 35 MB; the readers of all of them refuse what is larger than this. */
const textBytesMost = 1 << 27

/** Refuses a config, a text file or an index that nobody would read, before it comes. @throws SelscanError BAD_FILE */
export function checkText({ name, sizeBytes }: RemoteFile, where: string): void {
  expect(sizeBytes <= textBytesMost, "BAD_FILE", () => {
    return `${where}: expected at most ${textBytesMost} bytes of ${name}, got ${sizeBytes}; tell the model's authors`
  })
}

const isHash = (text: string, length: number): boolean => text.length === length && /^[0-9a-f]+$/.test(text)

/** The config file that a loader would read. */
export const configOf = (names: ReadonlySet<string>): string | undefined => configFiles.find((file) => names.has(file))

export const textFilesOf = (names: ReadonlySet<string>): string[] => textFiles.filter((file) => names.has(file))

/** The weights that a loader would read. @throws SelscanError BAD_CHECKPOINT for several .pth files, of which none is the model's */
export function weightsOf(names: ReadonlySet<string>, where: string): Weights | undefined {
  const known = weightsForms.find(({ file }) => names.has(file))
  if (known) return known
  const files = [...names].filter((name) => name.endsWith(".pth"))
  expect(files.length <= 1, "BAD_CHECKPOINT", () => {
    return `${where}: expected weights in one .pth file, got ${files.join(", ")}; put the one you mean into a folder with its config`
  })
  return files[0] === undefined ? undefined : { file: files[0], sharded: false }
}

/** The files that an index names. @throws SelscanError BAD_CHECKPOINT for another text, and for names that are no plain ones */
export function shardsOf(text: string, where: string): string[] {
  const refuse = (expected: string, got: string): never => {
    throw new SelscanError("BAD_CHECKPOINT", `${where}: expected ${expected}, got ${got}; tell the model's authors`)
  }
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (error) {
    refuse("JSON", `a text that is none (${oneLine(error)})`)
  }
  const map = (parsed as { weight_map?: unknown } | null)?.weight_map
  if (typeof map !== "object" || map === null || Array.isArray(map)) return refuse("an object weight_map", typeof map)
  const names = [...new Set<string>(Object.values(map))] // strings, as the next lines make sure
  for (const name of names) {
    const plain = typeof name === "string" && plainName.test(name) && /\.(safetensors|bin)$/.test(name)
    if (!plain) refuse("plain names of files in weight_map", shownValue(name))
  }
  return names.length > 0 ? names : refuse("names of files in weight_map", "none")
}
