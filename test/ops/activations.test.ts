/**
 * Activations in bf16: which op's outputs are what, and that the cpu, which keeps all of them in f32, refuses each kernel in
 * one sentence.
 */
import { readdirSync } from "node:fs"
import test from "ava"
import { registeredOps } from "../../lib/graph/op.ts"
import { trace } from "../../lib/graph/program.ts"
import type { Value } from "../../lib/graph/value.ts"
import { Store } from "../../lib/native.ts"

const folder = new URL("../../lib/ops/", import.meta.url)
const exported: Record<string, unknown> = {}
for (const file of readdirSync(folder)) {
  if (file.endsWith(".ts")) Object.assign(exported, await import(new URL(file, folder).href))
}
type AnyCall = (inputs: Record<string, Value>, attrs?: Record<string, unknown>) => Record<string, Value>

/** Sizes that fit every op at once; what a signature leaves open is 4. */
const sizes: Record<string, number> = {
  inner: 4,
  state: 2,
  bands: 2,
  half: 2,
  width: 4,
  tail: 3,
  left: 3,
  right: 1,
  chunks: 3,
  heads: 1,
  matrices: 1,
  sequences: 2,
  saves: 3,
  lines: 15,
  columns: 12,
  packed: 12,
  kv: 1,
  capacity: 64,
}
/** Attributes that an op does not work without. */
const attrs: Record<string, Record<string, unknown>> = {
  split: { first: 3 },
  concat: { first: 3, second: 1 },
  scatterRows: { rows: 4 },
  rope: { headDim: 4 },
  slidingAttention: { headDim: 4 },
  slidingAttentionGrad: { headDim: 4 },
  fold: { width: 8 },
}
/** Inputs that are given instead of others. */
const without: Record<string, readonly string[]> = {
  linearAttention: ["initial"],
  linear: ["scales"],
  linearCrossEntropy: ["scales"],
}
/** What an op stores; a ring has the dtype of the precision. */
const states: Record<string, "state" | "ring"> = { carried: "state", tail: "state", keys: "ring", values: "ring" }
const shapeOf = (dims: readonly string[]) =>
  dims.flatMap((dim) =>
    dim === "..." ? [4, 4] : [/^\d+$/.test(dim) ? Number(dim) : (sizes[dim] ?? (dim === "segments" ? 2 : 4))],
  )

/** Every op that takes an activation, with the names of those it takes. */
const taking = [...registeredOps()].flatMap(([name, { inputs }]) => {
  const keys = Object.entries(inputs as Record<string, string>).filter(
    ([key, signature]) => signature.startsWith("float") && key !== "weight" && states[key.replace("?", "")] !== "ring",
  )
  return keys.length > 0 && name !== "cast" ? [[name, keys.map(([key]) => key.replace("?", ""))] as const] : []
})

function programOf(name: string, bf16: readonly string[], more: Record<string, unknown> = {}) {
  return trace(name, (tr) => {
    const signature = registeredOps().get(name)!.inputs as Record<string, string>
    const given = Object.entries(signature).filter(([key]) => !without[name]?.includes(key.replace("?", "")))
    const inputs = given.map(([key, text]) => {
      const [first = "", ...rest] = text.split(" ")
      const dims = ["float", "matrix", "i32"].includes(first) ? rest : text.split(" ").filter((word) => word !== "")
      const plain = key.replace("?", "")
      const dtype = first === "i32" ? "i32" : bf16.includes(plain) ? "bf16" : "f32"
      const storage = states[plain] ?? "input"
      return [plain, tr[storage](plain, dtype, shapeOf(dims))] as const
    })
    return (exported[name] as AnyCall)(Object.fromEntries(inputs), { ...attrs[name], ...more })
  })
}

test("the ops that take activations are those of a model's layers", (t) => {
  t.true(taking.length >= 20, `${taking.length} ops take activations`)
})

for (const [name, keys] of taking) {
  test(`${name}: the cpu refuses bf16 activations in a sentence`, async (t) => {
    await using store = new Store("cpu")
    await t.notThrowsAsync(store.compile(programOf(name, [])), "f32 activations are taken")
    for (const key of keys) {
      const error = await t.throwsAsync(store.compile(programOf(name, [key])))
      t.like(error, { code: "BAD_SHAPE" })
      t.regex(error!.message, new RegExp(`${name}: .*f32 .*got bf16 \\[`), `${key} in bf16`)
    }
  })
}

for (const name of ["linear", "linearInputGrad", "rmsNorm", "layerNorm"]) {
  test(`${name}: the cpu refuses to give bf16`, async (t) => {
    await using store = new Store("cpu")
    const error = await t.throwsAsync(store.compile(programOf(name, [], { dtype: "bf16" })))
    t.like(error, { code: "BAD_SHAPE" })
    t.regex(error!.message, /output 0 is f32 .*got bf16 \[/)
  })
}

test("statistics, weights' gradients and reductions are f32 whatever the activations are", (t) => {
  const f32: Record<string, readonly string[]> = {
    rmsNorm: ["sum", "rstd"],
    rmsNormGrad: ["dx", "dweight", "dbias"],
    layerNorm: ["sum", "mean", "rstd"],
    layerNormGrad: ["dx", "dweight", "dbias"],
    linearWeightGrad: ["dweight"],
    linearCrossEntropy: ["losses", "logsumexp"],
    linearCrossEntropyGrad: ["dweight", "dbias"],
    causalConv: ["final", "start"],
    causalConvGrad: ["dweight", "dbias", "dinitial"],
    selectiveScan: ["final", "saved"],
    selectiveScanGrad: ["dA", "dD", "dbias", "dinitial"],
    slidingAttention: ["lse"],
    gatedHeadNorm: ["rstd"],
    gatedHeadNormGrad: ["dweight"],
    linearAttention: ["final", "saved"],
    linearAttentionGrad: ["dinitial"],
    sum: ["y"],
    sumSquares: ["y"],
    sumRows: ["y"],
    broadcastLike: ["y"],
  }
  for (const [name, keys] of taking) {
    for (const [key, { dtype }] of Object.entries(programOf(name, keys).outputs)) {
      t.is(dtype, f32[name]?.includes(key) ? "f32" : "bf16", `${name}: ${key}`)
    }
  }
})
