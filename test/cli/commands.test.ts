import { type SpawnOptions, spawn } from "node:child_process"
import { once } from "node:events"
import { closeSync, openSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import { commandLine } from "../../lib/cli/main.ts"
import { dashed, placeholder, readWords } from "../../lib/cli/words.ts"
import { temporaryFolder } from "../checkpoint/helpers.ts"
import { each, selscan, viaTsx } from "./run.ts"

const { commands } = await commandLine() // before hooks are declared
const folder = temporaryFolder()
const text = join(folder, "text.txt")
writeFileSync(text, "pease porridge hot, pease porridge cold. ".repeat(20))

const names = commands.map(({ name }) => name)

/** Of every command: words after it that work. A command that is missing here fails the first test. */
const working: Readonly<Record<string, readonly string[]>> = {
  generate: ["pease", "--max-tokens", "2"],
  train: [...["--file", text, "--out", join(folder, "run")], ...["--dim", "16", "--layers", "1", "--state", "4"]],
  eval: ["bpb", "--file", text],
  score: ["pease"],
  convert: ["demo", "--out", join(folder, "demo.gguf")],
  bench: ["--prefill", "4", "--decode", "2", "--repeats", "1"],
  info: ["--model", "demo-samba"],
  build: ["--help"], // an addon takes minutes; package/ has it
  completion: ["bash"],
}
const quick = ["--steps", "2", "--batch", "2", "--length", "16", "--validation", "0.05"]

test("every command is among those tested here", (t) => {
  t.deepEqual(names, Object.keys(working))
})

test("--help of every command names all its options, what it does, and an example", async (t) => {
  await each(commands, async ({ name, description, options, examples }) => {
    const { code, out, err } = await selscan([name, "--help"])
    t.is(code, 0, name)
    t.is(err, "", name)
    for (const { rawName } of options) t.true(out.includes(rawName), `${name} ${rawName}`)
    t.true(options.some((option) => option.name === "json") && examples.length > 0 && description !== "", name)
    for (const example of examples) t.true(out.includes(String(example)), name)
  })
})

test("options that say the same have the same form in every command", (t) => {
  const forms = new Map<string, string>()
  for (const { name, options } of commands) {
    for (const option of options) {
      const kind = placeholder(option)?.kind ?? "flag"
      if (["model", "out", "file", "to"].includes(option.name)) continue // files or folders, a form or a number
      t.is(forms.get(option.name) ?? kind, kind, `${name} ${option.rawName}`)
      forms.set(option.name, kind)
    }
  }
})

test("an option that is unknown, lacks its value, has one too many or is given twice is refused by every command", async (t) => {
  const cases = commands.flatMap(({ name, options }): [string[], RegExp][] => {
    const valued = options.find((option) => placeholder(option)?.several === false)
    const refused: [string[], RegExp][] = [
      [[name, "--jsn"], /: unknown option --jsn, did you mean --json\?$/],
      [[name, "--json=yes"], /: --json takes no value, got yes; leave it out$/],
      [[name, "-x"], /: unknown option -x, write "--" before words/],
    ]
    if (valued === undefined) return refused
    const typed = dashed(valued.name)
    return [
      ...refused,
      [[name, typed], new RegExp(`: a value is expected after ${typed}, got none`)],
      [[name, typed, "1", typed, "2"], new RegExp(`: ${typed} is expected once, got it twice`)],
    ]
  })
  for (const [[name, ...words], message] of cases) {
    const { options } = commands.find((one) => one.name === name)!
    t.throws(() => readWords(name!, options, words), { code: "BAD_OPTION", message })
  }
  const [first] = cases
  const { code, out, err } = await selscan(first![0])
  t.is(code, 2)
  t.is(err, "selscan: generate: unknown option --jsn, did you mean --json?\n")
  t.is(out, "")
})

test("--json prints one object and nothing else, train one for every event", async (t) => {
  await each(
    names.filter((name) => name !== "build"),
    async (name) => {
      const { code, out, err } = await selscan([name, ...working[name]!, ...(name === "train" ? quick : []), "--json"])
      t.is(code, 0, `${name}: ${err}`)
      t.is(err, "", name)
      const lines = out.trimEnd().split("\n")
      if (name !== "train") t.is(lines.length, 1, name)
      for (const line of lines) t.is(Object.prototype.toString.call(JSON.parse(line)), "[object Object]", name)
    },
  )
})

test("threads that are none are refused by every command that has them, before anything is written", async (t) => {
  const threaded = commands.filter(({ options }) => options.some(({ name }) => name === "threads"))
  t.deepEqual(
    threaded.map(({ name }) => name),
    ["generate", "train", "eval", "score", "bench", "info"],
  )
  await each(threaded, async ({ name }) => {
    const { code, out, err } = await selscan([name, ...working[name]!, "--threads", "many"])
    t.is(code, 2, name)
    t.is(err, "selscan: threads: a whole number from 0 to 1024 is expected, got many; 0 takes all usable cores\n")
    t.is(out, "")
  })
})

test("without a command, its help and exit code 2; with none that is known, one line", async (t) => {
  const [bare, help, version, short, misspelt, option] = await Promise.all(
    [[], ["--help"], ["--version"], ["-v"], ["benhc"], ["--json", "info"]].map((args) => selscan(args)),
  )
  t.deepEqual([bare!.code, help!.code, version!.code, short!.code, misspelt!.code, option!.code], [2, 0, 0, 0, 2, 2])
  for (const name of names) t.regex(help!.out, new RegExp(`^ {2}${name} `, "m"))
  t.regex(version!.out, /^selscan\/\d/)
  t.is(version!.out, short!.out)
  t.is(misspelt!.err, "selscan: unknown command benhc, did you mean bench?\n")
  t.regex(option!.err, /^selscan: unknown command --json, the first word is one of generate, /)
})

test("a reader that goes away ends every command that writes much, without a word", async (t) => {
  const long = [
    ["generate", "pease", "--max-tokens", "3000"],
    ["score", "--file", text, "--tokens"],
    ["train", "--help"],
  ]
  await each(long, async (args) => {
    const child = spawn(process.execPath, [...viaTsx, ...args], { stdio: ["ignore", "pipe", "pipe"] })
    let err = ""
    child.stderr.on("data", (data: Buffer) => {
      err += data.toString()
    })
    child.stdout.once("data", () => child.stdout.destroy())
    const [code] = (await once(child, "close")) as [number | null]
    t.is(code, 0, args.join(" "))
    t.is(err, "")
  })
})

test("an interrupt ends every command that runs a model with exit code 130 and one line", async (t) => {
  const long = [
    ["generate", "pease", "--max-tokens", "1000000"],
    ["score", "--file", text, "--file", text, "--tokens", "--context", "1"],
  ]
  await each(long, async (args) => {
    let sent = false
    const { code, err } = await selscan(args, {
      whenRunning: (pid) => {
        if (!sent) process.kill(pid, "SIGINT")
        sent = true
      },
    })
    t.is(code, 130, `${args.join(" ")}: ${err}`)
    t.regex(err, /^selscan: .+\n$/)
  })
})

test("an interrupt ends what waits for standard input, and a folder there is an empty text", async (t) => {
  const soon =
    "process.on('newListener',(name)=>name==='SIGINT'&&setTimeout(()=>process.kill(process.pid,'SIGINT'),500))"
  const env = { ...process.env, NODE_OPTIONS: `--import=data:text/javascript,${soon}` }
  const here = openSync(folder, "r")
  t.teardown(() => closeSync(here))
  const run = async (name: string, options: SpawnOptions) => {
    const child = spawn(process.execPath, [...viaTsx, name, "--stdin"], options)
    let err = ""
    child.stderr!.on("data", (data: Buffer) => {
      err += data.toString()
    })
    const [code] = (await once(child, "close")) as [number | null]
    return { code, err }
  }
  for (const name of ["generate", "score"]) {
    const waiting = await run(name, { env, stdio: "pipe" })
    t.deepEqual(waiting, { code: 130, err: `selscan: ${name}: aborted while standard input was read\n` })
    const { code, err } = await run(name, { stdio: [here, "pipe", "pipe"] })
    t.is(code, 1)
    t.regex(err, /^selscan: \w+: a (prompt|text) of at least one \w+ is needed.*\n$/)
  }
})
