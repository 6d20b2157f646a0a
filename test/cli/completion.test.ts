import { execFileSync, spawnSync } from "node:child_process"
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import { commandLine } from "../../lib/cli/main.ts"
import { dashed, placeholder } from "../../lib/cli/words.ts"
import { presets } from "../../lib/models/presets.ts"
import { temporaryFolder } from "../checkpoint/helpers.ts"
import { selscan } from "./run.ts"

const { commands } = await commandLine() // before hooks are declared
const folder = temporaryFolder()
const script = { bash: join(folder, "selscan.bash"), zsh: join(folder, "_selscan") }

test.before("the scripts are printed", async (t) => {
  for (const shell of ["bash", "zsh"] as const) {
    const { code, out, err } = await selscan(["completion", shell])
    t.is(code, 0, err)
    writeFileSync(script[shell], out)
  }
  for (const name of ["a file.txt", "b.txt", "book/c.txt"]) {
    mkdirSync(join(folder, "book"), { recursive: true })
    writeFileSync(join(folder, name), "")
  }
})

/** What bash offers for a line that is cut into these words, the cursor being at the end of the last. */
function offered(...words: string[]): string[] {
  const code = `source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _selscan; printf '%s\\n' "\${COMPREPLY[@]}"`
  const out = execFileSync("bash", ["--norc", "-c", code, script.bash, ...words], { cwd: folder, encoding: "utf8" })
  return out.split("\n").filter((line) => line !== "")
}

test("bash takes the script and completes selscan with it", (t) => {
  const { status, stdout, stderr } = spawnSync(
    "bash",
    ["--norc", "-c", `source "$0"; complete -p selscan`, script.bash],
    {
      encoding: "utf8",
    },
  )
  t.is(stderr, "")
  t.is(status, 0)
  t.is(stdout, "complete -F _selscan selscan\n")
})

test("bash offers every command, and every option of each", (t) => {
  const names = commands.map(({ name }) => name)
  t.deepEqual(offered("selscan", ""), [...names, "--help", "--version"])
  t.deepEqual(offered("selscan", "s"), ["score"])
  for (const { name, options } of commands) {
    t.deepEqual(offered("selscan", name, "--"), [...options.map((option) => dashed(option.name)), "--help"], name)
  }
  t.deepEqual(offered("selscan", "generate", "x", "--max-tokens", "5", "--rep"), ["--repetition-penalty"])
})

test("bash offers the values that an option can have, after a space or an =", (t) => {
  t.deepEqual(offered("selscan", "generate", "--device", ""), ["auto", "cpu", "cuda"])
  t.deepEqual(offered("selscan", "generate", "--device", "=", "cp"), ["cpu"])
  t.deepEqual(offered("selscan", "generate", "--device", "="), ["auto", "cpu", "cuda"])
  t.deepEqual(offered("selscan", "train", "--precision", "b"), ["bf16", "bf16x3"])
  t.deepEqual(offered("selscan", "convert", "demo", "--to", "g"), ["gguf"])
  t.deepEqual(offered("selscan", "completion", ""), ["bash", "zsh"])
  t.deepEqual(offered("selscan", "eval", ""), ["bpb", "context"])
  t.deepEqual(offered("selscan", "bench", "--model", "mamba-1"), [
    "mamba-130m",
    "mamba-1.4b",
    "mamba-1.3b",
    "mamba-1.8b",
  ])
  t.deepEqual(
    offered("selscan", "bench", "--model", "").toSorted(),
    ["demo", "demo-samba", "book", ...Object.keys(presets)].toSorted(),
  )
  t.deepEqual(offered("selscan", "train", "--preset", "samba"), ["samba-byte"])
  t.deepEqual(offered("selscan", "generate", "--seed", ""), [])
})

test("bash offers files and folders where they are asked for, spaces and all", (t) => {
  t.deepEqual(offered("selscan", "eval", "bpb", "--file", "a"), ["a file.txt"])
  t.deepEqual(offered("selscan", "score", "--file", "book/"), ["book/c.txt"])
  t.deepEqual(offered("selscan", "train", "--out", "b"), ["book"])
  t.deepEqual(offered("selscan", "generate", "--model", "b"), ["book"])
  t.deepEqual(offered("selscan", "convert", "d"), ["demo", "demo-samba"])
})

test("values of a kind are declared for every option that is not free text or a number", (t) => {
  const free = ["n", "x", "text", "ids", "pattern", "name"]
  for (const { name, options } of commands) {
    for (const option of options) {
      const { kind } = placeholder(option) ?? {}
      if (kind === undefined || free.includes(kind)) continue
      t.true(offered("selscan", name, dashed(option.name), "").length > 0, `${name} ${option.rawName}`)
    }
  }
})

const isThere = spawnSync("zsh", ["--version"]).status === 0
const inZsh = isThere ? test : test.skip
inZsh(
  `zsh takes the script, and offers commands, options and values${isThere ? "" : ": skipped, no zsh here"}`,
  (t) => {
    t.is(spawnSync("zsh", ["-f", "-n", script.zsh]).status, 0)
    /** What zsh shows for a line, at a terminal of its own. */
    const shown = (line: string) => {
      const code = `zmodload zsh/zpty; zpty z zsh -f -i
      zpty -w z "PS1= ; stty cols 200 rows 200; autoload -Uz compinit; compinit -D -u; source ${script.zsh}; LISTMAX=1000; echo rea''dy"
      zpty -r z out '*ready*'
      zpty -w -n z $1$'\\t\\t'; sleep 3; zpty -r -t z out; while zpty -r -t z more; do out+=$more; done; print -r -- $out; zpty -d z`
      return execFileSync("zsh", ["-f", "-c", code, "zsh", line], { cwd: folder, encoding: "utf8" })
    }
    t.regex(shown("selscan "), /convert +-- Write a model's weights/)
    t.regex(shown("selscan bench --pre"), /--precision +-- .*--prefill +-- Tokens of the prompt/s)
    t.regex(shown("selscan train --preset=samba"), /--preset=samba-byte/)
    t.regex(shown("selscan eval "), /bpb.*context/s)
    t.regex(shown("selscan generate --model "), /demo +demo-samba.*book\//s)
    t.regex(shown("selscan score --file a"), /a\\ file.txt/)
  },
)

test("a shell that is none is refused, with those that are", async (t) => {
  const { code, err } = await selscan(["completion", "fish"])
  t.is(code, 2)
  t.regex(err, /^selscan: completion: unknown shell fish, .*(bash|zsh)/)
  t.is((await selscan(["completion"])).code, 2)
})
