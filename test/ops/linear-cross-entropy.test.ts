import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { linearCrossEntropyGrad } from "../../lib/ops/linear-cross-entropy.ts"
import { device } from "../device.ts"

// The CPU's; a GPU adds up f32 in blocks of rows.
const onTheCpu = device === "cpu" ? test : test.skip

onTheCpu("the gradient of a bias is as exact over 65,536 rows as over one", async (t) => {
  const [rows, vocab] = [65536, 5]
  await using store = new Store(device)
  const program = trace("bias", (tr) => {
    const x = tr.input("x", "f32", [rows, 1])
    const weight = tr.input("weight", "f32", [vocab, 1])
    const [dlosses, logsumexp] = [tr.input("dlosses", "f32", [rows]), tr.input("logsumexp", "f32", [rows])]
    const inputs = { x, weight, bias: tr.input("bias", "f32", [vocab]), targets: tr.input("targets", "i32", [rows]) }
    return { dbias: linearCrossEntropyGrad({ dlosses, ...inputs, logsumexp }).dbias }
  })
  // Logits are the bias, and every row's dlogits the same: a chain of f32 would round the same way row after row.
  const bias = Float32Array.from({ length: vocab }, (_, i) => i / 7)
  const logsumexp = Math.fround(Math.log(bias.reduce((sum, logit) => sum + Math.exp(logit), 0)))
  const { dbias } = await (await store.compile(program)).run({
    x: new Float32Array(rows),
    weight: new Float32Array(vocab),
    bias,
    targets: new Int32Array(rows).fill(vocab - 1),
    dlosses: new Float32Array(rows).fill(1 / rows),
    logsumexp: new Float32Array(rows).fill(logsumexp),
  })
  // A dlogit itself is f32, from an exponential of f32.
  for (let word = 0; word < vocab - 1; word++)
    t.true(Math.abs(dbias![word]! / Math.exp(bias[word]! - logsumexp) - 1) < 1e-6, `${dbias}`)
})
