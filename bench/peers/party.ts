/**
 * Who is measured: a process of its own that has a model and does one thing at a time when it is asked. While it is not its turn it is
 * stopped, so that threads which wait for work by spinning take nothing from the others.
 */
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"
import { promptIds } from "../../lib/generate/side-by-side.ts"

/** What is timed: reading a prompt of so many tokens, or writing so many after a short one, of one sequence or of several at once. */
export type Task =
  | { readonly kind: "prefill"; readonly tokens: number }
  | { readonly kind: "decode"; readonly tokens: number; readonly batch: number }

export const nameOf = (task: Task): string =>
  task.kind === "prefill" ? `prefill ${task.tokens}` : `decode, batch ${task.batch}`

/** Tokens of all sequences together. */
export const tokensOf = (task: Task): number => (task.kind === "prefill" ? task.tokens : task.tokens * task.batch)

/** Tokens before those that are written: what one costs does not depend on how many there are. */
export const before = 16

/** Any ids do, and each sequence has its own. */
export const promptOf = (sequence: number, tokens: number, vocab: number): number[] =>
  promptIds(sequence, { prefill: tokens }, vocab).slice(0, tokens)

export interface Settings {
  /** A folder for ours, a file for llama.cpp. */
  readonly model: string
  readonly threads: number
  readonly vocab: number
  /** The longest prompt that will be asked for, and the most sequences. */
  readonly tokensMost: number
  readonly batchMost: number
  /** The node_modules folder with node-llama-cpp, and which that is. */
  readonly modules: string
  readonly version: string
  /** How ours loads the model. */
  readonly load: object
  /** Bytes of the block that ours reads to measure the memory, as in SpeedOptions. */
  readonly blockBytes?: number
}

/** What a party can be asked. */
export interface Party {
  /** In words, how it is set up. */
  about(): Promise<string>
  /** What a task needs once: programs, packed weights, touched pages. */
  warm(task: Task): Promise<number>
  seconds(task: Task): Promise<number>
  /** Logits of what follows the last of the ids. */
  logits(ids: readonly number[]): Promise<number[]>
  /** Bytes per second that memory gives, of ours alone. */
  readBandwidth?(): Promise<number>
  /** Bytes that a decoded token reads, weights once for all sequences, of ours alone. */
  bytesPerToken?(task: Task): Promise<number>
}

type Question = { readonly call: keyof Party; readonly given: unknown }
type Answer = { readonly value?: unknown; readonly error?: string }

/** Answers in this process, which was forked, with what `open` makes of the settings. */
export async function serve(open: (settings: Settings) => Promise<Party>): Promise<void> {
  const tell = (answer: Answer) => process.send?.(answer)
  const failed = (error: Error) => tell({ error: error.stack ?? String(error) })
  process.on("disconnect", () => process.exit())
  try {
    const party = await open(JSON.parse(process.argv[2]!) as Settings)
    process.on("message", ({ call, given }: Question) => {
      const answered = party[call]?.(given as never) ?? Promise.reject(new Error(`${call} is not known here`))
      answered.then((value: unknown) => tell({ value }), failed)
    })
    tell({ value: true })
  } catch (error) {
    failed(error as Error)
  }
}

/** Whether a process can be stopped and go on. */
const stops = process.platform !== "win32"

/** A party in a process of its own, as its questioner sees it. */
export class Player implements Party {
  readonly name: string
  readonly #child: ChildProcess
  readonly #kill = () => this.#child.kill("SIGKILL") // a stopped process hears nothing else

  private constructor(name: string, child: ChildProcess) {
    this.name = name
    this.#child = child
    process.on("exit", this.#kill)
  }

  /** Starts `script` and waits for its model. */
  static async start(name: string, script: string, settings: Settings, env: NodeJS.ProcessEnv = {}): Promise<Player> {
    const path = fileURLToPath(new URL(script, import.meta.url))
    const execArgv = [`--import=${import.meta.resolve("tsx")}`]
    const child = fork(path, [JSON.stringify(settings)], { execArgv, env: { ...process.env, ...env } })
    const player = new Player(name, child)
    await player.#answer().catch((error) => {
      player.end()
      throw error
    })
    player.#pause()
    return player
  }

  about = () => this.#ask<string>("about")
  warm = (task: Task) => this.#ask<number>("warm", task)
  seconds = (task: Task) => this.#ask<number>("seconds", task)
  logits = (ids: readonly number[]) => this.#ask<number[]>("logits", ids)
  readBandwidth = () => this.#ask<number>("readBandwidth")
  bytesPerToken = (task: Task) => this.#ask<number>("bytesPerToken", task)

  end(): void {
    process.off("exit", this.#kill)
    this.#kill()
  }

  async #ask<T>(call: keyof Party, given: unknown = null): Promise<T> {
    if (stops) this.#child.kill("SIGCONT")
    this.#child.send({ call, given } satisfies Question)
    try {
      return (await this.#answer()) as T
    } finally {
      this.#pause()
    }
  }

  #pause(): void {
    if (stops) this.#child.kill("SIGSTOP")
  }

  async #answer(): Promise<unknown> {
    const ended = new AbortController()
    const options = { signal: ended.signal }
    const gone = once(this.#child, "exit", options).then(([code, signal]): never => {
      throw new Error(`peers: ${this.name} ended with ${signal ?? `exit code ${code}`} while it was asked`)
    })
    try {
      const [{ value, error }] = (await Promise.race([once(this.#child, "message", options), gone])) as [Answer]
      if (error !== undefined) throw new Error(`peers: ${this.name}: ${error}`)
      return value
    } finally {
      gone.catch(() => {}) // the one that is not waited for any more
      ended.abort()
    }
  }
}
