import { embedding, embeddingGrad } from "../../lib/ops/embedding.ts"
import { device } from "../device.ts"
import { eightBits, scaled } from "./linear.ts"
import { bf16, ints, normal, type OpCase, type OpSpec, type Tensor64, values } from "./spec.ts"

/** Ids with a spare row among them. */
function withSpare(rows: number, vocab: number): Tensor64 {
  const ids = ints([rows], 3, 0, vocab)
  return values(
    "i32",
    [rows],
    ids.data.map((id, row) => (row % 5 === 3 ? -1 : id)),
  )
}
const sized = (rows: number, vocab: number, dim: number) => ({
  ids: withSpare(rows, vocab),
  weight: normal([vocab, dim], 2),
})
const cases: (OpCase & { inputs: { ids: Tensor64; weight: Tensor64 } })[] = [
  { title: "one row", inputs: sized(1, 3, 1) },
  { title: "2 rows of width 7", inputs: sized(2, 5, 7) },
  { title: "63 rows, bytes", inputs: sized(63, 256, 17) },
  { title: "64 rows", inputs: sized(64, 40, 16) },
  { title: "65 rows, more ids than rows", inputs: sized(65, 1000, 33) },
  {
    title: "one id in 331 rows, wider than a task",
    inputs: { ids: values("i32", [331], new Array(331).fill(1)), weight: normal([2, 300], 1) },
  },
  { title: "700 rows, ids beyond 16 bits", inputs: sized(700, 70_000, 2) },
  { title: "9000 bytes of width 1", inputs: sized(9000, 256, 1), replay: true },
  {
    title: "three ids in 700 rows",
    inputs: { ids: ints([700], 5, 0, 3), weight: normal([3, 5], 1) },
    replay: true,
  },
  { title: "spare rows alone", inputs: { ids: values("i32", [3], [-1, -1, -1]), weight: normal([4, 6], 1) } },
]

export const specs: OpSpec[] = [
  {
    op: embedding,
    reference: ({ ids, weight }: Record<string, Tensor64>) => {
      const dim = weight!.shape[1]!
      const y = Float64Array.from({ length: ids!.data.length * dim }, (_, i) => {
        const id = ids!.data[Math.floor(i / dim)]!
        return id < 0 ? 0 : weight!.data[id * dim + (i % dim)]!
      })
      return { y }
    },
    differentiable: ["weight"],
    cases: [
      ...cases,
      { title: "bf16 table", inputs: { ids: withSpare(9, 20), weight: bf16(normal([20, 37], 4)) } },
      { title: "16384 bytes", inputs: sized(16384, 256, 512), slow: true, bench: true },
    ],
  },
  {
    op: embedding,
    reference: ({ ids, weight, scales }: Record<string, Tensor64>) => {
      const [dim, table] = [weight!.shape[1]!, scaled(weight!, scales!)]
      const y = new Float64Array(ids!.data.length * dim)
      ids!.data.forEach((id, row) => {
        if (id >= 0) y.set(table.subarray(id * dim, (id + 1) * dim), row * dim)
      })
      return { y }
    },
    differentiable: [],
    cases: [
      { title: "8 bits", inputs: { ids: withSpare(9, 20), ...eightBits(20, 37) } },
      { title: "8 bits, rows of three groups", inputs: { ids: withSpare(70, 33), ...eightBits(33, 96) } },
    ].filter(() => device === "cpu"),
  },
  {
    op: embeddingGrad,
    reference: ({ dy, ids }: Record<string, Tensor64>, { vocab }: { vocab: number }) => {
      const dim = dy!.shape[1]!
      const dweight = new Float64Array(vocab * dim)
      ids!.data.forEach((id, row) => {
        for (let i = 0; i < dim && id >= 0; i++) dweight[id * dim + i]! += dy!.data[row * dim + i]!
      })
      return { dweight }
    },
    differentiable: [],
    cases: cases.map(({ inputs: { ids, weight }, ...one }) => ({
      ...one,
      inputs: { ids, dy: normal([ids.shape[0]!, weight.shape[1]!], 6) },
      attrs: { vocab: weight.shape[0]! },
    })),
  },
]
