/** What attention refuses: heads and sizes while tracing, segments and rings before a run. */
import test from "ava"
import type { ErrorCode } from "../../lib/errors.ts"
import { trace } from "../../lib/graph/program.ts"
import type { Trace } from "../../lib/graph/trace.ts"
import { Store } from "../../lib/native.ts"
import { slidingAttention, slidingAttentionGrad } from "../../lib/ops/attention.ts"
import { device } from "../device.ts"

const rows = 70
const fits = { heads: 4, kvHeads: 2, headDim: 8, window: 20 }
const columns = 64

function attentionInputs(tr: Trace, { packed = columns, ring = [3, 2, 128, 8], dtype = "f32" as "f32" | "bf16" } = {}) {
  return {
    qkv: tr.input("qkv", "f32", [rows, packed]),
    segments: tr.input("segments", "i32", [2, 5]),
    rings: tr.input("rings", "i32", [2]),
    keys: tr.state("keys", dtype, ring),
    values: tr.state("values", dtype, ring),
  }
}

const whileTracing: readonly (readonly [string, ErrorCode, RegExp, (tr: Trace) => void])[] = [
  ...(
    [
      ["no heads", { heads: 0 }, /heads is a whole number from 1 to 65536, got 0/],
      ["kv heads that do not divide", { kvHeads: 3 }, /kvHeads divides heads, got 3 kvHeads for 4 heads/],
      ["more kv heads than heads", { kvHeads: 8 }, /kvHeads is a whole number from 1 to 4, got 8/],
      ["a headDim over 256", { headDim: 257 }, /headDim is a whole number from 1 to 256, got 257/],
      ["a window below 0", { window: -1 }, /window is a whole number of keys.* got -1/],
      ["half a key", { window: 1.5 }, /got 1\.5/],
      ["a window that i32 does not hold", { window: 2 ** 31 }, /keys up to 2147483647.* got 2147483648/],
      ["a precision that is none", { precision: "f16" }, /precision is f32, bf16 or bf16x3, got f16/],
    ] as const
  ).map(
    ([title, wrong, message]) =>
      [
        title,
        "BAD_OPTION",
        message,
        (tr: Trace) => slidingAttention(attentionInputs(tr), { ...fits, ...wrong }),
      ] as const,
  ),
  [
    "columns of other heads",
    "BAD_SHAPE",
    /qkv has \(heads \+ 2·kvHeads\)·headDim = 64 columns, got 72/,
    (tr) => slidingAttention(attentionInputs(tr, { packed: 72 }), fits),
  ],
  [
    "a capacity that is no multiple of the tile",
    "BAD_SHAPE",
    /a capacity that is a multiple of 64, got \[rings, 2, 100, 8\]/,
    (tr) => slidingAttention(attentionInputs(tr, { ring: [3, 2, 100, 8] }), fits),
  ],
  [
    "a ring of other heads",
    "BAD_SHAPE",
    /a ring is \(rings, kvHeads 2, capacity, headDim 8\)/,
    (tr) => slidingAttention(attentionInputs(tr, { ring: [3, 4, 128, 4] }), fits),
  ],
  [
    "rings without keys and values",
    "BAD_INPUT",
    /rings, keys and values are given together or not at all, got 1 of them/,
    (tr) => {
      const { qkv, segments, rings } = attentionInputs(tr)
      slidingAttention({ qkv, segments, rings }, fits)
    },
  ],
  [
    "keys without values",
    "BAD_INPUT",
    /given together or not at all, got 2 of them/,
    (tr) => {
      const { qkv, segments, rings, keys } = attentionInputs(tr)
      slidingAttention({ qkv, segments, rings, keys }, fits)
    },
  ],
  [
    "more rings of values than of keys",
    "BAD_SHAPE",
    /values as many rings as keys, got 2, and 4 beside 3/,
    (tr) => slidingAttention({ ...attentionInputs(tr), values: tr.state("more", "f32", [4, 2, 128, 8]) }, fits),
  ],
  [
    "a y of other heads in the gradient",
    "BAD_SHAPE",
    /dy and y have 32 columns and lse 4, got 40 and 4/,
    (tr) => {
      const y = tr.input("y", "f32", [rows, 40])
      slidingAttentionGrad({ dy: y, y, lse: tr.input("lse", "f32", [rows, 4]), ...attentionInputs(tr) }, fits)
    },
  ],
]

for (const [title, code, message, fn] of whileTracing) {
  test(`${title}: refused while tracing`, (t) => {
    const error = t.throws(
      () =>
        trace("refused", (tr) => {
          fn(tr)
          return {}
        }),
      { message },
    )
    t.like(error, { code })
  })
}

const whenCompiled: readonly (readonly [string, RegExp, (tr: Trace) => ReturnType<typeof slidingAttention>])[] = [
  [
    "a ring of another dtype than the precision's",
    /a ring is of the dtype of the precision, f32, got bf16/,
    (tr) => slidingAttention(attentionInputs(tr, { dtype: "bf16" }), fits),
  ],
  [
    "keys and values of two dtypes",
    /keys and values have one dtype, got two/,
    (tr) => {
      const values = tr.state("halves", "bf16", [3, 2, 128, 8])
      return slidingAttention({ ...attentionInputs(tr), values }, fits)
    },
  ],
]

for (const [title, message, fn] of whenCompiled) {
  test(`${title}: refused when the program is compiled`, async (t) => {
    await using store = new Store(device)
    const program = trace("refused", (tr) => ({ y: fn(tr).y }))
    t.like(await t.throwsAsync(store.compile(program), { message }), { code: "BAD_SHAPE" satisfies ErrorCode })
  })
}

const none = [0, 0, 0, 0, 0]
const beforeTheRun: Readonly<
  Record<string, readonly [lines: number[], rings: [number, number], RegExp, window?: number]>
> = {
  "a ring past the last": [[0, 5, 0, 0, 0, ...none], [3, 0], /slot in \[0, 3\), got 3/],
  "a ring below zero": [[0, 5, 0, 0, 0, ...none], [-1, 0], /slot in \[0, 3\), got -1/],
  "a ring that two segments use": [[0, 5, 0, 0, 0, 5, 9, 0, 0, 0], [2, 2], /got slot 2 written by segments 0 and 1/],
  "a segment longer than its ring": [
    [0, 70, 0, 0, 0, ...none],
    [1, 0],
    /a ring of 64 positions holds .* got 0 \+ 70 in segment 0; run fewer rows at once/,
  ],
  "a segment that is too long with the window before it": [
    [0, 46, 500, 0, 0, ...none],
    [1, 0],
    /got 19 \+ 46 in segment 0/,
  ],
  "a position that a ring without a window does not hold": [
    [0, 1, 64, 0, 0, ...none],
    [1, 0],
    /got 64 \+ 1 in segment 0; load the model with a larger contextMax/,
    0,
  ],
  "rows past the end": [[0, 71, 0, 0, 0, ...none], [0, 0], /rows \[begin, end\) lie in \[0, 70\)/],
  "a position below zero": [[0, 5, -1, 0, 0, ...none], [1, 0], /positions are in \[0, 2\^31\), got -1/],
}

for (const [title, [lines, rings, message, window = 20]] of Object.entries(beforeTheRun)) {
  test(`${title}: refused before the run, rings untouched`, async (t) => {
    await using store = new Store(device)
    const shape = [3, 2, 64, 8]
    const attrs = { ...fits, window }
    const program = await store.compile(
      trace("attention", (tr) => ({ y: slidingAttention(attentionInputs(tr, { ring: shape }), attrs).y })),
    )
    const before = Float32Array.from({ length: 3 * 2 * 64 * 8 }, (_, i) => i)
    for (const name of ["keys", "values"]) await store.upload("state", { name, dtype: "f32", shape }, before)
    const inputs = {
      qkv: new Float32Array(rows * columns),
      segments: Int32Array.from(lines),
      rings: Int32Array.from(rings),
    }
    t.like(await t.throwsAsync(program.run(inputs), { message }), { code: "BAD_INPUT" satisfies ErrorCode })
    for (const name of ["keys", "values"]) {
      t.deepEqual(new Float32Array((await store.download("state", name)).buffer), before)
    }
  })
}

test("what fits exactly is run: a window and rows that fill the ring, and a ring that a segment without rows names", async (t) => {
  await using store = new Store(device)
  const program = await store.compile(
    trace("attention", (tr) => ({ y: slidingAttention(attentionInputs(tr, { ring: [3, 2, 64, 8] }), fits).y })),
  )
  const { y } = await program.run({
    qkv: new Float32Array(rows * columns).fill(1),
    segments: Int32Array.of(0, 45, 500, 0, 0, 45, 45, 0, 0, 0),
    rings: Int32Array.of(1, 99),
  })
  t.true((y as Float32Array).every(Number.isFinite))
})

// A tile that begins at the last row of a head has 63 more, which a GPU counts in 32 bits.
const gpu = device === "cpu" ? test.skip : test
for (const [title, heads, most] of [
  ["one head", 1, 2 ** 31 - 63],
  ["65536 heads", 65536, 2 ** 15],
] as const) {
  gpu(`more rows of ${title} than a GPU counts: refused when the program is compiled`, async (t) => {
    await using store = new Store(device)
    const program = trace("refused", (tr) => {
      const qkv = tr.input("qkv", "f32", [most, heads + 2])
      const segments = tr.input("segments", "i32", [1, 5])
      return { y: slidingAttention({ qkv, segments }, { heads, kvHeads: 1, headDim: 1, window: 1 }).y }
    })
    const message = new RegExp(`slidingAttention.*rows·heads is at most 2\\^31 − 64, got ${most * heads}`)
    t.like(await t.throwsAsync(store.compile(program), { message }), { code: "BAD_SHAPE" satisfies ErrorCode })
  })
}
