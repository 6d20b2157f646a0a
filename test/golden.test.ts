/**
 * The golden cases of test/golden/data, and that the runner fails whatever ought to fail.
 */
import { execFile } from "node:child_process"
import { copyFile, mkdir, mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import test from "ava"
import fc from "fast-check"
import { parseSafetensors, type TensorEntry, writeSafetensors } from "../lib/checkpoint/safetensors.ts"
import { bandRows, everyRow, type Layout, permuted, tokenRows, toOurs, toTheirs } from "./golden/layout.ts"
import { listCases, type Outcome, runCase } from "./golden/runner.ts"

const data = fileURLToPath(new URL("./golden/data", import.meta.url))
const oneStep = "adamw/one_step.safetensors"

for (const entry of await listCases(data)) {
  test(`the golden case ${entry.file} is reproduced`, async (t) => {
    const { status, compared, failures } = await runCase(entry)
    t.is(status, "passed", failures.join("\n"))
    t.true(compared > 0)
  })
}

test("a value outside its tolerance makes the case fail and is named", async (t) => {
  const { status, failures } = await runChanged((tensors) => {
    const params = tensors.find(({ name }) => name === "out.params0")!
    floats(params)[3]! += 1
  })
  t.is(status, "failed")
  t.regex(failures.join(), /^out\.params0: largest difference 1\.00e\+0 \(tolerance .*\) at 3: expected .*, got /)
})

test("a NaN where a number is expected makes the case fail", async (t) => {
  const { status, failures } = await runChanged((tensors) => {
    floats(tensors.find(({ name }) => name === "in.grads0")!)[0] = Number.NaN
  })
  t.is(status, "failed")
  t.is(failures.length, 3, "parameter and both moments")
})

test("a NaN where NaN is expected passes", async (t) => {
  const { status, failures } = await runChanged((tensors) => {
    for (const tensor of tensors) floats(tensor)[0] = Number.NaN
  })
  t.is(status, "passed", failures.join("\n"))
})

for (const name of ["out.params1", "out.surprise", "grad.param0", "in.surprise", "dout.params0"]) {
  test(`a tensor ${name} that the family does not know makes the case fail`, async (t) => {
    const { status, failures } = await runChanged((tensors) => {
      tensors.push({ name, dtype: "F32", shape: [1], data: new Uint8Array(4) })
    })
    t.is(status, "failed")
    t.deepEqual(failures, [`${name}: ${/^(in|dout)/.test(name) ? "not used" : "not compared"}`])
  })
}

test("a case that expects nothing fails", async (t) => {
  const { failures } = await runChanged((tensors) => {
    for (const tensor of tensors.splice(0)) if (tensor.name.startsWith("in.")) tensors.push(tensor)
  })
  t.true(failures.length > 0)
})

test("without tolerances in the file a difference of a thousandth fails", async (t) => {
  const change = (by: number) => (tensors: TensorEntry[], metadata: Record<string, unknown>) => {
    metadata.tolerance = {}
    floats(tensors.find(({ name }) => name === "out.params0")!)[0]! += by
  }
  t.is((await runChanged(change(0))).status, "passed")
  t.is((await runChanged(change(1e-3))).status, "failed")
})

test("a truncated file and a missing one each fail with one line", async (t) => {
  const folder = await temporary(t)
  const path = join(folder, "cut.safetensors")
  await copyFile(join(data, oneStep), path)
  await truncate(path, 1000)
  for (const file of [path, join(folder, "none.safetensors")]) {
    const { status, failures } = await runCase({ file, path: file, family: "adamw" })
    t.is(status, "failed")
    t.is(failures.length, 1)
    t.true(failures[0]!.startsWith(file))
  }
})

test("an op that is not supported is skipped by name", async (t) => {
  const outcome = await runCase({ file: oneStep, path: join(data, oneStep), family: "telepathy" })
  t.is(outcome.status, "skipped")
})

test("a model folder without a configuration fails instead of being skipped", async (t) => {
  const folder = await temporary(t)
  await mkdir(join(folder, "models", "one"), { recursive: true })
  await copyFile(join(data, oneStep), join(folder, "models", "one", "expected.safetensors"))
  await writeFile(join(folder, "index.json"), "[]")
  const run = async () => Promise.all((await listCases(folder)).map(runCase))
  t.regex((await run())[0]!.failures.join(), /configuration of a model is expected/)
  await writeFile(join(folder, "models", "one", "config.json"), "{")
  t.regex((await run())[0]!.failures.join(), /JSON/)
  await writeFile(join(folder, "models", "one", "config.json"), '{"model_type": "telepathy"}')
  t.deepEqual(
    (await run()).map(({ status }) => status),
    ["skipped"],
  )
})

test("a folder without a list of cases is refused", async (t) => {
  const folder = await temporary(t)
  await t.throwsAsync(listCases(folder), { code: "BAD_FILE", message: /index\.json is the list of cases/ })
  for (const text of ["", "{}", "[null]", '[{"file": 1, "op": "adamw"}]']) {
    await writeFile(join(folder, "index.json"), text)
    await t.throwsAsync(listCases(folder), { code: "BAD_FILE" })
  }
})

test("the command ends with the counts, and with 1 when a case failed", async (t) => {
  const folder = await temporary(t)
  await copyFile(join(data, oneStep), join(folder, "good.safetensors"))
  const good = { file: "good.safetensors", op: "adamw" }
  const run = async (cases: object[]) => {
    await writeFile(join(folder, "index.json"), JSON.stringify(cases))
    const script = fileURLToPath(new URL("./golden/run.ts", import.meta.url))
    const call = promisify(execFile)(process.execPath, ["--import=tsx", script, folder])
    const { code = 0, stdout } = (await call.catch((error: { code: number; stdout: string }) => error)) as {
      code?: number
      stdout: string
    }
    return { code, lines: stdout.trimEnd().split("\n") }
  }
  const passing = await run([good, { ...good, op: "telepathy" }])
  t.is(passing.code, 0)
  t.is(passing.lines.at(-1), "1 passed, 0 failed, 1 skipped")
  t.true(passing.lines.includes("skipped telepathy: 1"))
  const failing = await run([good, { file: "none.safetensors", op: "adamw" }])
  t.is(failing.code, 1)
  t.is(failing.lines.at(-1), "1 passed, 1 failed, 0 skipped")
})

test("bringing a tensor back is the adjoint of laying it out", (t) => {
  const size = fc.integer({ min: 1, max: 4 })
  fc.assert(
    fc.property(size, size, size, size, (batch, groups, state, length) => {
      const layouts = [
        tokenRows([batch, state, length]),
        permuted([batch, groups, state, length], [3, 1, 0, 2], [length, groups, batch, state]),
        everyRow([state], length),
        bandRows([batch, groups, state, length], batch, length, 2 * groups),
        bandRows([batch, state, length], batch, length, groups),
        bandRows([groups, state], batch, length, groups),
      ]
      for (const layout of layouts) t.is(inner(...oneSide(layout)), inner(...otherSide(layout)))
    }),
    { seed: 1, numRuns: 50 },
  )
})

// Whole numbers, so that both inner products are exact.
const theirs = ({ elements }: Layout) => Float32Array.from({ length: elements }, (_, i) => (7 * i) % 11)
const ours = ({ source }: Layout) => Float32Array.from(source, (_, i) => (5 * i) % 13)
const oneSide = (layout: Layout) => [toOurs(layout, theirs(layout)), ours(layout)] as const
const otherSide = (layout: Layout) => [theirs(layout), toTheirs(layout, ours(layout))] as const
const inner = (a: Float32Array, b: Float32Array) => a.reduce((total, value, i) => total + value * b[i]!, 0)

/** Runs the one-step AdamW case after a change to its tensors and metadata. */
async function runChanged(
  change: (tensors: TensorEntry[], metadata: Record<string, unknown>) => void,
): Promise<Outcome> {
  const source = parseSafetensors(await readFile(join(data, oneStep)), oneStep)
  const tensors: TensorEntry[] = [...source.tensors].map(([name, { dtype, shape }]) => {
    return { name, dtype, shape, data: source.read(name) }
  })
  const metadata = JSON.parse(source.metadata.case!)
  change(tensors, metadata)
  const folder = await mkdtemp(join(tmpdir(), "golden-"))
  try {
    const path = join(folder, "case.safetensors")
    await writeSafetensors(path, tensors, { metadata: { case: JSON.stringify(metadata) } })
    return await runCase({ file: path, path, family: "adamw" })
  } finally {
    await rm(folder, { recursive: true })
  }
}

function floats({ data }: TensorEntry): Float32Array {
  return new Float32Array((data as Uint8Array).buffer)
}

async function temporary(t: import("ava").ExecutionContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "golden-"))
  t.teardown(() => rm(folder, { recursive: true }))
  return folder
}
