import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { allParameters, apply } from "../../lib/layers/layer.ts"
import { LayerNorm } from "../../lib/layers/layer-norm.ts"
import { Random } from "../../lib/layers/random.ts"

test("LayerNorm has a weight of ones and, unless it is told otherwise, a bias of zeros", (t) => {
  const drawn = (layer: LayerNorm) =>
    [...allParameters(layer)].map(([name, { shape, init, decay }]) => [name, [...init(shape, new Random(1))], decay])
  t.deepEqual(drawn(new LayerNorm({ dim: 3 })), [
    ["weight", [1, 1, 1], false],
    ["bias", [0, 0, 0], false],
  ])
  t.deepEqual(drawn(new LayerNorm({ dim: 2, bias: false })), [["weight", [1, 1], false]])
})

test("LayerNorm is one op, of the trace's dtype of activations", (t) => {
  const program = trace(
    "norm",
    (tr) => {
      const x = tr.input("x", "f32", [4, 8])
      const rows = { segments: tr.input("segments", "i32", [1, 5]), matrixDtype: "bf16" } as const
      return { y: apply("ln_1", new LayerNorm({ dim: 8, eps: 1e-6 }), x, rows) }
    },
    { activations: "bf16" },
  )
  t.deepEqual(
    program.nodes.map(({ op, path, attrs }) => [op.name, path, attrs]),
    [["layerNorm", "ln_1", { eps: 1e-6, dtype: "bf16" }]],
  )
  t.is(program.outputs.y!.dtype, "bf16")
})

test("LayerNorm refuses a size that cannot be", (t) => {
  t.throws(() => new LayerNorm({ dim: -1 }), {
    code: "BAD_OPTION",
    message: "LayerNorm: dim is a whole number of at least 1, got -1",
  })
})
