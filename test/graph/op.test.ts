/**
 * Signatures: what an op accepts, the shapes it gives, and the sentences it refuses with.
 */
import test from "ava"
import type { ErrorCode } from "../../lib/errors.ts"
import { SelscanError } from "../../lib/errors.ts"
import { op, registeredOps } from "../../lib/graph/op.ts"
import { Program, trace } from "../../lib/graph/program.ts"
import { record, type Trace } from "../../lib/graph/trace.ts"
import type { Value } from "../../lib/graph/value.ts"
import { add, scale } from "../../lib/ops/elementwise.ts"

const mix = op({
  name: "testMix",
  inputs: { x: "rows dim", weight: "float out dim", "bias?": "out", "index?": "i32 rows 5", "by?": "" },
  outputs: { y: "rows out", saved: "chunks dim" },
  attrs: { chunk: 2, mode: "plain", quick: false },
  dims: ({ rows = 0 }, { chunk }) => ({ chunks: Math.ceil(rows / chunk) }),
  grad: null,
})

const inTrace = (fn: (t: Trace) => void) => record("test", fn)

function refused(
  t: import("ava").ExecutionContext,
  fn: (tr: Trace) => void,
  code: ErrorCode,
  message: string,
): SelscanError {
  const error = t.throws(() => inTrace(fn), { instanceOf: SelscanError, message })!
  t.is(error.code, code)
  return error
}

const f32 = (tr: Trace, name: string, ...shape: number[]) => tr.input(name, "f32", shape)

test("output shapes follow from the signature, and from dims where it is arithmetic", (t) => {
  inTrace((tr) => {
    const { y, saved } = mix({ x: f32(tr, "x", 5, 3), weight: f32(tr, "w", 7, 3) }, { chunk: 3 })
    t.deepEqual(y.shape, [5, 7])
    t.deepEqual(saved.shape, [2, 3])
    t.is(y.dtype, "f32")
    t.deepEqual(y.node?.attrs, { chunk: 3, mode: "plain", quick: false })
  })
})

test("float takes f32 and bf16, and nothing else", (t) => {
  inTrace((tr) => {
    mix({ x: f32(tr, "x", 5, 3), weight: tr.weight("w", "bf16", [7, 3]) })
  })
  refused(
    t,
    (tr) => mix({ x: f32(tr, "x", 5, 3), weight: tr.weight("w", "f16", [7, 3]) }),
    "BAD_INPUT",
    "testMix: weight is f32 or bf16, got f16",
  )
  refused(
    t,
    (tr) => mix({ x: tr.weight("x", "bf16", [5, 3]), weight: f32(tr, "w", 7, 3) }),
    "BAD_INPUT",
    "testMix: x is f32, got bf16",
  )
})

const follow = op({
  name: "testFollow",
  inputs: { "skip?": "float rows", scale: "rows", x: "float rows" },
  outputs: { y: "float rows", total: "rows" },
  grad: null,
})
const choose = op({
  name: "testChoose",
  inputs: { x: "float ..." },
  outputs: { y: "float ...", count: "i32 2" },
  attrs: { dtype: "same" },
  grad: null,
})

test("an output marked float has the dtype of the first input given that is marked so", (t) => {
  inTrace((tr) => {
    const [half, full] = [tr.input("half", "bf16", [3]), f32(tr, "full", 3)]
    const dtypes = (outputs: Record<string, Value>) => Object.values(outputs).map(({ dtype }) => dtype)
    t.deepEqual(dtypes(follow({ scale: full, x: half })), ["bf16", "f32"])
    t.deepEqual(dtypes(follow({ scale: full, x: full })), ["f32", "f32"])
    t.deepEqual(dtypes(follow({ skip: full, scale: full, x: half })), ["f32", "f32"])
    t.deepEqual(dtypes(follow({ x: full, scale: full, skip: half })), ["bf16", "f32"], "in the signature's order")
  })
})

test("the attribute dtype names the dtype of outputs marked float, unless it is same", (t) => {
  inTrace((tr) => {
    const [half, full] = [tr.input("half", "bf16", [2, 3]), f32(tr, "full", 2, 3)]
    t.is(choose({ x: half }).y.dtype, "bf16")
    t.is(choose({ x: full }, { dtype: "bf16" }).y.dtype, "bf16")
    t.is(choose({ x: half }, { dtype: "f32" }).y.dtype, "f32")
    t.is(choose({ x: half }, { dtype: "f32" }).count.dtype, "i32")
    t.deepEqual(choose({ x: half }).y.shape, [2, 3])
  })
  refused(
    t,
    (tr) => tr.scope("head", () => choose({ x: f32(tr, "x", 2) }, { dtype: "f16" })),
    "BAD_OPTION",
    "head: testChoose: dtype is same, f32 or bf16, got f16; same is that of the input",
  )
})

test("a trace's precision and activations are f32 or bf16", (t) => {
  t.throws(() => trace("odd", () => ({}), { activations: "f16" as never }), {
    message: "trace odd: activations is f32 or bf16, got f16",
  })
  t.throws(() => trace("odd", () => ({}), { activation: "f32" } as never), {
    message: "trace odd: unknown option activation, did you mean activations?",
  })
})

test("a size that differs names both sides", (t) => {
  const error = refused(
    t,
    (tr) => mix({ x: f32(tr, "x", 5, 3), weight: f32(tr, "w", 7, 4) }),
    "BAD_SHAPE",
    "testMix: dim is 3 in x but 4 in weight [7,4]",
  )
  t.deepEqual(error.details, { dim: "dim", expected: 3, got: 4 })
})

test("a wrong rank says what the dimensions are", (t) => {
  refused(
    t,
    (tr) => mix({ x: f32(tr, "x", 5), weight: f32(tr, "w", 7, 3) }),
    "BAD_SHAPE",
    "testMix: x is (rows, dim), got shape [5]",
  )
  refused(
    t,
    (tr) => mix({ x: f32(tr, "x", 5, 3), weight: f32(tr, "w", 7, 3), by: f32(tr, "by", 1) }),
    "BAD_SHAPE",
    "testMix: by is (), got shape [1]",
  )
})

test("a fixed size is checked", (t) => {
  refused(
    t,
    (tr) => mix({ x: f32(tr, "x", 5, 3), weight: f32(tr, "w", 7, 3), index: tr.input("i", "i32", [5, 4]) }),
    "BAD_SHAPE",
    "testMix: index is (rows, 5), got shape [5,4]",
  )
})

test("shapes behind ... agree", (t) => {
  refused(
    t,
    (tr) => add({ a: f32(tr, "a", 2, 3), b: f32(tr, "b", 3, 2) }),
    "BAD_SHAPE",
    "add: shapes differ, a is [2,3] but b is [3,2]",
  )
})

test("missing and unknown inputs are named, with a suggestion", (t) => {
  refused(t, (tr) => mix({ x: f32(tr, "x", 5, 3) } as never), "BAD_INPUT", "testMix: input weight is missing")
  refused(
    t,
    (tr) => mix({ x: f32(tr, "x", 5, 3), weight: f32(tr, "w", 7, 3), biass: f32(tr, "b", 7) } as never),
    "BAD_INPUT",
    "testMix: unknown input biass, did you mean bias?",
  )
})

test("attributes are known, of their type and finite", (t) => {
  const given = (tr: Trace) => ({ x: f32(tr, "x", 5, 3), weight: f32(tr, "w", 7, 3) })
  refused(
    t,
    (tr) => mix(given(tr), { chunkk: 1 } as never),
    "BAD_OPTION",
    "testMix: unknown attribute chunkk, did you mean chunk?",
  )
  refused(t, (tr) => mix(given(tr), { chunk: "1" } as never), "BAD_OPTION", "testMix: chunk is a number, got 1")
  refused(t, (tr) => mix(given(tr), { chunk: Number.NaN }), "BAD_OPTION", "testMix: chunk is a finite number, got NaN")
  inTrace((tr) => t.is(mix(given(tr), { mode: undefined } as never).y.node?.attrs.mode, "plain"))
})

test("errors begin with the layer path", (t) => {
  refused(
    t,
    (tr) => tr.scope("layers", () => tr.scope("3", () => mix({} as never))),
    "BAD_INPUT",
    "layers.3: testMix: input x is missing",
  )
})

test("sizes are whole and at least 1, ranks at most 6", (t) => {
  refused(t, (tr) => f32(tr, "x", 3, 0), "BAD_SHAPE", "input: sizes of x are whole numbers of at least 1, got [3,0]")
  refused(t, (tr) => f32(tr, "x", 1.5), "BAD_SHAPE", "input: sizes of x are whole numbers of at least 1, got [1.5]")
  refused(
    t,
    (tr) => f32(tr, "x", 1, 1, 1, 1, 1, 1, 1),
    "BAD_SHAPE",
    "input: x has at most 6 dimensions, got [1,1,1,1,1,1,1]",
  )
})

test("a stored value asked for twice is one value, and only in one shape", (t) => {
  inTrace((tr) => t.is(tr.weight("w", "f32", [2, 3]), tr.weight("w", "f32", [2, 3])))
  refused(
    t,
    (tr) => {
      tr.weight("w", "f32", [2, 3])
      tr.weight("w", "bf16", [2, 3])
    },
    "BAD_SHAPE",
    "w: weight w is f32 [2,3], asked for as bf16 [2,3]",
  )
})

test("values do not cross traces, and ops need one", (t) => {
  let stray: Value | undefined
  inTrace((tr) => {
    stray = f32(tr, "x", 2)
  })
  refused(
    t,
    () => scale({ x: stray! }),
    "BAD_INPUT",
    "scale: x belongs to another trace; values cannot be shared between programs",
  )
  t.throws(() => scale({ x: stray! }), {
    instanceOf: SelscanError,
    message: "scale: ops are called while tracing, got no trace; wrap the call in trace(name, fn)",
  })
  t.throws(() => trace("outer", () => ({ x: stray! })), { message: "trace outer: output x belongs to another trace" })
})

test("traces do not nest, and a failed one is left behind", (t) => {
  t.throws(() => trace("outer", () => trace("inner", () => ({})).outputs), {
    message: "trace inner: a trace is already being recorded (outer)",
  })
  t.true(trace("after", () => ({})) instanceof Program)
})

test("an op is defined once", (t) => {
  t.true(registeredOps().has("testMix"))
  t.throws(() => op({ name: "testMix", inputs: {}, outputs: {}, grad: null }), { message: "op testMix: defined twice" })
})
