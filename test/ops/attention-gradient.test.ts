import test from "ava"
import { gradients } from "../../lib/graph/gradient.ts"
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { slidingAttention } from "../../lib/ops/attention.ts"
import { arithmetic } from "../../lib/ops/cast.ts"
import { device } from "../device.ts"
import { normal } from "./spec.ts"

for (const precision of ["f32", "bf16"] as const) {
  // ds = p·(dp − D) with p = 1 and y = v: whatever rounds dy must do so in dp and in D, or dq has the difference times k.
  test(`the gradient of q is zero where a row sees its own key alone, ${precision}`, async (t) => {
    const [rows, heads] = [40, 2]
    const program = trace("one key", (tr) => {
      const qkv = tr.input("qkv", "f32", [rows, heads + 2])
      const segments = tr.input("segments", "i32", [1, 5])
      const { y } = slidingAttention({ qkv, segments }, { heads, kvHeads: 1, headDim: 1, window: 1, precision })
      return { dqkv: gradients([[y, tr.input("dy", "f32", y.shape)]], [qkv], arithmetic)[0]! }
    })
    await using store = new Store(device)
    const { dqkv } = await (await store.compile(program)).run({
      qkv: Float32Array.from(normal([rows, heads + 2], 1).data, (value) => value + 3),
      segments: Int32Array.of(0, rows, 0, 0, 0),
      dy: Float32Array.from(normal([rows, heads], 2).data),
    })
    const ofQ = (dqkv as Float32Array).filter((_, i) => i % (heads + 2) < heads)
    // f32: the same products in the same order. bf16: p is a rounded exponential near 1; with another dy in D it is 0.08.
    const worst = Math.max(...ofQ.map(Math.abs))
    t.true(worst <= (precision === "f32" ? 0 : 1e-4), `${worst}`)
  })
}
