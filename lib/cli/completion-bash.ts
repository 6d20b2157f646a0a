import type { DescribedCommand, Value } from "./completion.ts"

/** What compgen is asked for: words, files, folders. */
const asked = ({ words, files }: Value): string =>
  [words.length > 0 && `_selscan_words '${words.join(" ")}'`, files && `_selscan_${files}`].filter(Boolean).join("; ")

function commandCases({ name, options, argument }: DescribedCommand): string[] {
  const cases = options.flatMap(({ names, value }) => {
    if (value === undefined) return []
    return names.map((typed) => `    ${name}:${typed}) ${asked(value) || ":"} ;;`)
  })
  const flags = options.flatMap(({ names }) => names).filter((typed) => typed.startsWith("--"))
  const place =
    argument === undefined
      ? ""
      : `if [[ $cur == -* ]]; then _selscan_words '${flags.join(" ")}'; else ${asked(argument)}; fi`
  return [...cases, `    ${name}:*) ${place || `_selscan_words '${flags.join(" ")}'`} ;;`]
}

/**
 * A script for bash 3.2 and later. At every = of a line bash cuts a word in two, and completes what follows it.
 */
export const bash = (
  commands: readonly DescribedCommand[],
): string => `# bash completion for selscan. Try it: source <(selscan completion bash)
_selscan_reply() { local word; while IFS= read -r word; do COMPREPLY+=("$word"); done; }
_selscan_words() { _selscan_reply < <(compgen -W "$1" -- "$cur"); }
_selscan_files() { compopt -o filenames 2>/dev/null; _selscan_reply < <(compgen -f -- "$cur"); }
_selscan_folders() { compopt -o filenames 2>/dev/null; _selscan_reply < <(compgen -d -- "$cur"); }
_selscan() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]} command=\${COMP_WORDS[1]}
  COMPREPLY=()
  if [[ $cur == "=" ]]; then cur=""; elif [[ $prev == "=" ]]; then prev=\${COMP_WORDS[COMP_CWORD-2]}; fi
  if ((COMP_CWORD == 1)); then
    _selscan_words '${commands.map(({ name }) => name).join(" ")} --help --version'
    return
  fi
  case "$command:$prev" in
${commands.flatMap(commandCases).join("\n")}
  esac
}
complete -F _selscan selscan
`
