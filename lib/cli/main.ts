/**
 * The command line: one file per command. Results go to stdout, everything else to stderr; an error is one
 * line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
 */
import { type CAC, cac } from "cac"
import { version } from "../../native/binaries.cjs"
import { SelscanError, suggestion } from "../errors.ts"
import { readWords } from "./words.ts"

/** In the order of --help. Only the one that is called is loaded: each has a part of the package behind it. */
const commands: Readonly<Record<string, () => Promise<(cli: CAC) => void>>> = {
  generate: async () => (await import("./generate.ts")).generateCommand,
  train: async () => (await import("./train.ts")).trainCommand,
  eval: async () => (await import("./eval.ts")).evalCommand,
  score: async () => (await import("./score.ts")).scoreCommand,
  convert: async () => (await import("./convert.ts")).convertCommand,
  bench: async () => (await import("./bench.ts")).benchCommand,
  info: async () => (await import("./info.ts")).infoCommand,
  build: async () => (await import("./build.ts")).buildCommand,
  completion: async () => (await import("./completion.ts")).completionCommand,
}
const names = Object.keys(commands)
/** Those that speak of all commands. */
const needsAll = new Set(["completion", "--help", "-h"])

const usageCodes = new Set(["BAD_OPTION"])

/** Commands with their options, as `selscan` has them; all of them unless they are named. */
export async function commandLine(wanted: readonly string[] = names): Promise<CAC> {
  const cli = cac("selscan")
  for (const add of await Promise.all(wanted.map((name) => commands[name]!()))) add(cli)
  cli.help()
  cli.version(version)
  return cli
}

/** Runs the command line; resolves with the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error
    process.exit(0) // the reader has gone, as in `selscan generate … | head`
  })
  const [word, ...words] = argv.slice(2)
  try {
    const isKnown = word !== undefined && names.includes(word)
    const cli = await commandLine(word === undefined || needsAll.has(word) ? names : isKnown ? [word] : [])
    const command = cli.commands.find((one) => one.name === word)
    if (command === undefined) return withoutCommand(cli, word)
    const { args, options } = readWords(command.name, [...command.options, ...cli.globalCommand.options], words)
    cli.parse([...argv.slice(0, 2), command.name], { run: false }) // for the defaults
    cli.args = args
    Object.assign(cli.options, options)
    if (options.help) command.outputHelp()
    else if (options.version) cli.outputVersion()
    else return ((await cli.runMatchedCommand()) as number | undefined) ?? 0
    return 0
  } catch (error) {
    return report(error as Error)
  }
}

/** `selscan`, `selscan --help`, `selscan --version`; all else names a command that is none. */
function withoutCommand(cli: CAC, word: string | undefined): number {
  if (word === undefined || /^(--help|-h)$/.test(word)) {
    cli.outputHelp()
    return word === undefined ? 2 : 0
  }
  if (/^(--version|-v)$/.test(word)) {
    cli.outputVersion()
    return 0
  }
  const hint = word.startsWith("-") ? `the first word is one of ${names.join(", ")}` : suggestion(word, names)
  console.error(`selscan: unknown command ${word}, ${hint}`)
  return 2
}

function report(error: Error): number {
  if (error instanceof SelscanError) {
    console.error(`selscan: ${error.message}`)
    if (error.code === "ABORTED") return 130
    return usageCodes.has(error.code) ? 2 : 1
  }
  if (error.name === "CACError") {
    console.error(`selscan: ${error.message}; see --help`)
    return 2
  }
  console.error(error.stack ?? String(error)) // a fault of ours: the stack is what a report needs
  return 1
}
