/**
 * The gated MLPs as layers: their parameters, their result against f64, and what they refuse.
 */
import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { GatedMLP } from "../../lib/layers/gated-mlp.ts"
import { allParameters, apply, type Layer } from "../../lib/layers/layer.ts"
import { Random } from "../../lib/layers/random.ts"
import { SwiGLU } from "../../lib/layers/swiglu.ts"
import { Store } from "../../lib/native.ts"
import { device } from "../device.ts"
import { closeTo } from "../ops/harness.ts"
import { normal } from "../ops/spec.ts"

const [rows, dim, inner] = [5, 6, 10]
const llama = { gate: "gate_proj", up: "up_proj", down: "down_proj" }
const stream = normal([rows, dim], 1).data
const silu = (v: number) => v / (1 + Math.exp(-v))

const shapesOf = (layer: Layer) => [...allParameters(layer)].map(([name, { shape }]) => `${name} ${shape}`)

/** Every parameter of a layer, drawn from N(0, ¼). */
const weightsOf = (layer: Layer) =>
  [...allParameters(layer)].map(([name, { shape }], i) => [name, normal(shape, 10 + i, 0.5)] as const)

/** The program of x + layer(x). */
const programOf = (layer: Layer) =>
  trace("mlp", (t) => {
    const x = t.input("x", "f32", [rows, dim])
    const segments = t.input("segments", "i32", [1, 5])
    return { y: apply("mlp", layer, x, { segments, matrixDtype: "f32" }, x) }
  })

async function run(layer: Layer): Promise<Float32Array> {
  await using store = new Store(device)
  for (const [name, { shape, data }] of weightsOf(layer)) {
    await store.upload("weight", { name: `mlp.${name}`, dtype: "f32", shape }, Float32Array.from(data))
  }
  const executable = await store.compile(programOf(layer))
  return (await executable.run({ x: Float32Array.from(stream) })).y as Float32Array
}

/** x + down·(silu(gate·x) ⊙ up·x) + biases. */
function reference(parts: Record<"gate" | "up" | "down", (row: Float64Array) => number[]>): Float64Array {
  const y = Float64Array.from(stream)
  for (let row = 0; row < rows; row++) {
    const x = stream.subarray(row * dim, (row + 1) * dim)
    const [gate, up] = [parts.gate(x), parts.up(x)]
    const down = parts.down(Float64Array.from(gate, (value, i) => silu(value) * up[i]!))
    for (const [i, value] of down.entries()) y[row * dim + i]! += value
  }
  return y
}

/** x ↦ W·x + b for the named linear of a layer, rows [from, to) of W. */
function product(layer: Layer, name: string, from = 0, to = Number.POSITIVE_INFINITY) {
  const weights = new Map(weightsOf(layer))
  const { shape, data } = weights.get(`${name}.weight`)!
  const [outputs, inputs] = shape as [number, number]
  const bias = weights.get(`${name}.bias`)?.data
  return (x: Float64Array) =>
    Array.from({ length: Math.min(to, outputs) - from }, (_, i) =>
      x.reduce((sum, value, k) => sum + value * data[(from + i) * inputs + k]!, bias?.[from + i] ?? 0),
    )
}

test("SwiGLU has the parameters of its checkpoint, under SAMBA's names or those it is given", (t) => {
  t.deepEqual(shapesOf(new SwiGLU({ dim, inner })), ["w1.weight 10,6", "w2.weight 10,6", "w3.weight 6,10"])
  t.deepEqual(shapesOf(new SwiGLU({ dim, inner, names: llama, bias: true })), [
    "gate_proj.weight 10,6",
    "gate_proj.bias 10",
    "up_proj.weight 10,6",
    "up_proj.bias 10",
    "down_proj.weight 6,10",
    "down_proj.bias 6",
  ])
})

test("GatedMLP has the parameters of Mamba's code", (t) => {
  t.deepEqual(shapesOf(new GatedMLP({ dim, inner })), ["fc1.weight 20,6", "fc2.weight 6,10"])
})

for (const bias of [false, true]) {
  test(`SwiGLU is x + w3(silu(w1·x) ⊙ w2·x), bias ${bias}`, async (t) => {
    const layer = new SwiGLU({ dim, inner, bias })
    const want = reference({
      gate: product(layer, "w1"),
      up: product(layer, "w2"),
      down: product(layer, "w3"),
    })
    closeTo(t, "y", await run(layer), want, 1e-4)
  })

  test(`GatedMLP is x + fc2(value ⊙ silu(gate)), the gate being the second half, bias ${bias}`, async (t) => {
    const layer = new GatedMLP({ dim, inner, bias })
    const want = reference({
      gate: product(layer, "fc1", inner),
      up: product(layer, "fc1", 0, inner),
      down: product(layer, "fc2"),
    })
    closeTo(t, "y", await run(layer), want, 1e-4)
  })
}

test("the residual is added in the last linear, by no op of its own", (t) => {
  const names = (layer: Layer) => programOf(layer).nodes.map(({ op }) => op.name)
  t.deepEqual(names(new SwiGLU({ dim, inner })), ["linear", "linear", "swiglu", "linear"])
  t.deepEqual(names(new GatedMLP({ dim, inner })), ["linear", "split", "swiglu", "linear"])
})

test("the last linear starts smaller by the square root of the model's branches", (t) => {
  const drawn = (layer: Layer, name: string) => {
    const { shape, init } = allParameters(layer).get(name)!
    return init(shape, new Random(7))
  }
  for (const [make, name] of [
    [(branches: number) => new SwiGLU({ dim, inner, branches }), "w3.weight"],
    [(branches: number) => new GatedMLP({ dim, inner, branches }), "fc2.weight"],
  ] as const) {
    const [one, four] = [drawn(make(1), name), drawn(make(4), name)]
    t.true(one.every((value, i) => Math.abs(value - 2 * four[i]!) < 1e-6 && Math.abs(value) <= 1 / Math.sqrt(inner)))
  }
})

test("sizes and names that cannot be are refused in a sentence", (t) => {
  for (const [make, message] of [
    [() => new SwiGLU({ dim: 0, inner }), "SwiGLU: dim is a whole number of at least 1, got 0"],
    [() => new SwiGLU({ dim, inner: 2.5 }), "SwiGLU: inner is a whole number of at least 1, got 2.5"],
    [() => new GatedMLP({ dim, inner, branches: -1 }), "GatedMLP: branches is a whole number of at least 1, got -1"],
    [
      () => new SwiGLU({ dim, inner, names: { ...llama, up: "gate_proj" } }),
      "SwiGLU: names are of three linears, got gate_proj, gate_proj, down_proj; no two are the same",
    ],
  ] as const) {
    t.throws(make, { code: "BAD_OPTION", message })
  }
})
