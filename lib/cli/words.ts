/**
 * What was typed after a command, read by the options that the command declares: their form says all that is needed here.
 *
 *   --json             a flag
 *   --steps <n>        a number; <x> is one that need not be whole
 *   --model <model>    text, exactly as typed; every other word between the brackets
 *   --stop <...text>   text that may be given several times: always an array
 *
 * cac declares commands and prints their help. It does not read the words: it makes numbers of texts ("1.50" would be 1.5, "\n" 0), takes what
 * follows a flag for its value, and a negative number for an option.
 */
import type { Command } from "cac"
import { expect, SelscanError, suggestion } from "../errors.ts"

export type Option = Command["options"][number]

/** What was typed: words that belong to no option, and options by name. */
export interface Typed {
  readonly args: readonly string[]
  readonly options: Readonly<Record<string, unknown>>
}

/** What stands between an option's brackets: its kind of value, or several of them after one another, as in <model|preset>. */
export function placeholder({ rawName }: Pick<Option, "rawName">): { kind: string; several: boolean } | undefined {
  const [, dots, kind] = /<(\.\.\.)?([^>]+)>/.exec(rawName) ?? []
  return kind === undefined ? undefined : { kind, several: dots !== undefined }
}

/** A name as it is typed: --max-tokens, -h. */
export const dashed = (name: string): string =>
  name.length === 1 ? `-${name}` : `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`

const numbers: readonly string[] = ["n", "x"]

/**
 * Reads the words after a command's name; those after "--" belong to no option.
 * @throws BAD_OPTION for an option that is unknown, lacks its value, has one though it is a flag, or is given twice though it is one
 */
export function readWords(where: string, options: readonly Option[], words: readonly string[]): Typed {
  const args: string[] = []
  const found: Record<string, unknown> = {}
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!
    if (word === "--") return { args: [...args, ...words.slice(i + 1)], options: found }
    if (!/^-./.test(word)) {
      args.push(word)
      continue
    }
    const [typed, inline] = divided(word)
    const option = options.find(({ names }) => names.some((name) => dashed(name) === typed))
    if (option === undefined) throw unknown(where, options, typed)
    const value = placeholder(option)
    if (value === undefined) {
      expect(inline === undefined, "BAD_OPTION", () => `${where}: ${typed} takes no value, got ${inline}; leave it out`)
      found[option.name] = true
      continue
    }
    const text = inline ?? following(words, i)
    const form = `${typed} <${value.kind}>`
    expect(
      text !== undefined,
      "BAD_OPTION",
      () => `${where}: a value is expected after ${typed}, got none; see ${form}`,
    )
    if (inline === undefined) i++
    const before = found[option.name]
    expect(
      before === undefined || value.several,
      "BAD_OPTION",
      () => `${where}: ${typed} is expected once, got it twice`,
    )
    found[option.name] = value.several ? [...((before as string[]) ?? []), text] : typedValue(value.kind, text)
  }
  return { args, options: found }
}

/** --name=value; of one letter there is no such form. */
function divided(word: string): [name: string, inline?: string] {
  const at = word.startsWith("--") ? word.indexOf("=") : -1
  return at < 0 ? [word] : [word.slice(0, at), word.slice(at + 1)]
}

/** The word after an option, unless it is another one: -1 and -x are values. */
function following(words: readonly string[], i: number): string | undefined {
  const next = words[i + 1]
  return next?.startsWith("--") ? undefined : next
}

/** What is no number stays text, so that whoever checks it says what it is. */
function typedValue(kind: string, text: string): string | number {
  const number = numbers.includes(kind) && text.trim() !== "" ? Number(text) : Number.NaN
  return Number.isNaN(number) ? text : number
}

function unknown(where: string, options: readonly Option[], typed: string): SelscanError {
  const known = options.flatMap(({ names }) => names.filter((name) => name.length > 1).map(dashed))
  const hint = typed.startsWith("--") ? suggestion(typed, known) : 'write "--" before words that begin with a dash'
  return new SelscanError("BAD_OPTION", `${where}: unknown option ${typed}, ${hint}`)
}
