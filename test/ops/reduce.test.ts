import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { Store, setThreads } from "../../lib/native.ts"
import { adamW } from "../../lib/ops/adam-w.ts"
import { rmsNorm, rmsNormGrad } from "../../lib/ops/norm.ts"
import { sum, sumRows, sumSquares } from "../../lib/ops/reduce.ts"
import { device } from "../device.ts"
import { normal } from "./spec.ts"

test.serial("sums, norms and steps have the same bits for any number of threads", async (t) => {
  await using store = new Store(device)
  const [rows, dim] = [301, 77]
  const executable = await store.compile(
    trace("threads", (tr) => {
      const x = tr.input("x", "f32", [rows, dim])
      const dy = tr.input("dy", "f32", [rows, dim])
      const weight = tr.input("weight", "f32", [dim])
      const { y, rstd } = rmsNorm({ x, weight })
      const { dx, dweight, dbias } = rmsNormGrad({ dy, x, weight, rstd })
      const [m, v, param] = ["m", "v", "param"].map((name) => tr.training(name, "f32", [rows, dim]))
      const scalar = sum({ x: weight }).y
      adamW({ param: param!, grad: dx, m: m!, v: v!, rate: scalar, step: tr.input("step", "f32", []), clip: scalar })
      return { y, dx, dweight, dbias, sum: sum({ x }).y, squares: sumSquares({ x }).y, rows: sumRows({ x }).y }
    }),
  )
  const floats = (shape: readonly number[], seed: number) => Float32Array.from(normal(shape, seed).data)
  const inputs = {
    x: floats([rows, dim], 1),
    dy: floats([rows, dim], 2),
    weight: floats([dim], 3),
    step: Float32Array.of(1),
  }
  const reset = { dtype: "f32", shape: [rows, dim] } as const
  const results = []
  try {
    for (const threads of [1, 2, 5]) {
      await setThreads(threads)
      for (const name of ["m", "v", "param"])
        await store.upload("training", { name, ...reset }, new Float32Array(rows * dim))
      results.push({ ...(await executable.run(inputs)), param: await store.download("training", "param") })
    }
  } finally {
    await setThreads(0)
  }
  t.deepEqual(results[1], results[0])
  t.deepEqual(results[2], results[0])
})
