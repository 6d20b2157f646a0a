/**
 * What the cases of linear.ts, linear-cross-entropy.ts and embedding.ts cannot say: bits that do not depend on neighbours
 * and threads, refusals, and the products on other instruction sets than this machine's best.
 */
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import test from "ava"
import fc from "fast-check"
import { trace } from "../../lib/graph/program.ts"
import type { Value } from "../../lib/graph/value.ts"
import { type HostArray, Store, setThreads } from "../../lib/native.ts"
import { embedding, embeddingGrad } from "../../lib/ops/embedding.ts"
import { linear, linearInputGrad, linearWeightGrad } from "../../lib/ops/linear.ts"
import { linearCrossEntropy, linearCrossEntropyGrad } from "../../lib/ops/linear-cross-entropy.ts"
import { device } from "../device.ts"
import { precisions } from "./linear.ts"
import { ints, normal, type Tensor64 } from "./spec.ts"

type Tensors = Readonly<Record<string, Tensor64>>

async function run(inputs: Tensors, body: (values: Record<string, Value>) => Record<string, Value>) {
  const program = trace("products", (tr) =>
    body(
      Object.fromEntries(Object.entries(inputs).map(([key, { dtype, shape }]) => [key, tr.input(key, dtype, shape)])),
    ),
  )
  await using store = new Store(device)
  const executable = await store.compile(program)
  return executable.run(
    Object.fromEntries(
      program.inputs.map(({ name }) => {
        const { dtype, data } = inputs[name]!
        return [name, dtype === "i32" ? Int32Array.from(data) : Float32Array.from(data)]
      }),
    ),
  )
}

/** Some rows of a matrix. */
const rowsOf = ({ dtype, shape, data }: Tensor64, begin: number, end: number): Tensor64 => ({
  dtype,
  shape: [end - begin, ...shape.slice(1)],
  data: data.slice((begin * data.length) / shape[0]!, (end * data.length) / shape[0]!),
})

const sizes = fc.record({
  rows: fc.integer({ min: 2, max: 130 }),
  inner: fc.integer({ min: 1, max: 600 }),
  out: fc.integer({ min: 1, max: 90 }),
  at: fc.nat(),
  precision: fc.constantFrom(...precisions),
})

test.serial("a row alone has the bits that it has among others", async (t) => {
  await fc.assert(
    fc.asyncProperty(sizes, async ({ rows, inner, out, at, precision }) => {
      const weight = normal([out, inner], 2)
      const [x, dy] = [normal([rows, inner], 1), normal([rows, out], 3)]
      const targets = ints([rows], 4, 0, out)
      const body = ({ x, weight, dy, targets }: Record<string, Value>) => ({
        y: linear({ x: x!, weight: weight! }, { precision, activation: "silu" }).y,
        dx: linearInputGrad({ dy: dy!, weight: weight! }, { precision }).dx,
        losses: linearCrossEntropy({ x: x!, weight: weight!, targets: targets! }, { precision }).losses,
      })
      const row = at % rows
      const all = await run({ x, weight, dy, targets }, body)
      const pick = (tensor: Tensor64) => rowsOf(tensor, row, row + 1)
      const alone = await run({ x: pick(x), weight, dy: pick(dy), targets: pick(targets) }, body)
      for (const [key, bits] of Object.entries(alone)) {
        t.deepEqual(
          bits,
          all[key]!.slice(row * bits.length, (row + 1) * bits.length) as HostArray,
          `${key} of row ${row}`,
        )
      }
    }),
    { numRuns: 25, seed: 2312 },
  )
})

test.serial("results do not depend on the number of threads", async (t) => {
  const [rows, dim, vocab] = [1200, 40, 300]
  const inputs = {
    x: normal([rows, dim], 1),
    weight: normal([vocab, dim], 2),
    dy: normal([rows, vocab], 3),
    dlosses: normal([rows], 4),
    targets: ints([rows], 5, 0, vocab),
  }
  const results: Record<string, HostArray>[] = []
  for (const [threads, precision] of [
    [1, "f32"],
    [3, "f32"],
    [1, "bf16"],
    [3, "bf16"],
  ] as const) {
    await setThreads(threads)
    results.push(
      await run(inputs, ({ x, weight, dy, dlosses, targets }) => {
        const { losses, logsumexp } = linearCrossEntropy({ x: x!, weight: weight!, targets: targets! }, { precision })
        const head = { dlosses: dlosses!, x: x!, weight: weight!, targets: targets!, logsumexp }
        const { dx, dweight } = linearCrossEntropyGrad(head, { precision })
        const outer = linearWeightGrad({ dy: dy!, x: x! }, { precision }).dweight
        const table = embeddingGrad({ dy: x!, ids: targets! }, { vocab }).dweight
        return { y: linear({ x: x!, weight: weight! }, { precision }).y, losses, dx, dweight, outer, table }
      }),
    )
  }
  await setThreads(0)
  t.deepEqual(results[1], results[0])
  t.deepEqual(results[3], results[2])
  t.notDeepEqual(results[2], results[0])
})

test("a gradient that starts in an ignored row is zero", async (t) => {
  const inputs = { x: normal([3, 4], 1), weight: normal([5, 4], 2), dlosses: normal([3], 3), logsumexp: normal([3], 4) }
  const ignored = { dtype: "i32" as const, shape: [3], data: Float64Array.of(-100, -100, -100) }
  const { dx, dweight } = await run({ ...inputs, targets: ignored }, (values) =>
    linearCrossEntropyGrad(values as Parameters<typeof linearCrossEntropyGrad>[0]),
  )
  t.true([...dx!, ...dweight!].every((value) => value === 0))
})

test("ids and targets outside the vocabulary are refused with their row", async (t) => {
  const ids = { dtype: "i32" as const, shape: [3], data: Float64Array.of(0, -1, 7) }
  const weight = normal([7, 4], 1)
  await t.throwsAsync(
    run({ ids, weight }, ({ ids, weight }) => embedding({ ids: ids!, weight: weight! })),
    {
      code: "BAD_INPUT",
      message: /ids are in \[0, 7\).*got 7 in row 2/,
    },
  )
  await t.throwsAsync(
    run({ x: normal([3, 4], 2), weight, targets: ids }, (values) =>
      linearCrossEntropy(values as Parameters<typeof linearCrossEntropy>[0]),
    ),
    { code: "BAD_INPUT", message: /targets are in \[0, 7\).*got -1 in row 1/ },
  )
})

test("options that no product knows are refused while tracing", (t) => {
  const refused = (body: (x: Value, weight: Value, targets: Value) => void) => () =>
    trace("refused", (tr) => {
      body(tr.input("x", "f32", [2, 3]), tr.input("weight", "f32", [4, 3]), tr.input("targets", "i32", [2]))
      return {}
    })
  const bad = { code: "BAD_OPTION" }
  t.throws(
    refused((x, weight) => linear({ x, weight }, { precision: "fp8" })),
    { ...bad, message: /precision is f32, bf16 or bf16x3/ },
  )
  t.throws(
    refused((x, weight) => linear({ x, weight }, { activation: "relu" })),
    { ...bad, message: /got relu/ },
  )
  t.throws(
    refused((x, weight, targets) => linearCrossEntropy({ x, weight, targets }, { smoothing: 2 })),
    bad,
  )
  t.throws(
    refused((x, weight, targets) => linearCrossEntropy({ x, weight, targets }, { ignore: 0.5 })),
    bad,
  )
  t.throws(
    refused((x, _, targets) => embeddingGrad({ dy: x, ids: targets }, { vocab: 0 })),
    bad,
  )
})

const thorough = process.env.SLOW !== undefined || process.env.CI !== undefined
const elsewhere: readonly [string, Record<string, string>][] = [
  ["emulated AMX tiles", { SELSCAN_AMX: "emulate" }],
  ...["portable", "avx2", "avx512", "avx512bf16"].map((isa): [string, Record<string, string>] => [
    isa,
    { SELSCAN_ISA: isa },
  ]),
  ...["avx2", "avx512"].map((isa): [string, Record<string, string>] => [
    `${isa} without VNNI`,
    { SELSCAN_ISA: isa, SELSCAN_VNNI: "off" },
  ]),
]
for (const [title, variables] of thorough ? elsewhere : elsewhere.slice(0, 1)) {
  test.serial(`every case of linear holds on ${title}`, (t) => {
    const ava = fileURLToPath(new URL("../../node_modules/ava/entrypoints/cli.mjs", import.meta.url))
    const { status, stdout } = spawnSync(process.execPath, [ava, "test/ops.test.ts"], {
      cwd: fileURLToPath(new URL("../..", import.meta.url)),
      env: { ...process.env, ...variables, OP: "linear" },
      encoding: "utf8",
    })
    t.is(status, 0, stdout)
  })
}
