/**
 * A binary is loaded by a child process first: one made for another processor or C library ends that one. The verdict is remembered
 * beside the user's caches for as long as the file stays the same, so that it costs a start of Node once.
 */
import { spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import { mkdirSync, readFileSync, renameSync, type Stats, statSync, writeFileSync } from "node:fs"
import { homedir, hostname } from "node:os"
import { isAbsolute, join } from "node:path"

/** Far more than loading takes anywhere; a child that hangs must not hang its parent. */
const timeoutMs = 20_000

/** Loads the file named by the environment, and asks it for its kernels and for the instruction set it chooses. */
const program = `
try {
  const addon = require(process.env.SELSCAN_TRIAL)
  if (!(addon.kernels().length > 0)) throw new Error("it has no kernels")
  addon.describe("cpu")
} catch (error) {
  process.stderr.write(error.message.split("\\n")[0])
  process.exitCode = 1
}`

/** Why a signal is likely to have ended the child. */
const causes: Readonly<Record<string, string>> = {
  SIGILL: "it is made for another processor",
  SIGSEGV: "it crashes",
  SIGABRT: "it crashes",
  SIGBUS: "the file is cut short",
}

const failures = new Map<string, string>()

/** What is wrong with a binary, in words; undefined for one that loads. */
export function failedTrial(path: string): string | undefined {
  if (process.env.SELSCAN_TRIAL !== undefined || isSingleExecutable()) return undefined // no child of ours would run our program
  let identity: string
  try {
    identity = identityOf(statSync(path))
  } catch (error) {
    return (error as Error).message
  }
  const file = verdictFile(path)
  if (remembered(file) === identity) return undefined
  const key = `${path} ${identity}`
  const failure = failures.get(key) ?? run(path)
  if (failure !== undefined) failures.set(key, failure)
  else remember(file, identity)
  return failure
}

/** npm gives all files of packages one time of modification; that of the inode is when they were unpacked. */
const identityOf = ({ size, mtimeMs, ctimeMs }: Stats) => `${size} ${mtimeMs} ${ctimeMs}`

function run(path: string): string | undefined {
  try {
    return judged(path)
  } catch {
    return undefined // the permission model forbids processes: then nothing can be learnt, and it may well load
  }
}

function judged(path: string): string | undefined {
  const { NODE_OPTIONS: _, SELSCAN_ISA: __, ...inherited } = process.env // no debugger, no hooks, no lowered instruction set
  const env = { ...inherited, SELSCAN_TRIAL: path, ELECTRON_RUN_AS_NODE: "1" }
  const { error, signal, status, stderr } = spawnSync(process.execPath, ["-e", program], {
    env,
    encoding: "utf8",
    stdio: ["ignore", "ignore", "pipe"],
    timeout: timeoutMs,
    killSignal: "SIGKILL",
    windowsHide: true,
  })
  if ((error as NodeJS.ErrnoException | undefined)?.code === "ETIMEDOUT") {
    return `it did not load within ${timeoutMs / 1000} s`
  }
  if (error !== undefined) throw error
  if (signal !== null) return `loading it ended a process with ${signal}${causes[signal] ? `: ${causes[signal]}` : ""}`
  if (status !== 0) return stderr.trim().split("\n").at(-1) || `loading it ended a process with status ${status}`
  return undefined
}

/** Whether this program is an executable of its own: started anew it would be that program, not Node. */
function isSingleExecutable(): boolean {
  const sea = process.getBuiltinModule?.("node:sea") as { isSea(): boolean } | undefined
  return sea?.isSea() ?? false
}

/** By path, Node and machine: homes are shared between machines, and one machine's verdict is not another's. */
function verdictFile(path: string): string | undefined {
  try {
    const cache = process.env.XDG_CACHE_HOME ?? ""
    const folder = isAbsolute(cache) ? cache : join(homedir(), ".cache")
    const who = `${path} ${process.version} ${process.arch} ${hostname()}`
    return join(folder, "selscan", "loads", createHash("sha256").update(who).digest("hex").slice(0, 32))
  } catch {
    return undefined // a user without a home
  }
}

function remembered(file: string | undefined): string | undefined {
  try {
    return file && readFileSync(file, "utf8")
  } catch {
    return undefined
  }
}

function remember(file: string | undefined, identity: string): void {
  if (file === undefined) return
  try {
    mkdirSync(join(file, ".."), { recursive: true })
    const draft = `${file}.${process.pid}`
    writeFileSync(draft, identity)
    renameSync(draft, file)
  } catch {
    // Nothing can be written here: every start loads it twice.
  }
}
