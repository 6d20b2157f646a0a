import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, writeFileSync } from "node:fs"
import { readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "ava"
import { openSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { load } from "../../lib/generate/load.ts"
import { sambaPattern } from "../../lib/models/config.ts"
import type { TrainOptions } from "../../lib/train/options.ts"
import { type TrainControl, type TrainEvent, train } from "../../lib/train/train.ts"
import { device } from "../device.ts"

const folder = mkdtempSync(join(tmpdir(), "selscan-train-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))

const text = join(folder, "text.txt")
writeFileSync(text, "the quick brown fox jumps over the lazy dog. ".repeat(200))

const small = {
  model: { dim: 16, layers: 2, state: 4 },
  batch: 2,
  length: 32,
  steps: 12,
  rate: 0.01,
  validation: 0.02,
} as const
let runs = 0
const optionsOf = (extra: Partial<TrainOptions> = {}): TrainOptions => ({
  files: [text],
  out: join(folder, `run-${runs++}`),
  ...small,
  device,
  ...extra,
})

async function events(options: TrainOptions, control: TrainControl = {}): Promise<TrainEvent[]> {
  const seen: TrainEvent[] = []
  for await (const event of train(options, control)) seen.push(event)
  return seen
}

/** The events of a run that is aborted as soon as it has taken `after` steps. */
async function interrupted(options: TrainOptions, after: number): Promise<TrainEvent[]> {
  const controller = new AbortController()
  const seen: TrainEvent[] = []
  for await (const event of train(options, { signal: controller.signal })) {
    seen.push(event)
    if (event.type === "step" && event.step === after) controller.abort()
  }
  return seen
}

const losses = (seen: readonly TrainEvent[]) =>
  seen.flatMap((event) => (event.type === "step" ? [event.bitsPerByte] : []))

/** Every tensor of a run's checkpoint, byte for byte. */
async function contents(out: string): Promise<Record<string, string>> {
  await using file = await openSafetensors(join(out, "checkpoint.safetensors"))
  const entries: [string, string][] = []
  for (const name of file.tensors.keys()) entries.push([name, Buffer.from(await file.read(name)).toString("base64")])
  return Object.fromEntries(entries)
}

test("training lowers the loss and leaves a model that loads", async (t) => {
  const options = optionsOf({ steps: 60 })
  const seen = losses(await events(options))
  t.is(seen.length, 60)
  t.true(seen[0]! > 6 && seen.at(-1)! < seen[0]! - 2, `${seen[0]} → ${seen.at(-1)} bits per byte`)
  await using model = await load(options.out, { device })
  t.true((await model.bitsPerByte(await readFile(text))) < 6)
  t.regex(await readFile(join(options.out, "loss.svg"), "utf8"), /^<svg/)
})

test("a run that is interrupted and resumed ends with the bits of one that was not", async (t) => {
  const whole = optionsOf({ saveEvery: 100 })
  const all = losses(await events(whole))
  const parts = optionsOf({ saveEvery: 100 })
  const first = await interrupted(parts, 5)
  t.is(first.at(-1)?.type, "saved")
  const second = await events({ files: [], out: parts.out, device }, { resume: true })
  t.deepEqual([...losses(first), ...losses(second)], all)
  t.deepEqual(await contents(parts.out), await contents(whole.out))
})

const others = {
  samba: { dim: 16, layers: 4, state: 4, pattern: sambaPattern, heads: 2, window: 20, mlp: 24 },
  llama: { dim: 16, layers: 4, pattern: ["full", "swiglu"], heads: 2, kvHeads: 1, mlp: 24, contextMax: 100 },
  retnet: { dim: 16, layers: 4, pattern: ["retention", "swiglu", "sliding", "swiglu"], heads: 4, window: 20, mlp: 24 },
  gla: { dim: 16, layers: 4, pattern: ["gla", "swiglu", "sliding", "swiglu"], heads: 4, window: 20, mlp: 24 },
} as const satisfies Record<string, TrainOptions["model"]>

for (const [kind, model] of Object.entries(others)) {
  test(`a ${kind} learns, and goes on after an interruption with the same bits, rings and all`, async (t) => {
    const recipe = { model, precision: "bf16", saveEvery: 100, steps: 30 } as const
    const whole = optionsOf(recipe)
    const all = losses(await events(whole))
    t.true(all.at(-1)! < all[0]! - 1.5, `${all[0]} → ${all.at(-1)} bits per byte`)
    const parts = optionsOf(recipe)
    const first = await interrupted(parts, 7)
    const second = await events({ files: [], out: parts.out, device }, { resume: true })
    t.deepEqual([...losses(first), ...losses(second)], all)
    t.deepEqual(await contents(parts.out), await contents(whole.out))
    await using trained = await load(whole.out, { device })
    t.true((await trained.bitsPerByte(await readFile(text), { context: 100 })) < 7)
  })
}

test("a killed run goes on from its last checkpoint, bit for bit, and its metrics hold every step once", async (t) => {
  const whole = optionsOf({ steps: 40, saveEvery: 5 })
  await events(whole)
  const killed = optionsOf({ steps: 40, saveEvery: 5 })
  const script = `
    import { train } from ${JSON.stringify(new URL("../../lib/train/train.ts", import.meta.url).href)}
    for await (const event of train(${JSON.stringify(killed)})) if (event.type === "step") console.log(event.step)`
  const child = spawn(process.execPath, ["--import=tsx", "--input-type=module", "-e", script], {
    stdio: ["ignore", "pipe", "inherit"],
  })
  child.stdout.on("data", (data: Buffer) => {
    if (
      data
        .toString()
        .split("\n")
        .some((line) => Number(line) >= 13)
    )
      child.kill("SIGKILL")
  })
  const [, signal] = await once(child, "exit")
  t.is(signal, "SIGKILL", "the run was still under way")
  await events({ files: [], out: killed.out, device }, { resume: true })
  t.deepEqual(await contents(killed.out), await contents(whole.out))
  const lines = (await readFile(join(killed.out, "metrics.jsonl"), "utf8"))
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line))
  t.deepEqual(
    lines.filter((line) => "bitsPerByte" in line).map((line) => line.step),
    Array.from({ length: 40 }, (_, i) => i + 1),
  )
})

test("accumulated batches give the gradients of one large batch", async (t) => {
  const large = losses(await events(optionsOf({ batch: 4, steps: 6 })))
  const parts = losses(await events(optionsOf({ batch: 2, accumulation: 2, steps: 6 })))
  // The sum over rows is cut differently, so that bits differ in the last places.
  for (const [i, loss] of large.entries())
    t.true(Math.abs(loss - parts[i]!) < 1e-4, `step ${i + 1}: ${loss}, ${parts[i]}`)
})

test("recomputing blocks changes memory, not bits", async (t) => {
  const kept = optionsOf({ steps: 4 })
  const again = optionsOf({ steps: 4, recompute: true })
  t.deepEqual(losses(await events(kept)), losses(await events(again)))
  t.deepEqual(await contents(kept.out), await contents(again.out))
})

test("bf16 products train almost as f32 ones", async (t) => {
  const f32 = losses(await events(optionsOf({ steps: 30 })))
  const bf16 = losses(await events(optionsOf({ steps: 30, precision: "bf16" })))
  t.notDeepEqual(f32, bf16)
  t.true(Math.abs(f32.at(-1)! - bf16.at(-1)!) < 0.1, `${f32.at(-1)} and ${bf16.at(-1)} bits per byte`)
})

test("options that mean nothing are refused in one sentence", async (t) => {
  const cases: [Partial<TrainOptions> & Record<string, unknown>, string, RegExp][] = [
    [{ stepz: 4 }, "BAD_OPTION", /did you mean steps\?/],
    [{ steps: 0 }, "BAD_OPTION", /steps is a whole number of at least 1, got 0/],
    [{ rate: Number.NaN }, "BAD_OPTION", /rate/],
    [{ beta1: 1 }, "BAD_OPTION", /beta1/],
    [{ precision: "f16" as "f32" }, "BAD_OPTION", /precision is f32, bf16 or bf16x3, got f16/],
    [{ model: "mamba-130m" }, "BAD_OPTION", /vocabulary is 256/],
    [{ model: "mambabyte-353" }, "BAD_OPTION", /did you mean mambabyte-353m\?/],
    [{ model: { dim: 16, layers: 0 } }, "BAD_OPTION", /layers/],
    [{ model: { dim: 16, layers: 1, state: 65 } }, "BAD_OPTION", /state is 1 to 64, got 65/],
    [{ files: [] }, "BAD_OPTION", /at least one text file/],
    [{ files: [join(folder, "absent")] }, "NOT_FOUND", /no such file/],
    [{ files: [folder] }, "NOT_FOUND", /it is a folder/],
    [
      { model: { dim: 16, layers: 1, pattern: ["full"], contextMax: 16 } },
      "BAD_OPTION",
      /length is at most the model's contextMax, 16, got 32/,
    ],
    [{ length: 100_000 }, "BAD_INPUT", /longer than one sequence/],
    [{ out: join(text, "inside-a-file") }, "DISK", /could not be made/],
  ]
  for (const [extra, code, message] of cases) {
    t.like(await t.throwsAsync(() => events({ ...optionsOf(), ...extra }), { message }), { code })
  }
})

test("a folder that holds a run is not written over", async (t) => {
  const options = optionsOf({ steps: 2 })
  await events(options)
  const before = await contents(options.out)
  t.like(await t.throwsAsync(() => events(options), { message: /--resume/ }), { code: "BAD_OPTION" })
  t.deepEqual(await contents(options.out), before)
})

test("a loss that is no longer a number ends the run, and the checkpoint stays", async (t) => {
  const options = optionsOf({ steps: 50, rate: 1e30, warmup: 3, clip: 1e30, saveEvery: 1 })
  const error = await t.throwsAsync(() => events(options))
  t.like(error, { code: "NOT_FINITE" })
  await t.notThrowsAsync(contents(options.out))
})

test("a run does not go on with another text", async (t) => {
  const changing = join(folder, "changing.txt")
  await writeFile(changing, "one text. ".repeat(100))
  const options = optionsOf({ files: [changing], steps: 2 })
  await events(options)
  await writeFile(changing, "another. ".repeat(100))
  const error = await t.throwsAsync(() => events({ files: [], out: options.out, device }, { resume: true }), {
    message: /has changed/,
  })
  t.like(error, { code: "BAD_CHECKPOINT" })
})

test("resuming where there is no run says so", async (t) => {
  t.like(await t.throwsAsync(() => events({ files: [], out: join(folder, "nothing"), device }, { resume: true })), {
    code: "NOT_FOUND",
  })
  await writeFile(join(folder, "checkpoint.safetensors"), "garbage")
  t.like(await t.throwsAsync(() => events({ files: [], out: folder, device }, { resume: true })), { code: "BAD_FILE" })
})

test("an abort while the model is judged saves the run, and resuming judges it", async (t) => {
  const whole = optionsOf({ validateEvery: 5 })
  await events(whole)
  const parts = optionsOf({ validateEvery: 5 })
  const first = await interrupted(parts, 5)
  t.is(first.at(-1)?.type, "saved")
  await events({ files: [], out: parts.out, device }, { resume: true })
  t.deepEqual(await contents(parts.out), await contents(whole.out))
  const judged = async (out: string) =>
    (await readFile(join(out, "metrics.jsonl"), "utf8")).split("\n").filter((line) => line.includes("validation"))
  t.deepEqual(await judged(parts.out), await judged(whole.out))
})

test("misspelt sizes, controls and files that are no list are refused", async (t) => {
  const model = { dim: 16, layers: 1, stat: 8 } as unknown as TrainOptions["model"] & object
  t.like(await t.throwsAsync(() => events(optionsOf({ model })), { message: /did you mean state\?/ }), {
    code: "BAD_OPTION",
  })
  const misspelt = { resum: true } as TrainControl
  t.like(await t.throwsAsync(() => events(optionsOf(), misspelt)), { code: "BAD_OPTION" })
  const files = text as unknown as string[]
  t.like(await t.throwsAsync(() => events(optionsOf({ files })), { message: /files is an array/ }), {
    code: "BAD_OPTION",
  })
})

test("a checkpoint whose recipe is none is refused in one sentence", async (t) => {
  const options = optionsOf({ steps: 1 })
  await events(options)
  const path = join(options.out, "checkpoint.safetensors")
  const bytes = await readFile(path)
  const end = 8 + Number(bytes.readBigUInt64LE(0))
  const header = bytes.toString("utf8", 8, end).replace('\\"steps\\":1,', '\\"steps\\":0,')
  await writeFile(path, Buffer.concat([bytes.subarray(0, 8), Buffer.from(header), bytes.subarray(end)]))
  t.like(
    await t.throwsAsync(() => events({ files: [], out: options.out, device }, { resume: true }), { message: /steps/ }),
    {
      code: "BAD_CHECKPOINT",
    },
  )
})
