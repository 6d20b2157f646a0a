/** Options of downloads, and what the environment says where they are silent: the same variables as of Python's huggingface_hub. */
import { readFile } from "node:fs/promises"
import { homedir } from "node:os"
import { join, resolve } from "node:path"
import { checkOptions, expect } from "../errors.ts"
import { library } from "./library.ts"
import { parseHubName, shownValue } from "./name.ts"

/** How far a download is. */
export interface DownloadProgress {
  /** The file that grew. */
  readonly file: string
  /** Of all files, those that were on disk before included; it falls when a file has to begin again. */
  readonly loadedBytes: number
  /** Of all files; known before the first call. */
  readonly totalBytes: number
}

export interface DownloadOptions {
  /** A branch, a tag or a commit hash; `owner/name@revision` says the same. Default `main`. */
  readonly revision?: string | undefined
  /** For private and gated models; false sends none. Default: HF_TOKEN, else the file that `hf auth login` writes. */
  readonly token?: string | false | undefined
  /** Address of the Hub or a mirror. Default: HF_ENDPOINT, else https://huggingface.co. */
  readonly endpoint?: string | undefined
  /** Default: HF_HUB_CACHE, else `hub` in HF_HOME, else ~/.cache/huggingface/hub. */
  readonly cacheDir?: string | undefined
  /** Takes what the cache has, and opens no connection. Default: whether HF_HUB_OFFLINE is 1, on, yes or true. */
  readonly offline?: boolean | undefined
  /** Called for each piece that arrives. What it throws ends the download. */
  readonly onProgress?: ((progress: DownloadProgress) => void) | undefined
  /** Ends the download; what is on disk is kept for the next. */
  readonly signal?: AbortSignal | undefined
  /** Silence after which a connection counts as cut, in milliseconds. Default 30,000. */
  readonly timeoutMs?: number | undefined
  /** Stands in for the global fetch, to go through a proxy for example. It must drop Authorization where a redirect leaves the host. */
  readonly fetch?: typeof fetch | undefined
}

export const downloadOptionNames: readonly (keyof DownloadOptions)[] = [
  ...(["revision", "token", "endpoint", "cacheDir", "offline", "onProgress", "signal", "timeoutMs", "fetch"] as const),
]

/** The options of a download among others, and the others. */
export function dividedOptions<Options extends DownloadOptions>(options: Options) {
  const { revision, token, endpoint, cacheDir, offline, onProgress, signal, timeoutMs, fetch, ...own } = options
  return { hub: { revision, token, endpoint, cacheDir, offline, onProgress, signal, timeoutMs, fetch }, own }
}

/** Options with every default filled in. */
export interface Settings {
  /** Begins every message. */
  readonly where: string
  readonly repository: string
  readonly revision: string
  readonly token: string | undefined
  readonly endpoint: string
  readonly cacheDir: string
  /** The model's own in it. */
  readonly folder: string
  readonly offline: boolean
  readonly onProgress: ((progress: DownloadProgress) => void) | undefined
  readonly signal: AbortSignal | undefined
  readonly timeoutMs: number
  readonly fetch: typeof fetch
}

/** Checks a name and its options. @throws SelscanError BAD_INPUT, BAD_OPTION */
export async function settingsOf(name: unknown, options: DownloadOptions): Promise<Settings> {
  const { getHFHubCachePath, getRepoFolderName, HUB_URL } = await library()
  checkOptions("download", options, downloadOptionNames)
  const { repository, revision = "main" } = parseHubName(name, options.revision)
  const { offline = environmentSays("HF_HUB_OFFLINE"), timeoutMs = 30_000, onProgress, signal } = options
  const where = `download ${repository}`
  const want = (good: boolean, option: keyof DownloadOptions, expected: string): void =>
    expect(good, "BAD_OPTION", () => `${where}: ${option} is ${expected}, got ${shownOption(options[option])}`, {
      option,
    })
  want(typeof offline === "boolean", "offline", "true or false")
  // Timers take 31 bits.
  want(Number.isSafeInteger(timeoutMs) && timeoutMs > 0 && timeoutMs < 2 ** 31, "timeoutMs", "a whole number above 0")
  want(onProgress === undefined || typeof onProgress === "function", "onProgress", "a function")
  want(signal === undefined || signal instanceof AbortSignal, "signal", "an AbortSignal")
  want(options.fetch === undefined || typeof options.fetch === "function", "fetch", "a function")
  const { cacheDir = expandHome(getHFHubCachePath()) } = options
  want(typeof cacheDir === "string" && cacheDir !== "" && !cacheDir.includes("\0"), "cacheDir", "the path of a folder")
  return {
    where,
    repository,
    revision,
    token: await tokenOf(where, options.token),
    endpoint: endpointOf(where, options.endpoint ?? (process.env.HF_ENDPOINT || HUB_URL)),
    cacheDir: resolve(cacheDir),
    folder: join(resolve(cacheDir), getRepoFolderName({ type: "model", name: repository })),
    offline,
    onProgress,
    signal,
    timeoutMs,
    fetch: options.fetch ?? ((url, init) => fetch(url, init)),
  }
}

const shownOption = (value: unknown): string => (typeof value === "number" ? String(value) : shownValue(value))

const environmentSays = (name: string): boolean => /^(1|on|yes|true)$/i.test(process.env[name] ?? "")

const expandHome = (path: string): string => (/^~(?=$|[\\/])/.test(path) ? homedir() + path.slice(1) : path)

function endpointOf(where: string, endpoint: string): string {
  const url = typeof endpoint === "string" && URL.canParse(endpoint) ? new URL(endpoint) : undefined
  const good = url !== undefined && /^https?:$/.test(url.protocol) && !(url.username || url.search || url.hash)
  expect(good, "BAD_OPTION", () => {
    return `${where}: expected endpoint to be an address such as https://huggingface.co, got ${shownValue(endpoint)}; check the option or HF_ENDPOINT`
  })
  return url.href.replace(/\/+$/, "")
}

async function tokenOf(where: string, given: string | false | undefined): Promise<string | undefined> {
  if (given === false) return undefined
  const token = given ?? ((process.env.HF_TOKEN ?? "").trim() || (await storedToken()))
  // The value stays out of the message.
  expect(
    token === undefined || (typeof token === "string" && /^[\x21-\x7e]{1,4096}$/.test(token)),
    "BAD_OPTION",
    () => {
      return `${where}: expected token to be one word of ASCII characters, or false for none, got another value; check the option or HF_TOKEN`
    },
  )
  return token
}

/** What `hf auth login` has written. */
async function storedToken(): Promise<string | undefined> {
  const { HF_TOKEN_PATH, HF_HOME, XDG_CACHE_HOME } = process.env
  const home = HF_HOME || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "huggingface")
  const text = await readFile(expandHome(HF_TOKEN_PATH || join(home, "token")), "utf8").catch(() => "")
  return text.trim() || undefined
}
