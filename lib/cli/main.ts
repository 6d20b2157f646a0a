/**
 * The command line: one file per command. Results go to stdout, everything else to stderr; an error is one
 * line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
 */
import { type CAC, cac } from "cac"
import { version } from "../../native/binaries.cjs"
import { SelscanError, suggestion } from "../errors.ts"
import { benchCommand } from "./bench.ts"
import { buildCommand } from "./build.ts"
import { completionCommand } from "./completion.ts"
import { convertCommand } from "./convert.ts"
import { evalCommand } from "./eval.ts"
import { generateCommand } from "./generate.ts"
import { infoCommand } from "./info.ts"
import { scoreCommand } from "./score.ts"
import { trainCommand } from "./train.ts"
import { readWords } from "./words.ts"

/** In the order of --help. */
const commands = [
  ...[generateCommand, trainCommand, evalCommand, scoreCommand, convertCommand],
  ...[benchCommand, infoCommand, buildCommand, completionCommand],
]

const usageCodes = new Set(["BAD_OPTION"])

/** Every command with its options, as `selscan` has them. */
export function commandLine(): CAC {
  const cli = cac("selscan")
  for (const add of commands) add(cli)
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
  const cli = commandLine()
  const [word, ...words] = argv.slice(2)
  try {
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
  const known = cli.commands.map(({ name }) => name)
  const hint = word.startsWith("-") ? `the first word is one of ${known.join(", ")}` : suggestion(word, known)
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
