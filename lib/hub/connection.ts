/**
 * Requests that cannot hang and do not give up at once: each attempt ends when the server falls silent, and what a second one
 * may mend is tried again with growing pauses. The token goes to the Hub's own address alone.
 */
import { setTimeout as sleep } from "node:timers/promises"
import { SelscanError } from "../errors.ts"
import { shownValue } from "./name.ts"
import type { Settings } from "./options.ts"

/** What the patience of a download is made of. */
export interface Patience {
  /** Failures in a row after which it is given up. */
  readonly tries: number
  /** The first pause; each next one is twice as long. */
  readonly backoffMs: number
}

/** A pause that a server asks for is granted up to this. */
const pauseMsMax = 30_000
/** Listings are paged and have a few hundred kilobytes. */
const answerBytesMax = 1 << 26

/** Too slow, another range than there is, too many requests. */
const passing = new Set([408, 416, 429])

/** A failure that another attempt may mend. */
export class Transient extends Error {
  readonly pauseMs: number

  constructor(message: string, pauseMs = 0) {
    super(message)
    this.pauseMs = pauseMs
  }
}

/** Takes a response; `alive` says that the server is not silent. */
type Use<T> = (response: Response, alive: () => void) => Promise<T>

export class Connection implements Disposable {
  readonly #settings: Settings
  readonly #patience: Patience
  /** Ends every request of the download: the caller's signal does, and the failure of one file the others'. */
  readonly #controller = new AbortController()
  readonly stop = (): void => this.#controller.abort()

  constructor(settings: Settings, patience: Patience) {
    this.#settings = settings
    this.#patience = patience
    if (settings.signal?.aborted) this.stop()
    settings.signal?.addEventListener("abort", this.stop, { once: true })
  }

  [Symbol.dispose](): void {
    this.#settings.signal?.removeEventListener("abort", this.stop)
  }

  /** A fetch for small answers, read whole, with everything this class adds. */
  api(tries = this.#patience.tries): typeof fetch {
    return (input, init) =>
      this.retry(
        () => this.attempt(String(input), Object.fromEntries(new Headers(init?.headers)), readWhole),
        () => false,
        tries,
      )
  }

  /**
   * Runs attempts until one succeeds. `progressed` says whether the last one brought enough that failures count from zero again.
   * @throws SelscanError NETWORK with the last failure, ABORTED
   */
  async retry<T>(attempt: () => Promise<T>, progressed: () => boolean, tries = this.#patience.tries): Promise<T> {
    const { signal } = this.#controller
    const { where, endpoint } = this.#settings
    for (let failures = 1; ; failures++) {
      try {
        return await attempt()
      } catch (error) {
        if (!(error instanceof Transient)) throw error
        if (progressed()) failures = 1
        if (failures >= tries) {
          const message = `${where}: expected an answer of ${endpoint}, got ${error.message}; check the network and try again, what has arrived is kept`
          throw new SelscanError("NETWORK", message, { endpoint }, { cause: error })
        }
        const pause = Math.min(pauseMsMax, Math.max(error.pauseMs, this.#patience.backoffMs * 2 ** (failures - 1)))
        await sleep(pause, undefined, { signal }).catch(() => this.throwIfAborted())
      }
    }
  }

  throwIfAborted(): void {
    if (!this.#controller.signal.aborted) return
    const { where, signal } = this.#settings
    const message = `${where}: aborted; call again to go on, what has arrived is kept`
    throw new SelscanError("ABORTED", message, {}, { cause: signal?.reason })
  }

  /**
   * One request. The connection is closed when `use` is done, whether or not it has read everything.
   * @throws Transient, or SelscanError NOT_FOUND, NO_ACCESS, NETWORK, ABORTED
   */
  async attempt<T>(url: string, headers: Record<string, string>, use: Use<T>): Promise<T> {
    this.throwIfAborted()
    const { timeoutMs } = this.#settings
    const { signal } = this.#controller
    const controller = new AbortController()
    const stop = () => controller.abort()
    let silent = false
    const timer = setTimeout(() => {
      silent = true
      stop()
    }, timeoutMs)
    signal.addEventListener("abort", stop, { once: true })
    try {
      const response = await this.#send(url, headers, controller.signal)
      timer.refresh()
      if (!response.ok) throw this.#refusal(response)
      return await use(response, () => timer.refresh())
    } catch (error) {
      this.throwIfAborted()
      throw silent && error instanceof Transient ? new Transient(`silence for ${timeoutMs} ms`) : error
    } finally {
      clearTimeout(timer)
      signal.removeEventListener("abort", stop)
      stop()
    }
  }

  async #send(url: string, headers: Record<string, string>, signal: AbortSignal): Promise<Response> {
    const { endpoint, token, fetch } = this.#settings
    const own = new URL(url).origin === new URL(endpoint).origin
    const authorization = own && token !== undefined ? { authorization: `Bearer ${token}` } : {}
    // Ranges are of the file, not of a compressed form of it.
    const sent = { ...headers, ...authorization, "accept-encoding": "identity" }
    return await fetch(url, { headers: sent, signal }).catch(broken)
  }

  /** What a status says, as an error. */
  #refusal(response: Response): Error {
    const { status, headers } = response
    if (status >= 500 || passing.has(status)) return new Transient(`status ${status}`, pauseOf(headers))
    const { where, repository, revision, endpoint, token } = this.#settings
    const refused = (code: "NOT_FOUND" | "NO_ACCESS" | "NETWORK", expected: string, remedy: string) => {
      const said = headers.get("x-error-message")
      const got = `status ${status}${said ? ` (${shownValue(said)})` : ""}`
      return new SelscanError(code, `${where}: expected ${expected}, got ${got}; ${remedy}`, { repository, status })
    }
    const kind = headers.get("x-error-code")
    const page = `${endpoint}/${repository}`
    if (kind === "GatedRepo") {
      const remedy = `accept its terms at ${page}, and give ${token ? "that account's token" : "a token"} as option or HF_TOKEN`
      return refused("NO_ACCESS", "a model that is free to download", remedy)
    }
    if (kind === "RevisionNotFound") {
      return refused("NOT_FOUND", `the revision ${revision}`, `look for its name at ${page}`)
    }
    if (kind === "EntryNotFound") return refused("NOT_FOUND", "a file that is listed", "try again")
    if (kind === "RepoNotFound" || status === 404) {
      const remedy = `check the name at ${page}${token ? "" : ", give a token if it is private"}, or give the path of a folder that exists`
      return refused("NOT_FOUND", `a model of this name at ${endpoint}`, remedy)
    }
    if (status === 401 || status === 403) {
      const remedy = token ? "check the token and its rights" : "check the name, or give a token as option or HF_TOKEN"
      return refused("NO_ACCESS", `a model at ${endpoint} that may be read`, remedy)
    }
    return refused("NETWORK", `an answer of ${endpoint}`, "check the endpoint")
  }
}

const readWhole: Use<Response> = async (response, alive) => {
  const pieces: Uint8Array[] = []
  let size = 0
  for await (const piece of piecesOf(response)) {
    alive()
    size += piece.length
    if (size > answerBytesMax) throw new Transient(`an answer of more than ${answerBytesMax} bytes`)
    pieces.push(piece)
  }
  return new Response(Buffer.concat(pieces), { status: response.status, headers: response.headers })
}

/** The body as it arrives. */
export async function* piecesOf(response: Response): AsyncGenerator<Uint8Array> {
  const reader = response.body?.getReader()
  for (;;) {
    const piece = await reader?.read().catch(broken)
    if (piece === undefined || piece.done) return
    yield piece.value
  }
}

/** Whatever fetch and bodies reject with is the network's. */
function broken(error: Error): never {
  const deeper = error.cause as (Error & { code?: string }) | undefined
  throw new Transient(`${error.message}${deeper ? ` (${deeper.code ?? deeper.message})` : ""}`.replace(/\s+/g, " "))
}

function pauseOf(headers: Headers): number {
  const seconds = Number(headers.get("retry-after"))
  return Number.isFinite(seconds) && seconds > 0 ? 1000 * seconds : 0
}
