/**
 * bf16x3 on tiles, here emulated ones: what is left out of a product, bits that depend on nothing else, and weights that stay as they
 * were. And without tiles, in a process of its own: the bits of f32.
 */
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import test from "ava"
import { type Program, trace } from "../../lib/graph/program.ts"
import type { Value } from "../../lib/graph/value.ts"
import { devices, Store, setThreads } from "../../lib/native.ts"
import { embedding } from "../../lib/ops/embedding.ts"
import { linear, linearInputGrad, linearWeightGrad } from "../../lib/ops/linear.ts"
import { linearCrossEntropy, linearCrossEntropyGrad } from "../../lib/ops/linear-cross-entropy.ts"
import { device } from "../device.ts"
import { bf16, ints, normal, type Tensor64 } from "./spec.ts"

// The kernels ask before their first product, which no import makes.
const tiles = process.env.SPLIT_WITHOUT_TILES === undefined
if (tiles) process.env.SELSCAN_AMX = "emulate"

type Tensors = Readonly<Record<string, Tensor64>>
type Body = (values: Record<string, Value>) => Record<string, Value>

const programOf = (inputs: Tensors, body: Body): Program =>
  trace("products", (tr) =>
    body(
      Object.fromEntries(Object.entries(inputs).map(([key, { dtype, shape }]) => [key, tr.input(key, dtype, shape)])),
    ),
  )

/** The upper halves of f32 that have no lower ones. */
const halvesOf = (data: Float64Array) =>
  Uint16Array.from(new Uint32Array(Float32Array.from(data).buffer), (v) => v >>> 16)

async function run(inputs: Tensors, body: Body): Promise<Record<string, Float32Array>> {
  const program = programOf(inputs, body)
  await using store = new Store(device)
  const executable = await store.compile(program)
  const given = program.inputs.map(({ name }) => {
    const { dtype, data } = inputs[name]!
    const array = { i32: () => Int32Array.from(data), bf16: () => halvesOf(data) }[dtype as string]
    return [name, array?.() ?? Float32Array.from(data)]
  })
  return (await executable.run(Object.fromEntries(given))) as Record<string, Float32Array>
}

const sized = (rows: number, inner: number, out: number) => ({
  x: normal([rows, inner], 1),
  weight: normal([out, inner], 2),
  dy: normal([rows, out], 3),
  dlosses: normal([rows], 4),
  targets: ints([rows], 5, 0, out),
})

const products =
  (precision: string): Body =>
  ({ x, weight, dy }) => ({
    y: linear({ x: x!, weight: weight! }, { precision }).y,
    dx: linearInputGrad({ dy: dy!, weight: weight! }, { precision }).dx,
    dweight: linearWeightGrad({ dy: dy!, x: x! }, { precision }).dweight,
  })

const everything =
  (precision: string): Body =>
  ({ dlosses, targets, ...values }) => {
    const { x, weight } = values
    const { losses, logsumexp } = linearCrossEntropy({ x: x!, weight: weight!, targets: targets! }, { precision })
    const head = { dlosses: dlosses!, x: x!, weight: weight!, targets: targets!, logsumexp }
    const { dx, dweight } = linearCrossEntropyGrad(head, { precision })
    return { ...products(precision)(values), losses, logsumexp, dxOfHead: dx, dweightOfHead: dweight }
  }

const onTiles = tiles && device === "cpu" ? test.serial : test.skip

/** The greatest error of an element, over what the bound on it is: `lost` of Σ|a·b|, and the f32 sum over tiles of 32 k. */
function overBound(
  got: Float32Array,
  [rows, inner, columns]: readonly [number, number, number],
  a: (m: number, k: number) => number,
  b: (k: number, n: number) => number,
  lost: number,
): number {
  const additions = (3 * Math.ceil(inner / 32) + 17) * 2 ** -24
  let worst = 0
  for (let i = 0; i < rows * columns; i++) {
    const [m, n] = [Math.floor(i / columns), i % columns]
    let [sum, magnitude] = [0, 0]
    for (let k = 0; k < inner; k++) {
      sum += a(m, k) * b(k, n)
      magnitude += Math.abs(a(m, k) * b(k, n))
    }
    worst = Math.max(worst, Math.abs(got[i]! - sum) / ((lost + additions) * magnitude))
  }
  return worst
}

for (const inner of [1, 31, 32, 33, 64, 700]) {
  onTiles(`a split product over ${inner} is within its bound, which one product of bf16 is not`, async (t) => {
    const [rows, out] = [9, 21]
    const at = ({ data, shape }: Tensor64, i: number, j: number) => data[i * shape[1]! + j]!
    for (const [dtype, lost] of [
      ["f32", 2 ** -15],
      ["bf16", 2 ** -17], // a weight without lower halves
    ] as const) {
      const { x, weight: exact } = sized(rows, inner, out)
      const weight = dtype === "bf16" ? bf16(exact) : exact
      const long = { x: normal([inner, rows], 6), dy: normal([inner, out], 7) } // the weight gradient sums over rows
      const across = { dy: normal([rows, inner], 8), weight: normal([inner, out], 9) } // the input gradient over out
      const errors = async (precision: string) => {
        const forward = await run({ x, weight }, ({ x, weight }) => linear({ x: x!, weight: weight! }, { precision }))
        const turned = await run(long, ({ x, dy }) => linearWeightGrad({ x: x!, dy: dy! }, { precision }))
        const back = await run(across, (v) => linearInputGrad({ dy: v.dy!, weight: v.weight! }, { precision }))
        return {
          y: overBound(
            forward.y!,
            [rows, inner, out],
            (m, k) => at(x, m, k),
            (k, n) => at(weight, n, k),
            lost,
          ),
          dweight: overBound(
            turned.dweight!,
            [out, inner, rows],
            (m, k) => at(long.dy, k, m),
            (k, n) => at(long.x, k, n),
            2 ** -15,
          ),
          dx: overBound(
            back.dx!,
            [rows, inner, out],
            (m, k) => at(across.dy, m, k),
            (k, n) => at(across.weight, k, n),
            2 ** -15,
          ),
        }
      }
      for (const [key, error] of Object.entries(await errors("bf16x3")))
        t.true(error <= 1, `${key}, ${dtype}: ${error}`)
      for (const [key, error] of Object.entries(await errors("bf16")))
        t.true(error > 1, `${key} of bf16, ${dtype}: ${error}`)
    }
  })
}

onTiles("split products are no products of f32, and the same ones whatever the number of threads", async (t) => {
  const inputs = sized(530, 40, 150) // two slabs of rows
  const exact = await run(inputs, everything("f32"))
  const results = []
  for (const threads of [1, 2, 5]) {
    await setThreads(threads)
    results.push(await run(inputs, everything("bf16x3")))
  }
  await setThreads(0)
  for (const other of results.slice(1)) t.deepEqual(other, results[0])
  for (const [key, bits] of Object.entries(exact)) t.notDeepEqual(results[0]![key], bits, key)
})

onTiles("a few rows have the bits that they have among many", async (t) => {
  const [inner, out] = [333, 50]
  const { x, weight, dy } = sized(130, inner, out)
  const all = await run({ x, weight, dy }, products("bf16x3"))
  const first = ({ dtype, shape, data }: Tensor64, rows: number): Tensor64 => ({
    dtype,
    shape: [rows, shape[1]!],
    data: data.subarray(0, rows * shape[1]!),
  })
  for (const rows of [1, 2, 3, 7, 8, 9, 32, 33, 96, 97]) {
    const some = await run({ x: first(x, rows), weight, dy: first(dy, rows) }, products("bf16x3"))
    t.deepEqual(some.y, all.y!.slice(0, rows * out), `y of ${rows} rows`)
    t.deepEqual(some.dx, all.dx!.slice(0, rows * inner), `dx of ${rows} rows`)
  }
})

onTiles("a weight stays exact beside its halves: downloads, rows and products of f32 see all of it", async (t) => {
  for (const dtype of ["f32", "bf16"] as const) {
    await using store = new Store(device)
    const exact = normal([50, 96], 1)
    const { data, shape } = dtype === "bf16" ? bf16(exact) : exact
    const bits = dtype === "bf16" ? halvesOf(data) : Float32Array.from(data)
    await store.upload("weight", { name: "w", dtype, shape }, bits)
    const product = (precision: string) =>
      store.compile(
        trace(precision, (tr) => {
          const weight = tr.weight("w", dtype, shape)
          const ids = tr.input("ids", "i32", [2])
          return {
            y: linear({ x: tr.input("x", "f32", [2, 96]), weight }, { precision }).y,
            rows: embedding({ ids, weight }).y,
          }
        }),
      )
    const inputs = { x: Float32Array.from({ length: 192 }, (_, i) => Math.cos(i)), ids: Int32Array.of(3, 49) }
    const before = await (await product("f32")).run(inputs)
    const split = await product("bf16x3")
    const { y, rows } = await split.run(inputs)
    t.notDeepEqual(y, before.y)
    t.deepEqual(rows, before.rows)
    t.deepEqual(await store.download("weight", "w"), new Uint8Array(bits.buffer))
    t.deepEqual(await (await product("f32")).run(inputs), before)
    const changed = bits.slice()
    changed[7] = dtype === "bf16" ? 0x4040 : 3
    await store.upload("weight", { name: "w", dtype, shape }, changed)
    t.notDeepEqual((await split.run(inputs)).y, y, "a weight that was written is split anew")
  }
})

const instructionSet = devices().find(({ name }) => name === "cpu")!.instructionSet
const withoutTiles = device === "cpu" && instructionSet !== "amx" ? test.serial : test.skip

if (!tiles) {
  withoutTiles("products of bf16x3 have the bits of f32 where there are no tiles", async (t) => {
    for (const [rows, inner, out] of [
      [1, 33, 17],
      [8, 700, 50],
      [97, 64, 300],
    ] as const) {
      const inputs = sized(rows, inner, out)
      t.deepEqual(await run(inputs, everything("bf16x3")), await run(inputs, everything("f32")), `${rows} rows`)
      const halves = { ...inputs, weight: bf16(inputs.weight) }
      t.deepEqual(
        await run(halves, everything("bf16x3")),
        await run(halves, everything("f32")),
        `${rows} rows, bf16 weight`,
      )
    }
  })
} else {
  for (const isa of ["portable", "avx2", "avx512", "avx512bf16"]) {
    const here = device === "cpu" ? test.serial : test.skip
    here(`where there are no tiles, as on ${isa}, bf16x3 is f32`, (t) => {
      const ava = fileURLToPath(new URL("../../node_modules/ava/entrypoints/cli.mjs", import.meta.url))
      const { SELSCAN_AMX: _, ...environment } = process.env
      const { status, stdout } = spawnSync(process.execPath, [ava, "test/ops/linear-split.test.ts"], {
        cwd: fileURLToPath(new URL("../..", import.meta.url)),
        env: { ...environment, SELSCAN_ISA: isa, SPLIT_WITHOUT_TILES: "1" },
        encoding: "utf8",
      })
      t.is(status, 0, stdout)
      t.regex(stdout, /1 test passed/)
    })
  }
}

const elsewhere = device === "cpu" ? test.skip : test
elsewhere("a GPU refuses bf16x3 in one sentence, when the program is compiled", async (t) => {
  const { dlosses: _, targets: __, ...inputs } = sized(3, 4, 5)
  for (const key of ["y", "dx", "dweight"]) {
    const only: Body = (values) => ({ [key]: products("bf16x3")(values)[key]! })
    await t.throwsAsync(
      run(inputs, only),
      { message: /precision bf16x3 is the cpu's alone, got it on \w+; use f32/ },
      key,
    )
  }
})
