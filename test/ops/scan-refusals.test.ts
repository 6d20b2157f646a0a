/** What the convolution and the scan refuse: sizes while tracing, segments before a run. */
import test from "ava"
import type { ErrorCode } from "../../lib/errors.ts"
import { trace } from "../../lib/graph/program.ts"
import type { Trace } from "../../lib/graph/trace.ts"
import { Store } from "../../lib/native.ts"
import { causalConv, causalConvGrad } from "../../lib/ops/causal-conv.ts"
import { selectiveScan, selectiveScanGrad } from "../../lib/ops/selective-scan.ts"
import { device } from "../device.ts"

const rows = 6
const inner = 4

function scanInputs(tr: Trace, { state = 2, bands = 2, slots = 0 } = {}) {
  const of = (name: string, ...shape: number[]) => tr.input(name, "f32", shape)
  return {
    x: of("x", rows, inner),
    delta: of("delta", rows, inner),
    A: of("A", inner, state),
    B: of("B", rows, bands),
    C: of("C", rows, bands),
    segments: tr.input("segments", "i32", [2, 5]),
    ...(slots > 0 && { carried: tr.state("carried", "f32", [slots, inner, state]) }),
  }
}

const refused = (fn: (tr: Trace) => void) => () =>
  trace("refused", (tr) => {
    fn(tr)
    return {}
  })

const wrongSizes: readonly (readonly [string, RegExp, (tr: Trace) => void])[] = [
  ["a state over 64", /state is 1 to 64, got 65/, (tr) => selectiveScan(scanInputs(tr, { state: 65, bands: 65 }))],
  ["bands that are no groups", /got 3 bands for state 2/, (tr) => selectiveScan(scanInputs(tr, { bands: 3 }))],
  ["groups that do not divide inner", /got 6 bands for state 2/, (tr) => selectiveScan(scanInputs(tr, { bands: 6 }))],
  [
    "saved states of other rows",
    /⌈rows\/64⌉ \+ segments = 3 chunks, got 2/,
    (tr) => selectiveScanGrad({ ...scanInputs(tr), saved: tr.input("saved", "f32", [2, inner, 2]) }),
  ],
  ...[1, 5].map(
    (width) =>
      [
        `a convolution of ${width} taps`,
        new RegExp(`width is 2 to 4, got ${width}`),
        (tr: Trace) => convolve(tr, width),
      ] as const,
  ),
  [
    "a tail that does not fit the width",
    /the 3 inputs before a segment, for width 4, got 2/,
    (tr) => convolve(tr, 4, 2),
  ],
  [
    "a tail that does not fit the gradient's width",
    /the 2 inputs before a segment, for width 3, got 3/,
    (tr) => {
      const { x, segments } = scanInputs(tr)
      const start = tr.input("start", "f32", [2, inner, 3])
      causalConvGrad({ x, segments, weight: tr.input("w", "f32", [inner, 1, 3]), start })
    },
  ],
]

function convolve(tr: Trace, width: number, tail?: number): void {
  const { x, segments } = scanInputs(tr)
  const initial = tail === undefined ? undefined : tr.input("initial", "f32", [2, inner, tail])
  causalConv({ x, segments, weight: tr.input("weight", "f32", [inner, 1, width]), initial })
}

for (const [title, message, fn] of wrongSizes) {
  test(`${title}: refused while tracing`, (t) => {
    t.like(t.throws(refused(fn), { message }), { code: "BAD_SHAPE" satisfies ErrorCode })
  })
}

const wrongSegments = {
  "rows past the end": [0, 7, 0, 0, 0, 0, 0, 0, 0, 0],
  "rows before the start": [-1, 3, 0, 0, 0, 0, 0, 0, 0, 0],
  "an end before its begin": [3, 2, 0, 0, 0, 0, 0, 0, 0, 0],
  "overlapping rows": [0, 4, 0, 0, 0, 3, 6, 0, 0, 0],
  "falling rows": [3, 6, 0, 0, 0, 0, 3, 0, 0, 0],
  "a slot past the last": [0, 3, 0, 3, 0, 3, 6, 0, 0, 0],
  "a slot below zero": [0, 3, 0, 0, -1, 3, 6, 0, 0, 0],
  "two segments that write one slot": [0, 3, 0, 0, 1, 3, 6, 0, 0, 1],
  "a slot read by one segment and written by another": [0, 3, 0, 1, 0, 3, 6, 0, 0, 1],
}

for (const [title, lines] of Object.entries(wrongSegments)) {
  test(`segments with ${title}: refused before the run, states untouched`, async (t) => {
    await using store = new Store(device)
    const program = await store.compile(trace("scan", (tr) => ({ y: selectiveScan(scanInputs(tr, { slots: 3 })).y })))
    const floats = (n: number) => new Float32Array(n).fill(1)
    const before = Float32Array.from({ length: 3 * inner * 2 }, (_, i) => i)
    await store.upload("state", { name: "carried", dtype: "f32", shape: [3, inner, 2] }, before)
    const given = { x: floats(24), delta: floats(24), A: floats(8), B: floats(12), C: floats(12) }
    const error = await t.throwsAsync(program.run({ ...given, segments: Int32Array.from(lines) }))
    t.like(error, { code: "BAD_INPUT" satisfies ErrorCode })
    t.deepEqual(new Float32Array((await store.download("state", "carried")).buffer), before)
  })
}
