/**
 * `selscan completion bash | zsh`: what a shell completes, made of the commands as they declare themselves. What stands between an
 * option's brackets says what its value can be.
 */
import type { CAC, Command } from "cac"
import { convertForms } from "../checkpoint/convert.ts"
import { expect, suggestion } from "../errors.ts"
import { shipped } from "../generate/load.ts"
import { modelPreset, presets } from "../models/presets.ts"
import { bash } from "./completion-bash.ts"
import { zsh } from "./completion-zsh.ts"
import { measureNames } from "./eval.ts"
import { dashed, type Option, placeholder } from "./words.ts"

/** What a value can be: words, and files or folders beside them. */
export interface Value {
  readonly words: readonly string[]
  readonly files?: "files" | "folders"
}

/** An option, or a word of a place, as shells are told of it. */
export interface Described {
  /** As typed: --help and -h. */
  readonly names: readonly string[]
  readonly help: string
  /** Absent for flags. */
  readonly value?: Value
  readonly repeats: boolean
}

export interface DescribedCommand {
  readonly name: string
  readonly help: string
  readonly options: readonly Described[]
  /** The value of the word after the command, where it takes one. */
  readonly argument?: Value
}

const shells: Readonly<Record<string, (commands: readonly DescribedCommand[]) => string>> = { bash, zsh }

/** By what stands between brackets. Of other kinds, such as numbers, nothing is completed. */
const values: Readonly<Record<string, Value>> = {
  device: { words: ["auto", "cpu", "cuda"] },
  precision: { words: ["f32", "bf16", "bf16x3"] },
  weights: { words: ["int8"] },
  dtype: { words: ["f32", "bf16", "f16"] },
  form: { words: convertForms },
  tokenizer: { words: ["bytes"], files: "files" },
  measure: { words: measureNames },
  shell: { words: Object.keys(shells) },
  model: { words: shipped, files: "folders" },
  size: { words: Object.keys(presets) },
  preset: { words: Object.keys(presets).filter((name) => modelPreset(name).vocab === 256) }, // what train takes
  file: { words: [], files: "files" },
  path: { words: [], files: "files" },
  folder: { words: [], files: "folders" },
}

export function completionCommand(cli: CAC): void {
  cli
    .command("completion <shell>", "Print what bash or zsh needs to complete these commands")
    .option("--json", "Print one object: shell and script")
    .example("source <(selscan completion bash)")
    .example('selscan completion zsh > "$fpath[1]/_selscan"')
    .action((shell: string, { json }: { json?: boolean }) => {
      const write = Object.hasOwn(shells, shell) ? shells[shell] : undefined
      expect(write !== undefined, "BAD_OPTION", () => {
        return `completion: unknown shell ${shell}, ${suggestion(shell, Object.keys(shells))}`
      })
      const script = write(cli.commands.map((command) => described(command, cli)))
      if (json) console.log(JSON.stringify({ shell, script }))
      else process.stdout.write(script)
      return 0
    })
}

function described(command: Command, cli: CAC): DescribedCommand {
  const argument = command.args[0] && valueFor(command.args[0].value)
  const global = cli.globalCommand.options.filter(({ name }) => name !== "version")
  const options = [...command.options, ...global].map(describedOption)
  return { name: command.name, help: command.description, options, ...(argument && { argument }) }
}

function describedOption(option: Option): Described {
  const place = placeholder(option)
  const value = place && valueFor(place.kind)
  return {
    names: option.names.map(dashed),
    help: option.description,
    ...(place && { value: value ?? { words: [] } }),
    repeats: place?.several ?? false,
  }
}

/** The values of each kind, as in model|size, together. */
function valueFor(kind: string): Value | undefined {
  const found = kind.split("|").flatMap((one) => values[one] ?? [])
  if (found.length === 0) return undefined
  const files = found.find((value) => value.files)?.files
  return { words: found.flatMap(({ words }) => words), ...(files && { files }) }
}
