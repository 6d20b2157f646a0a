/**
 * The command line: `selscan generate | train | eval`. Results go to stdout, everything else to stderr; an error is one
 * line. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
 */
import { createRequire } from "node:module"
import { cac } from "cac"
import { SelscanError, suggestion } from "../errors.ts"
import { evalCommand } from "./eval.ts"
import { generateCommand } from "./generate.ts"
import { trainCommand } from "./train.ts"

const usageCodes = new Set(["BAD_OPTION"])

/** Runs the command line; resolves with the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const cli = cac("selscan")
  for (const add of [generateCommand, trainCommand, evalCommand]) add(cli)
  cli.help()
  cli.version((createRequire(import.meta.url)("../../package.json") as { version: string }).version)
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error
    process.exit(0) // the reader has gone, as in `selscan generate … | head`
  })
  try {
    cli.parse(plainFlags(argv), { run: false })
    if (cli.options.help || cli.options.version) return 0
    if (cli.matchedCommand === undefined) return unmatched(cli)
    checkOptionNames(cli)
    keepText(cli, argv)
    return ((await cli.runMatchedCommand()) as number | undefined) ?? 0
  } catch (error) {
    return report(error as Error)
  }
}

type Cli = ReturnType<typeof cac>

/** Flags without a value. cac would take the word after one for its value, and make a number of a prompt. */
const flags = ["--json", "--stdin", "--recompute"]
/** Options whose value is text. cac makes numbers of what looks like one: "\n" would be 0, "1.50" would be 1.5. */
const texts = ["stop", "model", "file", "out", "resume", "preset", "pattern", "device"]

/** Words before "--": those after it are taken as they are. */
const optionWords = (argv: readonly string[]) => argv.slice(0, argv.includes("--") ? argv.indexOf("--") : undefined)

function plainFlags(argv: readonly string[]): string[] {
  const words = optionWords(argv)
  return [...words.map((word) => (flags.includes(word) ? `${word}=true` : word)), ...argv.slice(words.length)]
}

/** Gives options that take text the words that were typed. */
function keepText(cli: Cli, argv: readonly string[]): void {
  const words = optionWords(argv)
  for (const name of texts) {
    if (typeof cli.options[name] === "boolean") continue // without a value: cac says so
    const typed = words.flatMap((word, i) => {
      if (word.startsWith(`--${name}=`)) return [word.slice(name.length + 3)]
      return word === `--${name}` ? [words[i + 1] ?? ""] : []
    })
    if (typed.length > 0) cli.options[name] = typed.length === 1 ? typed[0] : typed
  }
}

function unmatched(cli: Cli): number {
  const [word] = cli.args
  if (word === undefined) {
    cli.outputHelp()
    return 2
  }
  console.error(
    `selscan: unknown command ${word}, ${suggestion(
      word,
      cli.commands.map((command) => command.name),
    )}`,
  )
  return 2
}

function checkOptionNames(cli: Cli): void {
  const command = cli.matchedCommand!
  const known = [...command.options, ...cli.globalCommand.options].flatMap((option) => option.names)
  for (const name of Object.keys(cli.options)) {
    if (name === "--" || known.includes(name)) continue
    const dashed = (word: string) => `--${word.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
    throw new SelscanError(
      "BAD_OPTION",
      `${command.name}: unknown option ${dashed(name)}, ${suggestion(dashed(name), known.filter((one) => one.length > 1).map(dashed))}`,
    )
  }
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
