/**
 * The public types, as users write them: what holds, and what must not compile.
 */
import { expectAssignable, expectError, expectNotAssignable, expectType } from "tsd"
import {
  type AddonReport,
  addonReport,
  apply,
  type Device,
  devices,
  type Executable,
  load,
  Mamba,
  type Memory,
  type Model,
  modelConfig,
  type modelPreset,
  op,
  ops,
  PatternModel,
  type Program,
  parameterCount,
  SelscanError,
  type Session,
  Store,
  setThreads,
  type Token,
  type TrainEvent,
  type TrainOptions,
  trace,
  train,
  type Value,
} from "../dist/index.js"

// Models and sessions.
expectType<Promise<Model>>(load("demo"))
expectType<Promise<Model>>(load("demo", { device: "cuda:1", precision: "bf16", sessions: 4 }))
expectError(load())
expectError(load("demo", { devise: "cpu" }))
expectError(load("demo", { device: "gpu" }))
expectError(load("demo", { precision: "f16" }))

const model = await load("demo")
expectType<AsyncGenerator<string>>(
  model.generate("x", { maxTokens: 3, temperature: 0.8, stop: ["a", "b"], signal: AbortSignal.timeout(1) }),
)
expectType<AsyncGenerator<number>>(model.generateBytes(new Uint8Array([1])))
expectError(model.generate("x", { maxTokens: "3" }))
expectError(model.generateBytes("x", { stop: "a" }))
expectType<Promise<number>>(model.bitsPerByte("x"))
expectAssignable<AsyncDisposable>(model)

const session = model.session()
expectType<Session>(session)
expectType<Promise<void>>(session.append("x"))
expectType<AsyncGenerator<string>>(session.generate(undefined, { stop: "." }))
expectType<AsyncGenerator<Token>>(session.tokens("x"))
expectAssignable<Disposable>(session)

// Training: events are told apart by their type.
expectType<AsyncGenerator<TrainEvent>>(train({ files: ["book.txt"], out: "run", model: { dim: 64, layers: 2 } }))
expectError(train({ files: "book.txt", out: "run" }))
expectError(train({ out: "run" }))
expectNotAssignable<TrainOptions>({ files: [], out: "run", model: { dim: "64", layers: 2 } })
for await (const event of train({ files: ["book.txt"], out: "run" })) {
  if (event.type === "step") expectType<number>(event.secondsLeft)
  if (event.type === "validation") expectType<number>(event.bitsPerByte)
  if (event.type === "saved") expectType<string>(event.path)
  expectError(event.path)
}

// Configurations.
const config = modelConfig({
  dim: 192,
  vocab: 256,
  layers: 12,
  pattern: ["mamba", "swiglu", "sliding", "swiglu"],
  window: 64,
})
expectType<number>(parameterCount(new PatternModel(config)))
expectError(modelConfig({ dim: 192, layers: 12 }))
expectError(modelConfig({ dim: 192, vocab: 256, layers: 12, pattern: ["mambo"] }))
expectAssignable<Parameters<typeof modelPreset>[0]>("samba-421m")

// The graph: an op's signature decides its arguments and results.
const program = trace("block", (t) => {
  const x = t.input("x", "f32", [128, 64])
  expectType<Value>(x)
  const rows = { segments: t.input("segments", "i32", [1, 5]), matrixDtype: "f32" } as const
  expectError(t.input("x", "f64", [1]))
  return { y: apply("mixer", new Mamba({ dim: 64 }), x, rows) }
})
expectType<Program>(program)
const weight = {} as Value
expectType<Value>(ops.rmsNorm({ x: weight, weight }, { eps: 1e-6 }).y)
expectError(ops.linear({ x: weight }))
expectError(ops.rmsNorm({ x: weight, weights: weight }))
expectError(ops.rmsNorm({ x: weight, weight }, { eps: "small" }))
expectError(ops.rmsNorm({ x: weight, weight }).z)
const twice = op({
  name: "twice",
  inputs: { x: "rows", "y?": "rows" },
  outputs: { z: "rows" },
  attrs: { by: 2 },
  grad: null,
})
expectType<Value>(twice({ x: weight }, { by: 3 }).z)
expectError(twice({ y: weight }))

// Devices and programs of one's own.
expectAssignable<Device>("cuda:7")
expectNotAssignable<Device>("cuda:one")
expectType<string>(devices()[0]!.name)
expectType<Promise<number>>(setThreads(2))
const store = new Store("cpu")
expectType<Promise<Executable>>(store.compile(program))
expectType<Promise<Memory>>(store.memory())
expectError(store.upload("temporary", { name: "x", dtype: "f32", shape: [1] }, new Float32Array(1)))
expectType<AddonReport>(addonReport())
expectType<"in use" | "not needed" | "absent" | "refused">(addonReport().candidates[0]!.state)

// Errors.
const error = new SelscanError("BAD_OPTION", "where: what")
expectAssignable<Error>(error)
expectNotAssignable<typeof error.code>("TYPO")
