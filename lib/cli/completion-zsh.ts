import type { Described, DescribedCommand, Value } from "./completion.ts"

/** Between single quotes. */
const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`
/** For an action, which is split into words once more. */
const quotedTwice = (text: string): string => `"${text}"`
/** Help within brackets, where `:` would begin what completes. */
const helped = (text: string): string => text.replace(/[[\]:\\]/g, "\\$&")

function action({ words, files }: Value): string {
  const paths = files && `_files${files === "folders" ? " -/" : ""}`
  if (words.length === 0) return paths ?? " "
  // After a space the call gets these words alone.
  return paths ? ` _selscan_words_or ${quotedTwice(paths)} ${words.join(" ")}` : `(${words.join(" ")})`
}

function specs({ names, help, value, repeats }: Described): string[] {
  return names.map((name) => {
    const form = value && name.startsWith("--") ? `${name}=` : name
    const end = value ? `:value:${action(value)}` : ""
    return quoted(`${repeats ? "*" : ""}${form}[${helped(help)}]${end}`)
  })
}

function commandCase({ name, options, argument }: DescribedCommand): string {
  const place = argument ? [quoted(`1:argument:${action(argument)}`)] : []
  return `        ${name})
          _arguments -s ${[...options.flatMap(specs), ...place].join(" \\\n            ")}
          ;;`
}

/** A script for zsh: as `_selscan` in a folder of $fpath, or sourced. */
export const zsh = (commands: readonly DescribedCommand[]): string => `#compdef selscan
# zsh completion for selscan. Try it: source <(selscan completion zsh)
_selscan_words_or() {
  local paths=$1 found=1
  shift
  local -a list=("$@")
  compadd -a list && found=0
  \${=paths} && found=0
  return found
}
_selscan() {
  local curcontext="$curcontext" state line
  local -a commands=(
    ${commands.map(({ name, help }) => quoted(`${name}:${help}`)).join("\n    ")}
  )
  _arguments -C '1:command:->command' '*::argument:->argument'
  case $state in
    command) _describe command commands ;;
    argument)
      case $words[1] in
${commands.map(commandCase).join("\n")}
      esac
      ;;
  esac
}
if [[ $funcstack[1] == _selscan ]]; then _selscan "$@"; elif (( $+functions[compdef] )); then compdef _selscan selscan; fi
`
