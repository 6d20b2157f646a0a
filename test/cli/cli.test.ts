import { mkdtempSync, readFileSync, writeFileSync } from "node:fs"
import { rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "ava"
import { devices } from "../../lib/native.ts"
import { selscan } from "./run.ts"

const folder = mkdtempSync(join(tmpdir(), "selscan-cli-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))
const text = join(folder, "text.txt")
writeFileSync(text, "pease porridge hot, pease porridge cold. ".repeat(100))

const tiny = [
  "--file",
  text,
  "--dim",
  "16",
  "--layers",
  "1",
  "--state",
  "4",
  "--batch",
  "2",
  "--length",
  "32",
  "--validation",
  "0.02",
]
const model = join(folder, "model")

test.before("a tiny model is trained by the command", async (t) => {
  const { code, out, err } = await selscan([
    "train",
    ...tiny,
    "--out",
    model,
    "--steps",
    "30",
    "--rate",
    "0.01",
    "--json",
  ])
  t.is(code, 0, err)
  const events = out
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
  t.deepEqual([...new Set(events.map((event) => event.type))], ["step", "validation", "saved"])
})

test("a device is chosen by name, and one that is none or cannot be had is refused", async (t) => {
  const generate = ["generate", "pease", "--model", model, "--max-tokens", "3", "--device"]
  const train = ["train", ...tiny, "--out", join(folder, "never"), "--device"]
  const judge = ["eval", "bpb", "--file", text, "--model", model, "--device"]
  t.is((await selscan([...generate, "cpu"])).code, 0)
  for (const command of [generate, train, judge]) {
    const { code, out, err } = await selscan([...command, "gpu"])
    t.is(code, 2)
    t.is(out, "")
    t.regex(err, /^selscan: device: one of auto, cpu, .*is expected, got gpu\n$/)
  }
  const { missing } = devices().find(({ name }) => name === "cuda")!
  if (missing === undefined) return
  const { code, err } = await selscan([...generate, "cuda:1"])
  t.is(code, 1)
  t.is(err, `selscan: device cuda:1: ${missing}\n`)
})

test("a run goes on where its user says", async (t) => {
  const out = join(folder, "resumed")
  t.is((await selscan(["train", ...tiny, "--out", out, "--steps", "2", "--device", "cpu", "--json"])).code, 0)
  t.is((await selscan(["train", "--resume", out, "--device", "cpu", "--json"])).code, 0)
  t.is((await selscan(["train", "--resume", out, "--device", "gpu", "--json"])).code, 2)
})

test("generate streams text after the prompt, the same for the same seed", async (t) => {
  const args = ["generate", "pease", "--model", model, "--max-tokens", "20", "--seed", "7"]
  const [first, second] = await Promise.all([selscan(args), selscan(args)])
  t.is(first.code, 0, first.err)
  t.true(first.out.startsWith("pease"))
  t.is(first.out, second.out)
})

test("generate --json prints one object, and --stdin reads the prompt from standard input", async (t) => {
  const { code, out, err } = await selscan(["generate", "--stdin", "--model", model, "--max-tokens", "5", "--json"], {
    input: "pease",
  })
  t.is(code, 0, err)
  const object = JSON.parse(out)
  t.is(object.prompt, "pease")
  t.true(object.seconds > 0 && typeof object.text === "string")
})

test("eval bpb --json prints one object with bitsPerByte", async (t) => {
  const { code, out, err } = await selscan(["eval", "bpb", "--model", model, "--file", text, "--json"])
  t.is(code, 0, err)
  const { bitsPerByte, bytes } = JSON.parse(out)
  t.is(bytes, 4100)
  t.true(bitsPerByte > 0 && bitsPerByte < 8)
})

test("eval context judges every model at contexts up to the text's length, or its own, and draws them", async (t) => {
  const llama = join(folder, "llama")
  const pattern = ["--pattern", "full,swiglu", "--layers", "2", "--heads", "2", "--context-max", "64"]
  const sizes = tiny.filter((word, i) => word !== "--layers" && tiny[i - 1] !== "--layers")
  const trained = await selscan(["train", ...sizes, ...pattern, "--out", llama, "--steps", "2", "--json"])
  t.is(trained.code, 0, trained.err)
  const plot = join(folder, "context.svg")
  const judge = ["eval", "context", "--file", text, "--json"]
  const { code, out, err } = await selscan([
    ...judge,
    "--model",
    model,
    "--model",
    llama,
    "--from",
    "32",
    "--out",
    plot,
  ])
  t.is(code, 0, err)
  const judged: { model: string; points: { context: number; bitsPerByte: number }[] }[] = JSON.parse(out).models
  const contexts = judged.map(({ points }) => points.map(({ context }) => context))
  t.deepEqual(contexts, [
    [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192],
    [32, 64],
  ])
  t.deepEqual(
    judged.map((one) => one.model),
    [model, llama],
  )
  const whole = await selscan(["eval", "bpb", "--model", model, "--file", text, "--json"])
  t.is(judged[0]!.points.at(-1)!.bitsPerByte, JSON.parse(whole.out).bitsPerByte)
  t.is(readFileSync(plot, "utf8").match(/<path/g)?.length, 2)
  const none = await selscan([...judge, "--model", llama])
  t.is(none.code, 2)
  t.regex(none.err, /--from is at most the contextMax of \S+, 64, got 512/)
  const long = await selscan(["eval", "bpb", "--model", llama, "--file", text])
  t.is(long.code, 1)
  t.regex(
    long.err,
    /at most contextMax \+ 1 = 65 bytes is expected without a context, got 4100; give a context of at most 64/,
  )
})

test("an interrupted training saves, says how to go on, and goes on", async (t) => {
  const out = join(folder, "interrupted")
  let sent = false
  const interrupted = await selscan(["train", ...tiny, "--out", out, "--steps", "100000", "--json"], {
    whenRunning: (pid) => {
      if (!sent) process.kill(pid, "SIGINT")
      sent = true
    },
  })
  t.is(interrupted.code, 130, interrupted.err)
  t.regex(interrupted.out, /"type":"saved"/)
  const refused = await selscan(["train", ...tiny, "--out", out])
  t.is(refused.code, 2)
  t.regex(refused.err, /--resume/)
  const options = await selscan(["train", "--resume", out, "--steps", "3"])
  t.is(options.code, 2)
  t.regex(options.err, /keeps its recipe/)
})

test("text stays text, even when it looks like a number", async (t) => {
  const args = ["generate", "--model", model, "--max-tokens", "1", "--seed", "1"]
  const prompts = await Promise.all([
    selscan([...args, "--json", "1.50"]),
    selscan([...args, "--json", "--", "-x"]),
    selscan([...args, "--json", "--stop", "\n", "--stop", "1.0", "x"]),
  ])
  t.deepEqual(
    prompts.map(({ out, err }) => (err === "" ? JSON.parse(out).prompt : err)),
    ["1.50", "-x", "x"],
  )
  const { code, err } = await selscan([...args, "x", "--stop", ""])
  t.is(code, 2)
  t.regex(err, /at least one character/)
  t.regex((await selscan(["generate", "x", "--model", "007"])).err, /007/)
})

test("generation ends before a stop that is a line break", async (t) => {
  const args = ["generate", "pease", "--model", model, "--seed", "2", "--temperature", "100", "--max-tokens", "400"]
  const whole = JSON.parse((await selscan([...args, "--json"])).out).text as string
  const at = whole.search(/[ \n]/)
  t.true(at >= 0, "the sample holds a space or a line break")
  const { out } = await selscan([...args, "--json", "--stop", whole[at]!])
  t.is(JSON.parse(out).text, whole.slice(0, at))
})

test("wrong usage is one line on stderr and exit code 2, failure 1", async (t) => {
  const cases: [string[], number, RegExp][] = [
    [["genrate"], 2, /unknown command genrate, did you mean generate\?/],
    [["generate", "x", "--temprature", "1"], 2, /unknown option --temprature, did you mean --temperature\?/],
    [["generate"], 2, /one prompt is expected/],
    [["generate", "--model", model, ""], 1, /prompt of at least one token/],
    [["generate", "x", "--model", model, "--temperature", "hot"], 2, /temperature is a number/],
    [["generate", "x", "--model", join(folder, "absent")], 1, /config\.json/],
    [["eval", "bpb", "--model", model, "--file", join(folder, "absent")], 1, /no such file/],
    [["eval", "speed", "--model", model, "--file", text], 2, /unknown measure speed/],
    [["eval", "bpb", "--model", model], 2, /name it with --file/],
    [["eval", "bpb", "--model", model, "--file", text, "--from", "64"], 2, /--from is for the measure context/],
    [["eval", "context", "--model", model, "--file", text, "--context", "64"], 2, /--context is for the measure bpb/],
    [["eval", "context", "--model", model, "--file", text, "--from", "0"], 2, /--from is a whole number/],
    [["eval", "bpb", "--model", model, "--file", text, "--threads", "all"], 2, /threads: a whole number .* got all/],
    [["train", "--file", text], 2, /name it with --out/],
    [["train", "--resume", model, "--kv-heads", "2", "--min-rate", "0"], 2, /leave out --kv-heads, --min-rate/],
    [["train", "--file", text, "--out", join(folder, "x"), "--steps", "many"], 2, /steps is a whole number/],
  ]
  for (const [args, code, message] of cases) {
    const outcome = await selscan(args)
    t.is(outcome.code, code, args.join(" "))
    t.regex(outcome.err, message)
    t.is(outcome.err.trim().split("\n").length, 1, outcome.err)
    t.is(outcome.out, "")
  }
})

test("an instruction set that is none is refused", async (t) => {
  const env = { ...process.env, SELSCAN_ISA: "avx-2" }
  const { code, err } = await selscan(["generate", "x", "--model", model], { env })
  t.is(code, 2, err)
  t.regex(err, /SELSCAN_ISA: .* got avx-2/)
})
