/**
 * On a GPU a channel of the scan lies in more or fewer lanes of a warp, by how many channels and sequences there are to fill the
 * chip: the bits of a channel must not tell.
 */
import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { cast } from "../../lib/ops/cast.ts"
import { selectiveScan } from "../../lib/ops/selective-scan.ts"
import { device, storesBf16 } from "../device.ts"
import { normal, segmentsOf, type Tensor64, uniform } from "./spec.ts"

const rows = 45
const kept = 7 // channels that every width has in common
const lines = segmentsOf([0, 41], [42, 45])

/** Tensors of `inner` channels whose first ones are the same for every `inner`: columns, or rows, are made one by one. */
const columns = (inner: number, seed: number) => {
  const all = new Float32Array(rows * inner)
  const common = normal([rows, kept], seed).data
  const others = normal([rows], seed + 1).data
  for (let t = 0; t < rows; t++) {
    for (let d = 0; d < inner; d++) all[t * inner + d] = d < kept ? common[t * kept + d]! : others[t]!
  }
  return all
}
const repeated = ({ data }: Tensor64, size: number) =>
  Float32Array.from({ length: size }, (_, i) => data[i % data.length]!)

async function scan(inner: number, state: number, dtype: "f32" | "bf16"): Promise<Record<string, Float32Array>> {
  await using store = new Store(device)
  const program = await store.compile(
    trace("scan", (tr) => {
      const input = (name: string, ...shape: number[]) => tr.input(name, "f32", shape)
      const activation = (name: string, size: number) => cast({ x: input(name, rows, size) }, { dtype }).y
      const { y, final } = selectiveScan({
        x: activation("x", inner),
        delta: activation("delta", inner),
        A: input("A", inner, state),
        B: activation("B", state),
        C: activation("C", state),
        D: input("D", inner),
        z: activation("z", inner),
        bias: input("bias", inner),
        segments: tr.input("segments", "i32", [2, 5]),
      })
      return { y: cast({ x: y }, { dtype: "f32" }).y, final }
    }),
  )
  const floats = ({ data }: Tensor64) => Float32Array.from(data)
  const { y, final } = await program.run({
    x: columns(inner, 1),
    delta: columns(inner, 3),
    z: columns(inner, 5),
    A: repeated(uniform([kept, state], 7, -3, -0.01), inner * state),
    D: repeated(normal([kept], 8), inner),
    bias: repeated(normal([kept], 9), inner),
    B: floats(normal([rows, state], 10)),
    C: floats(normal([rows, state], 11)),
    segments: Int32Array.from(lines.data),
  })
  const first = (all: Float32Array, width: number) => all.filter((_, i) => i % width < (width / inner) * kept)
  return { y: first(y as Float32Array, inner), final: first(final as Float32Array, inner * state) }
}

for (const dtype of storesBf16 ? (["f32", "bf16"] as const) : (["f32"] as const)) {
  for (const state of [3, 16, 20, 50]) {
    test(`a channel of state ${state} has the same bits beside 6, 4300 and 8500 others, ${dtype}`, async (t) => {
      const few = await scan(kept, state, dtype)
      t.true(few.y!.some((value) => value !== 0))
      t.deepEqual(await scan(4304, state, dtype), few)
      t.deepEqual(await scan(8501, state, dtype), few)
    })
  }
}
