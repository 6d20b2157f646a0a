/**
 * Programs: what is kept of a trace, how it prints, and the bytes that the native side reads.
 */
import test from "ava"
import { type Program, trace } from "../../lib/graph/program.ts"
import { replayFile } from "../../lib/graph/replay.ts"
import { ByteWriter, fnv1a } from "../../lib/graph/writer.ts"
import { split } from "../../lib/ops/columns.ts"
import { accumulate, add, exp, scale } from "../../lib/ops/elementwise.ts"

const small = (): Program =>
  trace("small", (tr) => {
    const x = tr.input("x", "f32", [2, 3])
    tr.input("unused", "f32", [9])
    const { y } = tr.scope("layers", () => tr.scope("0", () => scale({ x }, { factor: 0.5 })))
    exp({ x: y }) // nobody reads it
    const total = add({ a: y, b: tr.weight("w", "f32", [2, 3]) }).y
    accumulate({ total: tr.training("sum", "f32", [2, 3]), x: total })
    return { total, input: x }
  })

test("nodes and inputs that no output needs are gone, updates stay", (t) => {
  const { nodes, inputs } = small()
  t.deepEqual(
    nodes.map((node) => node.op.name),
    ["scale", "add", "accumulate"],
  )
  t.deepEqual(
    inputs.map(({ name }) => name),
    ["x"],
  )
})

test("a program prints its stored values, nodes, layers and outputs", (t) => {
  t.is(
    small().print(),
    `program small
  input x  f32 [2,3]
  weight w  f32 [2,3]
  training sum  f32 [2,3]
  %1:y f32 [2,3] = scale x=x | factor:0.5  @layers.0
  %3:y f32 [2,3] = add a=%1 b=w
  accumulate total=sum x=%3
  output total=%3 input=x
`,
  )
})

test("an output that nobody reads is not given a place", (t) => {
  const program = trace("half", (tr) => ({ a: split({ x: tr.input("x", "f32", [2, 5]) }, { first: 2 }).a }))
  t.is(
    program.print(),
    `program half
  input x  f32 [2,5]
  %1:a f32 [2,2] = split x=x | first:2
  output a=%1
`,
  )
})

test("serialising twice gives the same bytes, closed by their checksum", (t) => {
  const bytes = small().serialise()
  t.deepEqual(small().serialise(), bytes)
  t.is(new TextDecoder().decode(bytes.subarray(0, 4)), "SSP1")
  const view = new DataView(bytes.buffer)
  t.is(view.getBigUint64(bytes.length - 8, true), fnv1a(bytes.subarray(0, -8)))
})

test("FNV-1a is the published one", (t) => {
  // Fowler, Noll & Vo: 64-bit FNV-1a of "", "a" and "foobar".
  t.is(fnv1a(new Uint8Array()), 0xcbf29ce484222325n)
  t.is(fnv1a(new TextEncoder().encode("a")), 0xaf63dc4c8601ec8cn)
  t.is(fnv1a(new TextEncoder().encode("foobar")), 0x85944171f73967e8n)
})

test("a writer grows over its first block", (t) => {
  const writer = new ByteWriter()
  for (let i = 0; i < 5000; i++) writer.u32(i)
  writer.string("é")
  const bytes = writer.finish()
  t.is(bytes.length, 20_000 + 4 + 2 + 8)
  t.is(new DataView(bytes.buffer).getUint32(4 * 4999, true), 4999)
})

const x = new Float32Array(6)

test("a replay file holds the program, its inputs and what is expected", (t) => {
  const program = small()
  const bytes = replayFile(program, {
    stored: [{ kind: "weight", name: "w", bytes: x }],
    inputs: { x },
    expected: [
      { kind: "training", name: "sum", bytes: x },
      { name: "input", bytes: x },
      { name: "total", bytes: x, rtol: 1e-6 },
    ],
  })
  t.is(new TextDecoder().decode(bytes.subarray(0, 4)), "SSR1")
  const inner = program.serialise()
  t.deepEqual(bytes.subarray(12, 12 + inner.length), inner)
  t.is(new DataView(bytes.buffer).getBigUint64(bytes.length - 8, true), fnv1a(bytes.subarray(0, -8)))
})

test("a replay file refuses what its program does not have", (t) => {
  const program = small()
  const outputs = [
    { name: "total", bytes: x },
    { name: "input", bytes: x },
  ]
  const refuses = (given: Parameters<typeof replayFile>[1], message: string) =>
    t.throws(() => replayFile(program, given), { name: "SelscanError", message })
  refuses({ inputs: {}, expected: outputs }, "replay small: input x is missing")
  refuses({ inputs: { x, X: x }, expected: outputs }, "replay small: unknown input X, known are x")
  refuses({ inputs: { x: x.subarray(1) }, expected: outputs }, "replay small: input x is 24 bytes, got 20")
  refuses({ inputs: { x }, expected: outputs.slice(1) }, "replay small: output total has no expectation")
  refuses(
    { inputs: { x }, expected: [...outputs, outputs[0]!] },
    "replay small: every output is expected once, got 3 for 2",
  )
  refuses(
    { inputs: { x }, stored: [{ kind: "weight", name: "ww", bytes: x }], expected: outputs },
    "replay small: unknown weight ww, did you mean w?",
  )
  refuses(
    { inputs: { x }, expected: [...outputs, { kind: "state", name: "sum", bytes: x }] },
    "replay small: unknown state sum, none is known here",
  )
})
