import test from "ava"
import { familyOf, tensorsOf } from "../../lib/checkpoint/families.ts"
import { stepProgram } from "../../lib/generate/programs.ts"
import type { Program } from "../../lib/graph/program.ts"
import type { Value } from "../../lib/graph/value.ts"
import { allParameters, parameterCount } from "../../lib/layers/layer.ts"
import { Mamba } from "../../lib/layers/mamba.ts"
import { modelConfig } from "../../lib/models/config.ts"
import { initialWeights } from "../../lib/models/language-model.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { modelPreset } from "../../lib/models/presets.ts"
import { batchProgram, optimizerDefaults } from "../../lib/train/program.ts"
import { againstSnapshot } from "./snapshot.ts"

/** Exact sizes of the published models: Mamba's from its configurations, MambaByte's with tied heads and RMSNorm. */
const counts = {
  "mamba-130m": 129_135_360,
  "mamba-370m": 371_516_416,
  "mamba-790m": 793_204_224,
  "mamba-1.4b": 1_372_178_432,
  "mamba-2.8b": 2_768_345_600,
  "mambabyte-353m": 353_628_160,
  "mambabyte-972m": 973_387_520,
  "mambabyte-1.6b": 1_605_392_640,
} as const

for (const name of Object.keys(counts) as (keyof typeof counts)[]) {
  const model = new PatternModel(modelPreset(name))

  test(`${name} has the published number of parameters`, (t) => {
    t.is(parameterCount(model), counts[name])
  })

  test(`${name} has the tensors of its checkpoint, by name and shape`, (t) => {
    const ours = [...allParameters(model)].map(([name, { shape }]) => `${name} ${shape}`)
    const file = tensorsOf(familyOf(model.config, "original"), model.config)
    const theirs = file.filter(({ copyOf }) => copyOf === undefined)
    t.deepEqual(ours.sort(), theirs.map(({ fileName, shape }) => `${fileName} ${shape}`).sort())
  })

  test(`${name} traces to the program of its snapshot`, (t) => {
    const began = performance.now()
    const program = stepProgram(model, "next", { rows: 1, slots: 4, matrixDtype: "bf16", precision: "bf16" })
    t.log(`${program.nodes.length} nodes in ${(performance.now() - began).toFixed(1)} ms`)
    againstSnapshot(t, name, program.print())
  })
}

/** Every value of a program by the op and output that make it, or by its storage and name. */
function dtypesOf(program: Program): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>()
  const see = (key: string, { dtype }: Value) => found.set(key, (found.get(key) ?? new Set()).add(dtype))
  const used = new Set(program.values)
  for (const node of program.nodes)
    for (const [key, value] of Object.entries(node.outputs)) if (used.has(value)) see(`${node.op.name}.${key}`, value)
  for (const value of program.values) if (value.storage !== "temporary") see(value.storage, value)
  return found
}

const lists = (found: Map<string, Set<string>>, dtype: string) =>
  [...found].flatMap(([key, dtypes]) => (dtypes.has(dtype) ? [key] : [])).sort()

const tiny = new PatternModel(modelConfig({ dim: 8, layers: 2, vocab: 256, state: 4 }))
const halves = { precision: "bf16", activations: "bf16" } as const

test("with bf16 activations all that flows inside a block is bf16; the stream, statistics and logits are f32", (t) => {
  const program = stepProgram(tiny, "prompt", { rows: 4, slots: 4, matrixDtype: "bf16", ...halves })
  const found = dtypesOf(program)
  t.deepEqual(lists(found, "bf16"), [
    "causalConv.y",
    "gatherRows.y",
    "linear.y",
    "rmsNorm.y",
    "selectiveScan.y",
    "split.a",
    "split.b",
    "weight",
  ])
  t.deepEqual(lists(found, "f32"), [
    "embedding.y",
    "input",
    "linear.y",
    "negExp.y",
    "sample.logprobs",
    "state",
    "weight",
  ])
  // Linears in f32 are those that add to the stream, and the head.
  for (const { op, inputs, outputs, path } of program.nodes) {
    if (op.name !== "linear") continue
    const stream = inputs.residual !== undefined || path === ""
    t.is(outputs.y!.dtype, stream ? "f32" : "bf16", path)
    t.is(inputs.residual?.dtype ?? "f32", "f32", path)
  }
})

test("with bf16 activations the gradients of weights and of the stream are f32, and no others", (t) => {
  const shape = { batch: 2, length: 4, streams: 2, recompute: false, ...halves }
  const program = batchProgram(tiny, shape, "update", optimizerDefaults)
  const found = dtypesOf(program)
  t.deepEqual(
    lists(found, "bf16").filter((key) => key.includes("Grad")),
    ["causalConvGrad.dx", "linearCrossEntropyGrad.dx", "linearInputGrad.dx"].concat(
      ["dB", "dC", "ddelta", "dx", "dz"].map((key) => `selectiveScanGrad.${key}`),
    ),
  )
  t.deepEqual(
    lists(found, "f32").filter((key) => key.includes("Grad")),
    [
      "causalConvGrad.dbias",
      "causalConvGrad.dweight",
      "embeddingGrad.dweight",
      "linearCrossEntropyGrad.dweight",
    ].concat(
      ["linearWeightGrad.dweight", "rmsNormGrad.dweight", "rmsNormGrad.dx"],
      ["dA", "dD", "dbias"].map((key) => `selectiveScanGrad.${key}`),
    ),
  )
  t.deepEqual([...found.get("weight")!, ...found.get("training")!], ["f32", "f32"])
  t.is(program.nodes.filter(({ op }) => op.name === "cast").length, 0, "no rule gives another dtype than is wanted")
})

test("the programs of a tiny model with bf16 activations are those of their snapshots", (t) => {
  const step = stepProgram(tiny, "next", { rows: 1, slots: 4, matrixDtype: "bf16", ...halves })
  againstSnapshot(t, "tiny-bf16-next", step.print())
  const shape = { batch: 2, length: 4, streams: 2, recompute: false, ...halves }
  againstSnapshot(t, "tiny-bf16-train", batchProgram(tiny, shape, "overwrite", optimizerDefaults).print())
})

test("weights are drawn as in the paper's code", (t) => {
  const config = modelConfig({ dim: 64, layers: 4, vocab: 256 })
  const weights = initialWeights(new PatternModel(config), 1)
  const mixer = (name: string) => weights.get(`backbone.layers.2.mixer.${name}`)!
  t.deepEqual(
    [...mixer("A_log").slice(0, 16)],
    Array.from({ length: 16 }, (_, n) => Math.fround(Math.log(n + 1))),
  )
  t.true(mixer("D").every((value) => value === 1))
  const deviation = (values: Float32Array) =>
    Math.sqrt(values.reduce((total, value) => total + value * value, 0) / values.length)
  const close = (value: number, wanted: number) =>
    t.true(Math.abs(value / wanted - 1) < 0.05, `${value} against ${wanted}`)
  close(deviation(weights.get("backbone.embedding.weight")!), 0.02)
  close(deviation(mixer("in_proj.weight")), 1 / Math.sqrt(3 * 64))
  close(deviation(mixer("dt_proj.weight")), 1 / Math.sqrt(3 * 4))
  // Four residual branches: √4 smaller.
  close(deviation(mixer("out_proj.weight")), 1 / Math.sqrt(3 * 128) / 2)
  const steps = [...mixer("dt_proj.bias")].map((bias) => Math.log1p(Math.exp(bias)))
  t.true(
    steps.every((step) => step > 0.00099 && step < 0.1001),
    "softplus of the bias lies between 0.001 and 0.1",
  )
  const median = steps.sort((a, b) => a - b)[64]!
  t.true(median > 0.005 && median < 0.02, `log-uniform: the median ${median} is near 0.01`)
})

test("decay applies to matrices, not to A_log, D, biases and norms", (t) => {
  const parameters = allParameters(new PatternModel(modelConfig({ dim: 16, layers: 1, vocab: 256 })))
  const decayed = [...parameters].filter(([, { decay }]) => decay).map(([name]) => name.split(".").slice(-2).join("."))
  t.deepEqual(decayed.sort(), [
    "conv1d.weight",
    "dt_proj.weight",
    "embedding.weight",
    "in_proj.weight",
    "out_proj.weight",
    "x_proj.weight",
  ])
})

test("a model's weights do not depend on its other layers", (t) => {
  const weights = (layers: number) => initialWeights(new PatternModel(modelConfig({ dim: 16, layers, vocab: 256 })), 3)
  const name = "backbone.layers.1.mixer.in_proj.weight"
  t.deepEqual(weights(2).get(name), weights(5).get(name))
})

test("sizes that no kernel takes are refused when the layer is made", (t) => {
  t.like(
    t.throws(() => new Mamba({ dim: 16, state: 65 }), { message: /state is 1 to 64, got 65/ }),
    { code: "BAD_OPTION" },
  )
  t.like(
    t.throws(() => new Mamba({ dim: 16, conv: 5 }), { message: /2, 3 or 4 taps, got 5/ }),
    { code: "BAD_OPTION" },
  )
  t.like(
    t.throws(() => new Mamba({ dim: 0 }), { message: /dim/ }),
    { code: "BAD_OPTION" },
  )
  t.like(
    t.throws(() => modelPreset("mamba-130"), { message: /did you mean mamba-130m\?/ }),
    { code: "BAD_OPTION" },
  )
})
