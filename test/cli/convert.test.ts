import { spawn } from "node:child_process"
import { once } from "node:events"
import { existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { gguf } from "@huggingface/gguf"
import test from "ava"
import { modelConfigFields } from "../../lib/checkpoint/families.ts"
import { encodeHeader } from "../../lib/checkpoint/header.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { modelConfig } from "../../lib/models/config.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { temporaryFolder } from "../checkpoint/helpers.ts"

const entry = fileURLToPath(new URL("./entry.ts", import.meta.url))
const folder = temporaryFolder()

/** Runs the command without an addon: none is needed. */
async function convert(args: readonly string[], whenRunning: (pid: number) => void = () => {}) {
  const env = { ...process.env, SELSCAN_ADDON: join(folder, "absent.node") }
  const child = spawn(process.execPath, ["--import=tsx", entry, "convert", ...args], { env })
  let [out, err] = ["", ""]
  child.stdout.on("data", (data: Buffer) => {
    out += data.toString()
  })
  child.stderr.on("data", (data: Buffer) => {
    err += data.toString()
  })
  whenRunning(child.pid!)
  const [code] = (await once(child, "close")) as [number | null]
  return { code, out, err }
}

test("a model that ships becomes a GGUF file, named as asked, on a machine without the addon", async (t) => {
  const path = join(folder, "demo.gguf")
  const { code, out, err } = await convert(["demo", "--out", path, "--dtype", "f16", "--model-name", "007", "--json"])
  t.is(code, 0, err)
  t.is(err, "")
  const { seconds, bytes, ...written } = JSON.parse(out)
  t.deepEqual(written, { out: path, to: "gguf", dtype: "f16", int8: false, tensors: 82 })
  t.true(seconds > 0 && readFileSync(path).length > bytes)
  const { metadata } = await gguf(path, { allowLocalFile: true })
  t.like(metadata as unknown as Record<string, unknown>, { "general.name": "007", "mamba.ssm.inner_size": 512 })
})

test("a folder becomes another naming's, and says in one line what it is", async (t) => {
  const path = join(folder, "hf")
  const { code, out } = await convert(["demo", "--out", path, "--to", "transformers"])
  t.is(code, 0)
  t.is(out, `${path}: 82 tensors, 7332864 bytes, transformers in bf16\n`)
  t.deepEqual(readdirSync(path).sort(), ["config.json", "model.safetensors"])
  t.is(JSON.parse(readFileSync(join(path, "config.json"), "utf8")).model_type, "mamba")
  const again = await convert(["demo", "--out", path, "--to", "transformers"])
  t.is(again.code, 2)
  t.regex(again.err, /^selscan: convert: expected no model in .*; choose another folder, or force it\n$/)
  t.is((await convert(["demo", "--out", path, "--to", "transformers", "--force"])).code, 0)
})

test("wrong usage is one line and exit code 2, a model that cannot be written 1", async (t) => {
  const path = join(folder, "never")
  const cases: [string[], number, RegExp][] = [
    [["demo"], 2, /one path to write is expected; name it with --out/],
    [["demo", "--out", path, "--to", "onnx"], 2, /to is one of .*, gguf, got onnx/],
    [["demo", "--out", path, "--dtype", "f8"], 2, /dtype is f32, bf16 or f16, got f8/],
    [["demo", "--out", path, "--naming", "original"], 2, /unknown option --naming/],
    [["--out", path], 2, /missing required args/],
    [
      ["demo-samba", "--out", `${path}.gguf`],
      1,
      /got the pattern mamba, swiglu, sliding, swiglu; llama.cpp has no words/,
    ],
    [[join(folder, "absent"), "--out", path], 1, /absent: expected a model's config.json/],
  ]
  for (const [args, code, message] of cases) {
    const outcome = await convert(args)
    t.is(outcome.code, code, args.join(" "))
    t.regex(outcome.err, message)
    t.is(outcome.err.trim().split("\n").length, 1, outcome.err)
    t.is(outcome.out, "")
  }
  t.false(existsSync(path) || existsSync(`${path}.gguf`))
  const help = await convert(["--help"])
  t.is(help.code, 0)
  t.regex(help.out, /selscan convert demo --out demo.gguf/)
})

/** 1 GB of zeros, of which the disk holds nothing: long enough to be interrupted. */
function writeZeros(path: string): void {
  const config = modelConfig({ dim: 2048, layers: 10, vocab: 256 })
  let offset = 0
  const infos = [...allParameters(new PatternModel(config))].map(([name, { shape }]) => {
    const sizeBytes = shape.reduce((product, dim) => product * dim, 4)
    offset += sizeBytes
    return { name, dtype: "F32" as const, shape, sizeBytes, offset: offset - sizeBytes }
  })
  const header = encodeHeader(infos, {}, path)
  mkdirSync(path)
  writeFileSync(join(path, "model.safetensors"), header)
  truncateSync(join(path, "model.safetensors"), header.length + offset)
  writeFileSync(join(path, "config.json"), JSON.stringify(modelConfigFields(config)))
}

test("an interrupt ends it with exit code 130 and leaves nothing behind", async (t) => {
  const [zeros, home] = [join(folder, "zeros"), join(folder, "home")]
  writeZeros(zeros)
  mkdirSync(home)
  const { code, err } = await convert([zeros, "--out", join(home, "out")], (pid) => {
    const timer = setInterval(() => {
      if (readdirSync(home).length === 0) return // it has not begun to write
      clearInterval(timer)
      process.kill(pid, "SIGINT")
    }, 10)
    t.teardown(() => clearInterval(timer))
  })
  t.is(code, 130, err)
  t.regex(err, /^selscan: convert: aborted at \d+ of 1\d{9} bytes/)
  t.deepEqual(readdirSync(home), [])
})
