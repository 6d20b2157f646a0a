import { mkdirSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import { Model } from "../../lib/generate/model.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { modelConfig } from "../../lib/models/config.ts"
import { initialWeights } from "../../lib/models/language-model.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { splitsProducts } from "../../lib/native.ts"
import { temporaryFolder } from "../checkpoint/helpers.ts"
import { selscan } from "./run.ts"

const folder = temporaryFolder()
const small = ["--prefill", "8", "--decode", "4", "--repeats", "3"]

interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

test("bench prints rates of the prompt and of decoding, bytes, and the memory's share, of a folder without a tokenizer", async (t) => {
  const network = new PatternModel(modelConfig({ dim: 16, state: 4, layers: 2, vocab: 300 }))
  const path = join(folder, "ids")
  {
    await using model = new Model(network, "f32", { device: "cpu" })
    const weights = initialWeights(network, 5)
    for (const [name, { shape }] of allParameters(network)) {
      await model.store.upload("weight", { name, dtype: "f32", shape }, weights.get(name)!)
    }
    await model.save(path)
  }
  const args = ["--model", path, "--threads", "1", "--device", "cpu", "--batch", "2"]
  const { code, out, err } = await selscan(["bench", ...small, ...args, "--json"])
  t.is(code, 0, err)
  const result = JSON.parse(out)
  for (const { median, min, max } of [result.prefill, result.decode] as Spread[])
    t.true(0 < min && min <= median && median <= max)
  t.like(result, {
    ...{ model: path, device: "cpu", threads: 1, weights: "f32", precision: "f32" },
    sizes: { prefill: 8, decode: 4, batch: 2, repeats: 3 },
  })
  const { bytes, decode, readBandwidth, share } = result
  t.true(bytes.weights > 0 && bytes.state > 0)
  t.is(share, (bytes.perToken * decode.median) / readBandwidth)
  // A gigabyte a second or a terabyte: what is slower is no memory, and what is faster was not read.
  t.true(readBandwidth > 1e8 && readBandwidth < 2e12, `${readBandwidth} bytes per second`)
})

test("bench of a published size has random weights, unless a folder has its name", async (t) => {
  const args = ["bench", ...small, "--model", "samba-byte", "--device", "cpu"]
  const { code, out, err } = await selscan(args)
  t.is(code, 0, err)
  t.regex(out, /^samba-byte: bf16 weights, bf16 products, cpu, \d+ threads\n/)
  t.regex(out, /^prefill 8 +[\d.]+ tokens\/s {3}\([\d.]+ – [\d.]+\)$/m)
  t.regex(out, /^decode 4 +[\d.]+ tokens\/s/m)
  t.regex(out, /^weights [\d.]+ MB, state of a sequence [\d.]+ MB, read per token [\d.]+ MB$/m)
  t.regex(out, /^decoding reads [\d.]+% of the [\d.]+ GB\/s read in this run\n$/m)
  mkdirSync(join(folder, "samba-byte"))
  const here = await selscan([...args, "--precision", "f32", "--json"], { cwd: folder })
  t.is(JSON.parse(here.out).weights, "f32", "an empty folder is no model")
})

test("bench --profile says of every op what it costs, as a table and as one object", async (t) => {
  const args = ["bench", ...small, "--profile", "--device", "cpu"]
  const { code, out, err } = await selscan(args)
  t.is(code, 0, err)
  t.regex(
    out,
    /^demo: \w+ weights, \w+ products, cpu, \d+ threads\n\nprompt of 8 tokens: [\d.]+ (ms|µs), of which [\d.]+ in nodes\n/,
  )
  t.regex(out, /^one token: [\d.]+ (ms|µs), of which [\d.]+ in nodes$/m)
  t.regex(out, /^ {2}op +nodes +(ms|µs) +share +MB +MFLOP +of the limit$/m)
  const line =
    /^ {2}linear \d+ × \d+ \w+ +\d+ +[\d.]+ +[\d.]+% +[█▉▊▋▌▍▎▏]* +[\d.]+ +[\d.]+ +\d+% of (memory|\w+ products)$/m
  t.regex(out, line)
  t.regex(out, /^limits of this run: [\d.]+ GB\/s read, [\d.]+ GFLOP\/s in f32, [\d.]+ in bf16$/m)
  const { out: eights } = await selscan([...args, "--weights", "int8"])
  t.regex(eights, /^ {2}linear \d+ × \d+ i8 .*% of (memory|int8 products)$/m)
  t.regex(eights, /^limits of this run: .* in bf16, [\d.]+ in int8$/m)
  const { out: split } = await selscan([...args, "--precision", "bf16x3"])
  const said = splitsProducts() ? "" : " \\(f32's: no AMX on this processor\\)"
  t.regex(split, new RegExp(`^demo: bf16 weights, bf16x3 products${said}, cpu, \\d+ threads\n`))
  t.regex(split, /^ {2}linear \d+ × \d+ bf16 .*% of (memory|bf16x3 products)$/m)
  t.regex(split, /^limits of this run: .* in bf16, [\d.]+ in bf16x3$/m)
  const { out: json } = await selscan([...args, "--batch", "2", "--json"])
  const { device, sizes, limits, prompt, decode } = JSON.parse(json)
  t.is(device, "cpu")
  t.like(sizes, { prefill: 8, decode: 4, batch: 2, repeats: 3 })
  t.true(limits.memory > 1e8 && limits.f32 > 1e6 && limits.bf16 > 1e6)
  for (const { lines } of [prompt, decode]) t.true(lines.some(({ op }: { op: string }) => op === "selectiveScan"))
})

test("bench --training says of every op of a step what it costs, part by part, of a preset and of a shipped model", async (t) => {
  const tiny = ["bench", "--training", "--batch", "2", "--length", "16", "--repeats", "1", "--device", "cpu"]
  const { code, out, err } = await selscan([...tiny, "--model", "samba-byte", "--precision", "bf16", "--threads", "1"])
  t.is(code, 0, err)
  t.regex(
    out,
    /^samba-byte: bf16 products, cpu, 1 threads\n\ntraining step of 2 × 16 tokens: [\d.]+ ms, of which [\d.]+ in nodes\n/,
  )
  for (const part of ["forward", "backward", "optimizer"])
    t.regex(out, new RegExp(`^${part}: [\\d.]+ (ms|µs)\n {2}op +nodes +(ms|µs) +share +MB +MFLOP +of the limit$`, "m"))
  t.regex(out, /^ {2}linearWeightGrad 768 × 192 f32 +3 +[\d.]+ +[\d.]+% .*\d+% of (memory|bf16 products)$/m)
  t.regex(out, /^products with matrices: [\d.]+ ms, \d+% of the limit$/m)
  t.regex(out, /^limits of this run: [\d.]+ GB\/s read, [\d.]+ GFLOP\/s in f32, [\d.]+ in bf16$/m)
  const { out: json } = await selscan([...tiny, "--json"])
  const result = JSON.parse(json)
  t.like(result, { model: "demo", device: "cpu", precision: "f32", sizes: { batch: 2, length: 16, repeats: 1 } })
  t.true(result.products.ofLimit > 0 && result.seconds.median > 0)
  t.deepEqual([...new Set(result.optimizer.lines.map(({ op }: { op: string }) => op))].sort(), [
    "adamW",
    "add",
    "clipScale",
    "sumSquares",
  ])
})

test("sizes that are none, and more than a model has positions for, are refused in one line", async (t) => {
  const cases: [string[], number, RegExp][] = [
    [["--batch", "0"], 2, /--batch is a whole number from 1 to 4096, got 0/],
    [["--batch", "5000"], 2, /got 5000/],
    [["--prefill", "0"], 2, /prefill is a whole number of at least 1, got 0/],
    [["--decode", "x"], 2, /decode is a whole number of at least 1, got x/],
    [["--repeats", "1.5"], 2, /repeats is a whole number of at least 1, got 1.5/],
    [["--model", "mamba-131m"], 1, /mamba-131m/],
    [["--precision", "f16"], 2, /precision is f32, bf16 or bf16x3, got f16/],
    [["--length", "16"], 2, /--length is of a training step, got 16 without --training/],
    [["--training", "--length", "0"], 2, /length is a whole number of at least 1, got 0/],
    [["--training", "--batch", "0"], 2, /--batch is a whole number from 1 to 4096, got 0/],
    [
      ["--training", "--weights", "int8"],
      2,
      /--training is of weights in f32 and is a profile, got --weights beside it/,
    ],
    [["--training", "--profile"], 2, /got --profile beside it/],
    [["--training", "--precision", "f16"], 2, /precision is f32, bf16 or bf16x3, got f16/],
    [["--training", "--model", "mamba-131m"], 1, /mamba-131m/],
  ]
  for (const [args, code, message] of cases) {
    const outcome = await selscan(["bench", ...args])
    t.is(outcome.code, code, args.join(" "))
    t.regex(outcome.err, message)
    t.is(outcome.err.trim().split("\n").length, 1, outcome.err)
  }
})

test("an interrupted bench ends with exit code 130 and one line", async (t) => {
  // It writes nothing before its end: the signal comes soon after the command listens for it.
  const soon =
    "process.on('newListener',(name)=>name==='SIGINT'&&setTimeout(()=>process.kill(process.pid,'SIGINT'),500))"
  const env = { ...process.env, NODE_OPTIONS: `--import=data:text/javascript,${soon}` }
  const { code, out, err } = await selscan(["bench", "--repeats", "100000", "--decode", "200"], { env })
  t.is(code, 130, err)
  t.is(out, "")
  t.regex(err, /^selscan: .+\n$/)
})
