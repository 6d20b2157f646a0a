/**
 * Gated linear attention and retention as layers: their parameters, their result against f64, a session's steps, and what they refuse.
 */
import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { GatedLinearAttention } from "../../lib/layers/gated-linear-attention.ts"
import { allParameters, apply, type Layer, parameterCount } from "../../lib/layers/layer.ts"
import { Random } from "../../lib/layers/random.ts"
import { Retention } from "../../lib/layers/retention.ts"
import { Store } from "../../lib/native.ts"
import { device } from "../device.ts"
import { closeTo } from "../ops/harness.ts"
import { normal } from "../ops/spec.ts"

const [rows, dim, heads] = [21, 12, 3]
const stream = normal([rows, dim], 1).data
const sigmoid = (v: number) => 1 / (1 + Math.exp(-v))
const gla = () => new GatedLinearAttention({ dim, heads, gateRank: 5 })
const retention = () => new Retention({ dim, heads })

/** Every parameter of a layer, drawn from N(0, ¼). */
const weightsOf = (layer: Layer) =>
  new Map([...allParameters(layer)].map(([name, { shape }], i) => [name, normal(shape, 10 + i, 0.5)] as const))

/** x + layer(x) for rows that continue slot 1, of a store that has the layer's weights. */
async function stepper(layer: Layer) {
  const store = new Store(device)
  for (const [name, { shape, data }] of weightsOf(layer)) {
    await store.upload("weight", { name: `mixer.${name}`, dtype: "f32", shape }, Float32Array.from(data))
  }
  return async (begin: number, end: number): Promise<Float32Array> => {
    const program = trace("mixer", (t) => {
      const x = t.input("x", "f32", [end - begin, dim])
      const segments = t.input("segments", "i32", [1, 5])
      return { y: apply("mixer", layer, x, { segments, slots: 3, matrixDtype: "f32" }, x) }
    })
    const x = Float32Array.from(stream.subarray(begin * dim, end * dim))
    const segments = Int32Array.of(0, end - begin, begin, begin === 0 ? 0 : 1, 1)
    return (await (await store.compile(program)).run({ x, segments })).y as Float32Array
  }
}

/** What a layer computes, row by row; `decay` and `turn` are what the two differ in. */
function reference(
  layer: GatedLinearAttention | Retention,
  decay: (x: Float64Array, head: number, n: number) => number,
  turn: (row: number[], position: number) => number[],
): Float64Array {
  const { keys, values } = layer
  const [key, value] = [keys / heads, values / heads]
  const S = new Float64Array(heads * key * value)
  const gain = weightsOf(layer).get("g_norm_swish_gate.weight")!.data
  const y = Float64Array.from(stream)
  for (let t = 0; t < rows; t++) {
    const x = stream.subarray(t * dim, (t + 1) * dim)
    const [q, k] = [turn(apply64(layer, "q_proj", x), t), turn(apply64(layer, "k_proj", x), t)]
    const [v, gate] = [apply64(layer, "v_proj", x), apply64(layer, "g_proj", x)]
    const mixed: number[] = []
    for (let h = 0; h < heads; h++) {
      const out = new Array<number>(value).fill(0)
      for (let n = 0; n < key; n++) {
        for (let d = 0; d < value; d++) {
          const i = (h * key + n) * value + d
          S[i] = decay(x, h, n) * S[i]! + k[h * key + n]! * v[h * value + d]!
          out[d]! += (q[h * key + n]! * S[i]!) / Math.sqrt(key)
        }
      }
      const rms = Math.sqrt(out.reduce((sum, o) => sum + o * o, 0) / value + 1e-5)
      const gates = gate.slice(h * value, (h + 1) * value)
      mixed.push(...out.map((o, d) => (o / rms) * gain[d]! * gates[d]! * sigmoid(gates[d]!)))
    }
    for (const [i, out] of apply64(layer, "o_proj", mixed).entries()) y[t * dim + i]! += out
  }
  return y
}

/** W·x + b for the named linear of a layer. */
function apply64(layer: Layer, name: string, x: ArrayLike<number>): number[] {
  const weights = weightsOf(layer)
  const { shape, data } = weights.get(`${name}.weight`)!
  const [outputs, inputs] = shape as [number, number]
  const bias = weights.get(`${name}.bias`)?.data
  return Array.from({ length: outputs }, (_, i) => {
    let sum = bias?.[i] ?? 0
    for (let n = 0; n < inputs; n++) sum += data[i * inputs + n]! * x[n]!
    return sum
  })
}

/** Pairs half a head apart turn by position·10000^(−2i/headDim). */
function rotate(row: number[], position: number): number[] {
  const [size, half] = [row.length / heads, row.length / heads / 2]
  return row.map((value, i) => {
    const [pair, second] = [(i % size) % half, i % size >= half]
    const angle = position * 10000 ** (-pair / half)
    const other = row[second ? i - half : i + half]!
    return value * Math.cos(angle) + (second ? 1 : -1) * other * Math.sin(angle)
  })
}

const wanted = {
  gla: () => {
    const layer = gla()
    const key = layer.keys / heads
    const logs = (x: Float64Array) => apply64(layer, "gk_proj.1", apply64(layer, "gk_proj.0", x))
    return reference(
      layer,
      (x, h, n) => sigmoid(logs(x)[h * key + n]!) ** (1 / 16),
      (row) => row,
    )
  },
  retention: () => reference(retention(), (_, h) => 1 - 2 ** (-5 - h), rotate),
}

for (const [name, make] of [
  ["gla", gla],
  ["retention", retention],
] as const) {
  test(`${name} is its equations, row by row in f64`, async (t) => {
    const step = await stepper(make())
    closeTo(t, "y", await step(0, rows), wanted[name](), 1e-4)
  })

  test(`${name} has the same bits in one call and in pieces`, async (t) => {
    const step = await stepper(make())
    const whole = await step(0, rows)
    const pieces = [await step(0, 3), await step(3, 15), await step(15, 16), await step(16, 17), await step(17, rows)]
    t.deepEqual(Float32Array.from(pieces.flatMap((piece) => [...piece])), whole)
  })
}

const shapesOf = (layer: Layer) => [...allParameters(layer)].map(([name, { shape }]) => `${name} ${shape}`)

test("GatedLinearAttention has the parameters of SAMBA's code", (t) => {
  const layer = new GatedLinearAttention({ dim: 1536 })
  t.is(layer.sizes.heads, 4)
  t.deepEqual(shapesOf(layer), [
    "g_norm_swish_gate.weight 384",
    "gk_proj.1.weight 768,16",
    "gk_proj.1.bias 768",
    "q_proj.weight 768,1536",
    "k_proj.weight 768,1536",
    "v_proj.weight 1536,1536",
    "g_proj.weight 1536,1536",
    "o_proj.weight 1536,1536",
    "gk_proj.0.weight 16,1536",
  ])
  t.is(parameterCount(layer), 4 * 1536 ** 2 + 16 * (1536 + 768) + 768 + 384)
})

test("Retention has the parameters of SAMBA's code", (t) => {
  const layer = new Retention({ dim: 1536, heads: 6 })
  t.deepEqual(shapesOf(layer), [
    "g_norm_swish_gate.weight 512",
    "q_proj.weight 1536,1536",
    "k_proj.weight 1536,1536",
    "v_proj.weight 3072,1536",
    "g_proj.weight 3072,1536",
    "o_proj.weight 1536,3072",
  ])
  t.is(parameterCount(layer), 8 * 1536 ** 2 + 512)
})

test("projections start as Xavier's with a small gain, the last one smaller by the square root of the model's branches", (t) => {
  for (const make of [
    (branches: number) => new GatedLinearAttention({ dim: 48, heads: 2, branches }),
    (branches: number) => new Retention({ dim: 48, heads: 2, branches }),
  ]) {
    const drawn = (layer: Layer, name: string) => {
      const { shape, init } = allParameters(layer).get(name)!
      return init(shape, new Random(7))
    }
    const most = (values: Float32Array) => values.reduce((all, value) => Math.max(all, Math.abs(value)), 0)
    const bound = (inputs: number, outputs: number) => 2 ** -2.5 * Math.sqrt(6 / (inputs + outputs))
    const { keys, values } = make(1)
    for (const [name, size] of [
      ["q_proj.weight", bound(48, keys)],
      ["o_proj.weight", bound(values, 48)],
    ] as const) {
      const got = most(drawn(make(1), name))
      t.true(got <= size && got > 0.95 * size, `${name}: ${got} of ${size}`)
    }
    t.true(Math.abs(most(drawn(make(1), "o_proj.weight")) - 2 * most(drawn(make(4), "o_proj.weight"))) < 1e-6)
  }
})

test("sizes that cannot be are refused in a sentence", (t) => {
  for (const [make, message] of [
    [() => new GatedLinearAttention({ dim: 0 }), /^GatedLinearAttention: dim is a whole number of at least 1, got 0/],
    [
      () => new GatedLinearAttention({ dim, heads: 5 }),
      /^GatedLinearAttention: dim·expandK is divided by heads .* got 6 for 5/,
    ],
    [
      () => new GatedLinearAttention({ dim: 1024, heads: 1, expandV: 0.125 }),
      /expandK .* 1 to 256 columns each, got 512 for 1/,
    ],
    [() => new GatedLinearAttention({ dim, heads, gateRank: 0 }), /gateRank is a whole number of at least 1, got 0/],
    [() => new GatedLinearAttention({ dim, heads, expandK: Number.NaN }), /expandK is above 0, got NaN/],
    [() => new Retention({ dim, heads: 4 }), /^Retention: keys of a head turn in pairs, got 3/],
    [() => new Retention({ dim, heads, eps: 0 }), /^Retention: eps is above 0, got 0/],
    [
      () => new Retention({ dim, heads, branches: 1.5 }),
      /^Retention: branches is a whole number of at least 1, got 1.5/,
    ],
  ] as const) {
    t.throws(make, { code: "BAD_OPTION", message } as object)
  }
})
