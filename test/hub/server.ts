/**
 * A Hub on this machine: repositories by name and commit, with the routes that downloads use. Large files are redirected to a
 * second server, as the Hub does. What it answers can be bent, and everything it was asked is kept.
 */
import { createHash } from "node:crypto"
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"

export interface Asked {
  readonly host: "hub" | "cdn"
  readonly path: string
  /** The file's name, for files. */
  readonly file: string | undefined
  readonly range: string | undefined
  readonly authorization: string | undefined
  readonly ifRange: string | undefined
}

/** A bent answer. `true` says that it has been given. */
export type Bend = (asked: Asked, response: ServerResponse, request: IncomingMessage) => boolean | undefined

type Answer = { status: number; headers: Record<string, string>; body?: string } | { content: Uint8Array }

export interface Repository {
  /** Commits by branch. */
  readonly branches: Record<string, string>
  /** Files by commit. */
  readonly commits: Record<string, Record<string, Uint8Array>>
}

export const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex")
export const gitHash = (bytes: Uint8Array): string =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex")

/** Files of these kinds are kept as LFS does. */
const isLarge = (name: string): boolean => /\.(safetensors|bin|pth)$/.test(name)
export const hashOf = (name: string, bytes: Uint8Array): string => (isLarge(name) ? sha256(bytes) : gitHash(bytes))

export class FakeHub {
  readonly repositories: Record<string, Repository> = {}
  readonly asked: Asked[] = []
  connections = 0
  /** Most file requests that were open at once. */
  openMost = 0
  bend: Bend = () => false
  /** Files of a listing's page. */
  pageSize = 1000
  #open = 0
  readonly #hub = createServer((request, response) => this.#answer("hub", request, response))
  readonly #cdn = createServer((request, response) => this.#answer("cdn", request, response))

  static async start(): Promise<FakeHub> {
    const hub = new FakeHub()
    for (const server of [hub.#hub, hub.#cdn]) {
      server.on("connection", () => hub.connections++)
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    }
    return hub
  }

  get endpoint(): string {
    return addressOf(this.#hub)
  }

  close(): void {
    for (const server of [this.#hub, this.#cdn]) {
      server.close()
      server.closeAllConnections()
    }
  }

  /** Puts a commit into a repository and its branch. */
  put(name: string, files: Record<string, Uint8Array | string>, commit: string, branch = "main"): void {
    const bytes = Object.fromEntries(Object.entries(files).map(([file, data]) => [file, Buffer.from(data)]))
    const { branches, commits } = this.repositories[name] ?? { branches: {}, commits: {} }
    this.repositories[name] = {
      branches: { ...branches, [branch]: commit },
      commits: { ...commits, [commit]: bytes },
    }
  }

  /** Forgets what was asked, and how it was to be bent. */
  reset(): void {
    this.asked.length = 0
    this.connections = 0
    this.openMost = 0
    this.bend = () => false
    this.pageSize = 1000
    this.#hub.closeAllConnections()
    this.#cdn.closeAllConnections()
  }

  /** Ranges of the requests for a file that were answered with content. */
  ranges(file: string): (string | undefined)[] {
    const host = isLarge(file) ? "cdn" : "hub"
    return this.asked.filter((one) => one.file === file && one.host === host).map(({ range }) => range)
  }

  #answer(host: "hub" | "cdn", request: IncomingMessage, response: ServerResponse): void {
    const path = request.url ?? "/"
    const file = /\/(?:resolve\/[^/]+|cdn)\/([^/?]+)/.exec(path)?.[1]
    const { range, authorization } = request.headers
    const ifRange = request.headers["if-range"] as string | undefined
    const asked: Asked = { host, path, file, range, authorization, ifRange }
    this.asked.push(asked)
    if (file) {
      this.openMost = Math.max(this.openMost, ++this.#open)
      response.on("close", () => this.#open--)
    }
    if (this.bend(asked, response, request)) return
    const answer = host === "cdn" ? { content: this.#large(path.split("/")[3]!) } : this.#route(path)
    if ("content" in answer) sendContent(answer.content, request, response)
    else response.writeHead(answer.status, answer.headers).end(answer.body)
  }

  #route(path: string): Answer {
    const url = new URL(path, this.endpoint)
    const pattern = /^\/(?:(api)\/models\/)?([^/]+\/[^/]+)\/(revision|tree|resolve)\/([^/]+)(?:\/([^/]+))?$/
    const [, api, name = "", verb, revision = "", file = ""] = pattern.exec(url.pathname) ?? []
    const repository = this.repositories[name]
    if (repository === undefined) return missing("RepoNotFound")
    const wanted = decodeURIComponent(revision)
    const commit = repository.branches[wanted] ?? wanted
    const files = repository.commits[commit]
    if (files === undefined) return missing("RevisionNotFound")
    if (verb === "revision") return json({ _id: "1", id: name, sha: commit, private: false, gated: false })
    if (api) return this.#tree(url, files)
    const content = files[decodeURIComponent(file)]
    if (content === undefined) return missing("EntryNotFound")
    if (!isLarge(file)) return { content }
    const location = `${addressOf(this.#cdn)}/cdn/${file}/${sha256(content)}/signed`
    const linked = { "x-linked-etag": `"${sha256(content)}"`, "x-linked-size": String(content.length) }
    return { status: 302, headers: { location, ...linked } }
  }

  #tree(url: URL, files: Record<string, Uint8Array>): Answer {
    const from = Number(url.searchParams.get("cursor") ?? 0)
    const entries = Object.entries(files).map(([path, bytes]) => {
      const lfs = isLarge(path) ? { oid: sha256(bytes), size: bytes.length, pointerSize: 134 } : undefined
      return {
        type: "file",
        oid: gitHash(bytes),
        size: bytes.length,
        path,
        ...(lfs && { lfs, xetHash: sha256(bytes) }),
      }
    })
    const folder = { type: "directory", oid: "0".repeat(40), size: 0, path: "onnx" }
    const next = from + this.pageSize
    url.searchParams.set("cursor", String(next))
    const headers = next < entries.length ? { link: `<${url.href}>; rel="next"` } : {}
    return json([folder, ...entries.slice(from, next)], headers)
  }

  #large(hash: string): Uint8Array {
    const commits = Object.values(this.repositories).flatMap((repository) => Object.values(repository.commits))
    return commits.flatMap((files) => Object.values(files)).find((bytes) => sha256(bytes) === hash)!
  }
}

/** Content, or the range of it that is asked for. */
export function sendContent(content: Uint8Array, request: IncomingMessage, response: ServerResponse): void {
  const etag = `"${sha256(content).slice(0, 32)}"`
  response.setHeader("etag", etag)
  const from = /^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1]
  const ifRange = request.headers["if-range"]
  if (from === undefined || (ifRange !== undefined && ifRange !== etag)) {
    response.writeHead(200, { "content-length": content.length })
    response.end(content)
    return
  }
  response.writeHead(206, {
    "content-range": `bytes ${from}-${content.length - 1}/${content.length}`,
    "content-length": content.length - Number(from),
  })
  response.end(content.subarray(Number(from)))
}

const addressOf = (server: Server): string => `http://127.0.0.1:${(server.address() as AddressInfo).port}`

const missing = (code: string): Answer => ({ status: 404, headers: { "x-error-code": code } })

function json(value: unknown, headers: Record<string, string> = {}): Answer {
  const type = { "content-type": "application/json; charset=utf-8" }
  return { status: 200, headers: { ...type, ...headers }, body: JSON.stringify(value) }
}

/** A bend that answers so, to what `when` picks. */
export const answers =
  (status: number, headers: Record<string, string> = {}, when = (_: Asked): boolean => true): Bend =>
  (asked, response) => {
    if (when(asked)) response.writeHead(status, headers).end()
    return when(asked)
  }
