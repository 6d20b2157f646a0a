import test from "ava"
import { begun, nodeCost } from "../../lib/generate/cost.ts"
import type { ProfileLine } from "../../lib/generate/node-times.ts"
import { trace } from "../../lib/graph/program.ts"
import { type ModelSize, modelConfig } from "../../lib/models/config.ts"
import { MegaByte, megabyteConfig } from "../../lib/models/megabyte.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { adamW } from "../../lib/ops/adam-w.ts"
import { profileTraining, type TrainingProfile, type TrainingProfileOptions } from "../../lib/train/profile.ts"
import { batchProgram, optimizerDefaults, partsOf, stepParts } from "../../lib/train/program.ts"

const device = "cpu"
const small = {
  ...{ batch: 2, length: 8, repeats: 2, device, blockBytes: 4 << 10, product: [4, 8, 16] },
} satisfies TrainingProfileOptions
const tiny = { dim: 16, state: 4, vocab: 256 }
const mamba = new PatternModel(modelConfig({ ...tiny, layers: 2 }))

const costsOf = (lines: readonly ProfileLine[]) =>
  Object.fromEntries(
    lines.map(({ op, of, nodes, bytes, operations }) => [of ? `${op} ${of}` : op, { nodes, bytes, operations }]),
  )

test("bytes and operations of a step are those that its sizes say: two blocks of 16 rows, inner 32, rank 1", async (t) => {
  const { forward, backward, optimizer } = await profileTraining(mamba, small)
  const rows = 16
  const product = (out: number, inner: number) => ({
    nodes: 2,
    bytes: 2 * 4 * (rows * inner + out * inner + rows * out),
    operations: 2 * 2 * rows * out * inner,
  })
  t.like(costsOf(forward.lines), { "linear 64 × 16 f32": product(64, 16), "linear 9 × 32 f32": product(9, 32) })
  t.like(costsOf(backward.lines), {
    "linearInputGrad 64 × 16 f32": product(64, 16),
    "linearWeightGrad 64 × 16 f32": product(64, 16),
    "linearWeightGrad 9 × 32 f32": product(9, 32),
  })
  const operations = (name: string) => backward.lines.find(({ op }) => op === name)!.operations
  t.is(operations("selectiveScanGrad"), 2 * 18 * rows * 32 * 4)
  t.is(operations("causalConvGrad"), 2 * 6 * rows * 32 * 4)
  const parameters = 256 * 16 + 16 + 2 * (16 + 64 * 16 + 32 * 5 + 9 * 32 + 32 + 32 + 32 * 4 + 32 + 16 * 32)
  const names = 2 + 2 * 10
  // Read: the parameter, its gradient, two moments, three numbers; written: the parameter and the moments.
  const [update] = optimizer.lines.filter(({ op }) => op === "adamW")
  t.like(update, { nodes: names, bytes: 4 * (7 * parameters + 3 * names), operations: 0 })
})

test("what an op changes in place is read and written", (t) => {
  const program = trace("update", (x) => {
    const of = (name: string) => x.training(name, "f32", [10])
    const scalars = { rate: x.input("rate", "f32", []), step: x.input("step", "f32", []) }
    const clip = x.input("clip", "f32", [])
    adamW({ param: of("p"), grad: of("g"), m: of("m"), v: of("v"), ...scalars, clip }, { beta1: 0.9 })
    return {}
  })
  t.is(nodeCost(program.nodes[0]!, new Set(program.values), begun).bytes, 4 * (7 * 10 + 3))
})

test("every node of a step is in one part, in the order forward, backward, optimizer, also where blocks are computed again", (t) => {
  for (const recompute of [false, true]) {
    const shape = { batch: 1, length: 8, streams: 1, recompute }
    const program = batchProgram(mamba, shape, "update", optimizerDefaults)
    const parts = partsOf(program)
    t.deepEqual(
      parts.filter((part, i) => part !== parts[i - 1]),
      [...stepParts],
    )
    const where = (name: string) => [
      ...new Set(program.nodes.flatMap(({ op }, i) => (op.name === name ? [parts[i]] : []))),
    ]
    t.deepEqual(where("selectiveScan"), recompute ? ["forward", "backward"] : ["forward"])
    t.deepEqual(where("selectiveScanGrad"), ["backward"])
    for (const name of ["sumSquares", "clipScale", "adamW"]) t.deepEqual(where(name), ["optimizer"])
  }
})

const samba = { ...tiny, layers: 4, pattern: ["mamba", "swiglu", "sliding", "swiglu"], heads: 2, window: 4 } as const
const networks = {
  samba: new PatternModel(modelConfig(samba satisfies ModelSize)),
  megabyte: new MegaByte(megabyteConfig({ vocab: 256, dims: [16, 16], depths: [1, 1], patch: 4, patches: 4 })),
}

for (const [name, network] of Object.entries(networks)) {
  test(`every number of a ${name} is one, shares add up to the whole, and the costliest of a part comes first`, async (t) => {
    const rounds: string[] = []
    const onProgress = (done: number, all: number) => rounds.push(`${done}/${all}`)
    const precision = "bf16"
    const result: TrainingProfile = await profileTraining(network, { ...small, precision, recompute: true, onProgress })
    t.deepEqual(rounds, ["1/3", "2/3", "3/3"])
    const { limits, seconds, inNodes, products, forward, backward, optimizer } = result
    for (const limit of Object.values(limits)) t.true(limit > 0 && Number.isFinite(limit))
    t.true(0 < inNodes.min && inNodes.median <= seconds.max)
    const all = [forward, backward, optimizer].flatMap(({ lines }) => lines)
    for (const { nodes, bytes, operations, ofLimit, share } of all)
      t.true(nodes > 0 && bytes > 0 && operations >= 0 && Number.isFinite(ofLimit) && share >= 0)
    for (const { lines } of [forward, backward, optimizer]) {
      const medians = lines.map((line) => line.seconds.median)
      t.deepEqual(
        medians,
        medians.toSorted((a, b) => b - a),
      )
    }
    const whole = all.reduce((sum, { share }) => sum + share, 0)
    t.true(Math.abs(whole - 1) < 1e-9)
    const linears = all.filter(({ op }) => op.startsWith("linear"))
    t.is(
      products.operations,
      linears.reduce((sum, line) => sum + line.operations, 0),
    )
    t.is(products.ofLimit, products.operations / limits.bf16 / products.seconds)
  })
}

test("options that are none are refused, and an abort ends it", async (t) => {
  for (const name of ["batch", "length", "repeats", "blockBytes"]) {
    for (const bad of [0, 1.5, "8"]) {
      const message = new RegExp(`^profileTraining: ${name} is a whole number of at least 1, got ${bad}$`)
      await t.throwsAsync(profileTraining(mamba, { ...small, [name]: bad }), { code: "BAD_OPTION", message })
    }
  }
  const cases: [Record<string, unknown>, string, RegExp][] = [
    [{ batch: 2 ** 12, length: 2 ** 13 }, "BAD_OPTION", /at most 16777216 tokens, got 4096 × 8192$/],
    [{ batch: 2 ** 12, length: 2 ** 12 }, "OUT_OF_MEMORY", /bytes of memory are expected for a step, got \d+; choose/],
    [{ precision: "f16" }, "BAD_OPTION", /precision is f32, bf16 or bf16x3, got f16/],
    [{ recompute: 1 }, "BAD_OPTION", /recompute is true or false, got 1$/],
    [{ product: [0, 1, 1] }, "BAD_OPTION", /product is rows, in and out of a linear/],
    [{ lenght: 8 }, "BAD_OPTION", /did you mean length\?/],
    [{ signal: 1 }, "BAD_OPTION", /signal is an AbortSignal/],
  ]
  for (const [more, code, message] of cases)
    await t.throwsAsync(profileTraining(mamba, { ...small, ...more } as never), { code, message }, JSON.stringify(more))
  await t.throwsAsync(profileTraining(networks.megabyte, { ...small, length: 6 }), {
    message: /patch of 4 bytes, got 6$/,
  })
  const full = new PatternModel(
    modelConfig({ ...tiny, layers: 2, pattern: ["full", "swiglu"], heads: 2, contextMax: 4 }),
  )
  await t.throwsAsync(profileTraining(full, small), { code: "BAD_INPUT", message: /contextMax = 4/ })
  const stop = new AbortController()
  const onProgress = () => stop.abort()
  const options = { ...small, repeats: 100, signal: stop.signal, onProgress }
  await t.throwsAsync(profileTraining(mamba, options), { code: "ABORTED" })
})
