/**
 * Holds commands that the documentation shows to what is there: `selscan …` to the --help of the command, `npm run …` to package.json.
 */
import { spawnSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { resolve } from "node:path"
import { fileURLToPath } from "node:url"
import { type Example, root } from "./extract.ts"

const entry = fileURLToPath(new URL("./selscan.ts", import.meta.url))
const tsx = import.meta.resolve("tsx")
const scripts = JSON.parse(readFileSync(resolve(root, "package.json"), "utf8")).scripts as Record<string, string>
const helps = new Map<string, string>()

function help(words: readonly string[]): string {
  const key = words.join(" ")
  if (!helps.has(key)) {
    const { stdout } = spawnSync(process.execPath, ["--import", tsx, entry, ...words, "--help"], { encoding: "utf8" })
    helps.set(key, stdout)
  }
  return helps.get(key)!
}

/** Words of a command line; text in quotes is one of them. */
function split(line: string): string[] {
  return [...line.matchAll(/"[^"]*"|'[^']*'|\S+/g)].map(([word]) => word.replace(/^["']|["']$/g, ""))
}

/** What is wrong with the commands of a block, as sentences. */
export function checkCommands({ code, where }: Example): string[] {
  const problems: string[] = []
  for (const command of code.replaceAll(/\\\n/g, " ").split(/\n|&&|\||;/)) {
    const words = split(command.replace(/(^|\s)#.*$/, ""))
    while (words[0]?.includes("=")) words.shift() // variables of its environment
    if (words[0] === "npx") words.shift()
    if (words[0] === "npm" && words[1] === "run" && scripts[words[2] ?? ""] === undefined)
      problems.push(`${where}: package.json has no script ${words[2]}`)
    if (words[0] === "selscan") problems.push(...checkSelscan(words.slice(1), where))
  }
  return problems
}

function checkSelscan(words: readonly string[], where: string): string[] {
  const [command, second] = words
  if (command === undefined) return []
  const text = help([command])
  // cac's overview names every command; only a command's own help begins its usage with it.
  if (!new RegExp(`selscan ${command}\\b`).test(text)) return [`${where}: selscan has no command ${command}`]
  const known = second !== undefined && !second.startsWith("-") && command === "eval" ? help([command, second]) : text
  return words
    .filter((word) => word.startsWith("--"))
    .map((word) => word.replace(/=.*/, ""))
    .filter((flag) => !new RegExp(`${flag.replace(/^--no-/, "--(no-)?")}(?![\\w-])`).test(known))
    .map((flag) => `${where}: selscan ${command} has no ${flag}`)
}
