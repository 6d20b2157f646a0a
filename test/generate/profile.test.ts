import test from "ava"
import { begun, nodeCost } from "../../lib/generate/cost.ts"
import type { ProfileLine } from "../../lib/generate/node-times.ts"
import { type Profile, type ProfileOptions, profile } from "../../lib/generate/profile.ts"
import { trace } from "../../lib/graph/program.ts"
import { slidingAttention } from "../../lib/ops/attention.ts"
import { gatherRows } from "../../lib/ops/columns.ts"
import { embedding } from "../../lib/ops/embedding.ts"
import { linearAttention } from "../../lib/ops/linear-attention.ts"
import { type TinyKind, tinyModel } from "./tiny.ts"

const small = { prefill: 8, decode: 4, repeats: 2, blockBytes: 4 << 10, product: [4, 8, 16] } satisfies ProfileOptions

/** Costs by op, and by matrix where there is one. */
const costsOf = (lines: readonly ProfileLine[]) =>
  Object.fromEntries(
    lines.map(({ op, of, nodes, bytes, operations }) => [of ? `${op} ${of}` : op, { nodes, bytes, operations }]),
  )

/** Of the tiny mamba: dim 16, inner 32, state 4, rank 1, 4 taps, 256 ids, 2 blocks, all f32. */
function mambaCosts(rows: number, states: number) {
  const linear = (out: number, inner: number, more = 0, of = rows) => ({
    bytes: 4 * (of * inner + out * inner + of * out) + more,
    operations: 2 * of * out * inner,
  })
  const twice = ({ bytes, operations }: { bytes: number; operations: number }) => {
    return { nodes: 2, bytes: 2 * bytes, operations: 2 * operations }
  }
  const segments = 20
  return {
    "linear 64 × 16 f32": twice(linear(64, 16)),
    "linear 9 × 32 f32": twice(linear(9, 32)),
    "linear 256 × 16 f32": { nodes: 1, ...linear(256, 16, 0, 1) },
    causalConv: twice({
      bytes: 4 * (2 * rows * 32 + 32 * 4 + 32) + segments + states * 4 * 32 * 3,
      operations: 2 * rows * 32 * 4,
    }),
    // x, delta, z and y; B and C; A; D and bias; states.
    selectiveScan: twice({
      bytes: 4 * (4 * rows * 32 + 2 * rows * 4 + 32 * 4 + 2 * 32) + segments + states * 4 * 32 * 4,
      operations: 6 * rows * 32 * 4,
    }),
    "embedding 256 × 16 f32": { nodes: 1, bytes: 4 * (rows + 2 * rows * 16), operations: 0 },
  }
}

test("bytes and operations of a mamba's nodes are those that its sizes say, of a prompt and of a token", async (t) => {
  await using model = await tinyModel({ device: "cpu" })
  const { prompt, decode } = await profile(model, small)
  t.like(costsOf(prompt.lines), mambaCosts(8, 1), "states of a prompt that begins are written alone")
  t.like(costsOf(decode.lines), mambaCosts(1, 2), "states of a token are read and written")
})

test("several sequences share what they read of the weights, and each has its own state", async (t) => {
  await using model = await tinyModel({ device: "cpu", sessions: 3 })
  const of = async (batch: number) => costsOf((await profile(model, { ...small, batch, repeats: 1 })).decode.lines)
  const [one, three] = [await of(1), await of(3)]
  const [scan, linear] = ["selectiveScan", "linear 64 × 16 f32"]
  t.is(three[scan]!.operations, 3 * one[scan]!.operations)
  const inProj = 2 * 4 * 64 * 16
  t.is(three[linear]!.bytes - inProj, 3 * (one[linear]!.bytes - inProj))
})

test("of a model in 8 bits whole numbers and their scales are read, of the table the rows alone, and products are held to those of 8 bits", async (t) => {
  await using model = await tinyModel({ device: "cpu", weights: "int8" })
  const { limits, prompt, decode } = await profile(model, small)
  const int8 = (rows: number) => {
    const scales = (out: number) => 2 * out // a row of 16 or 32 is one group
    const linear = (out: number, inner: number, of = rows) => ({
      bytes: 4 * of * (inner + out) + out * inner + scales(out),
      operations: 2 * of * out * inner,
    })
    const twice = ({ bytes, operations }: { bytes: number; operations: number }) => {
      return { nodes: 2, bytes: 2 * bytes, operations: 2 * operations }
    }
    return {
      "linear 64 × 16 i8": twice(linear(64, 16)),
      "linear 256 × 16 i8": { nodes: 1, ...linear(256, 16, 1) },
      "embedding 256 × 16 i8": { nodes: 1, bytes: 4 * (rows + rows * 16) + rows * 16 + scales(rows), operations: 0 },
    }
  }
  t.like(costsOf(prompt.lines), int8(8))
  t.like(costsOf(decode.lines), int8(1))
  t.true(limits.int8! > 0)
  const products = [...prompt.lines, ...decode.lines].filter(({ op }) => op === "linear")
  for (const { of, bytes, operations, seconds, limit, ofLimit } of products) {
    const own = of!.endsWith("i8") ? "int8" : "f32"
    const [moving, computing] = [bytes / limits.memory, operations / limits[own]!]
    t.is(limit, computing > moving ? own : "memory")
    t.is(ofLimit, Math.max(moving, computing) / seconds.median)
  }
  await using wide = await tinyModel({ device: "cpu" })
  t.false("int8" in (await profile(wide, { ...small, repeats: 1 })).limits)
})

for (const kind of ["mamba", "samba", "llama", "linear", "megabyte"] satisfies TinyKind[]) {
  test(`every number of a ${kind} is one, shares add up to the whole, and the costliest comes first`, async (t) => {
    await using model = await tinyModel({ kind, sessions: 1 })
    const rounds: string[] = []
    const onProgress = (done: number, all: number) => rounds.push(`${done}/${all}`)
    const { limits, prompt, decode }: Profile = await profile(model, { ...small, prefill: 21, onProgress })
    t.deepEqual(rounds, ["1/3", "2/3", "3/3"])
    for (const limit of Object.values(limits)) t.true(limit > 0 && Number.isFinite(limit))
    for (const { seconds, inNodes, lines } of [prompt, decode]) {
      t.true(0 < inNodes.median && inNodes.min <= inNodes.max && seconds.median > 0)
      const shares = lines.map(({ share }) => share)
      t.true(Math.abs(shares.reduce((a, b) => a + b, 0) - 1) < 1e-9)
      t.deepEqual(
        lines.map((line) => line.seconds.median),
        lines.map((line) => line.seconds.median).toSorted((a, b) => b - a),
      )
      for (const { nodes, bytes, operations, ofLimit, limit } of lines) {
        t.true(nodes > 0 && bytes > 0 && operations >= 0 && Number.isFinite(ofLimit))
        t.true(limit === "memory" || operations > 0)
      }
    }
    using session = model.session()
    await t.notThrowsAsync(session.append("places are given back"))
  })
}

test("a row of attention sees itself and what is before it, as far as the window reaches", (t) => {
  const pairs = (rows: number, segments: number, window: number, position: number) => {
    const program = trace("attention", (x) => {
      const qkv = x.input("qkv", "f32", [rows, 4 * 8])
      const { y } = slidingAttention(
        { qkv, segments: x.input("segments", "i32", [segments, 5]) },
        { heads: 2, kvHeads: 1, headDim: 8, window },
      )
      return { y }
    })
    const place = { sequences: segments, position: () => position, rings: new Map() }
    return nodeCost(program.nodes[0]!, new Set(program.values), place).operations / (4 * 2 * 8)
  }
  t.is(pairs(4, 1, 0, 0), 1 + 2 + 3 + 4)
  t.is(pairs(4, 1, 3, 0), 1 + 2 + 3 + 3)
  t.is(pairs(4, 1, 3, 100), 12)
  t.is(pairs(4, 1, 0, 100), 101 + 102 + 103 + 104)
  t.is(pairs(4, 4, 0, 9), 40)
})

test("of a table the rows that are read count, and of a matrix of states its decay and two products", (t) => {
  const program = trace("both", (x) => {
    const table = x.weight("table", "f32", [1000, 6])
    const { y: q } = gatherRows({ x: table, index: x.input("index", "i32", [5]) })
    const given = { q, k: q, v: q, segments: x.input("segments", "i32", [1, 5]) }
    return { y: linearAttention(given, { heads: 2, scale: 1, retention: true }).y }
  })
  const place = { sequences: 1, position: () => 0, rings: new Map() }
  const [rows, attention] = program.nodes.map((node) => nodeCost(node, new Set(program.values), place))
  t.deepEqual(rows, { bytes: 4 * (5 + 2 * 5 * 6), operations: 0 })
  t.is(attention!.operations, 5 * 5 * 2 * 3 * 3)
})

test("no more of a table is read than it has", (t) => {
  const program = trace("few", (x) => {
    const matrix = { weight: x.weight("table", "i8", [4, 40]), scales: x.weight("scales", "bf16", [4, 2]) }
    return { y: embedding({ ids: x.input("ids", "i32", [9]), ...matrix }).y }
  })
  t.is(nodeCost(program.nodes[0]!, new Set(program.values), begun).bytes, 4 * 9 + 4 * 9 * 40 + 4 * 40 + 2 * 4 * 2)
})

test("sizes that are none are refused, and an abort ends it", async (t) => {
  await using model = await tinyModel({ kind: "llama", sessions: 2, contextMax: 64 })
  for (const name of ["prefill", "decode", "batch", "repeats", "blockBytes"]) {
    for (const bad of [0, 1.5, "8"]) {
      const message = new RegExp(`^profile: ${name} is a whole number of at least 1, got ${bad}$`)
      await t.throwsAsync(profile(model, { ...small, [name]: bad }), { code: "BAD_OPTION", message })
    }
  }
  for (const product of [[1, 2], [0, 1, 1], [1, 1, 2 ** 17], 8]) {
    await t.throwsAsync(profile(model, { ...small, product: product as never }), {
      code: "BAD_OPTION",
      message: /^profile: product is rows, in and out of a linear, from 1 to 65536, got /,
    })
  }
  await t.throwsAsync(profile(model, { ...small, prefill: 63 }), { code: "BAD_INPUT", message: /contextMax = 64/ })
  await t.throwsAsync(profile(model, { ...small, batch: 3 }), { code: "SLOTS_EXHAUSTED" })
  await t.throwsAsync(profile(model, { ...small, prefil: 1 } as never), { message: /did you mean prefill\?/ })
  const stop = new AbortController()
  const onProgress = () => stop.abort()
  await t.throwsAsync(profile(model, { ...small, repeats: 100, signal: stop.signal, onProgress }), { code: "ABORTED" })
  await t.notThrowsAsync(profile(model, { ...small, batch: 2, repeats: 1 }), "places were given back")
})
