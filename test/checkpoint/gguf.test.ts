import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { basename, join } from "node:path"
import { gguf } from "@huggingface/gguf"
import test from "ava"
import { convert } from "../../lib/checkpoint/convert.ts"
import { fromF32 } from "../../lib/checkpoint/dtypes.ts"
import type { AnyConfig } from "../../lib/checkpoint/family.ts"
import { type GgufMetadata, type GgufTensor, writeGguf } from "../../lib/checkpoint/gguf.ts"
import { ggufMamba } from "../../lib/checkpoint/gguf-mamba.ts"
import { type MambaBlock, type ModelConfig, modelConfig, sambaPattern } from "../../lib/models/config.ts"
import { temporaryFolder } from "./helpers.ts"
import { mamba, writeModel } from "./model-folder.ts"

const folder = temporaryFolder()
let files = 0
const newPath = () => join(folder, `${files++}.gguf`)

/** Keys and tensors of a file, as another library reads them, with the bytes of each tensor. */
async function parse(path: string) {
  const { metadata, tensorInfos, tensorDataOffset } = await gguf(path, { allowLocalFile: true })
  const bytes = readFileSync(path)
  const size = { 0: 4, 1: 2, 30: 2 } as Record<number, number>
  const tensors = tensorInfos.map(({ name, shape, dtype, offset }) => {
    const start = Number(tensorDataOffset + offset)
    const elements = shape.reduce((product, dim) => product * Number(dim), 1)
    const data = new Uint8Array(bytes.subarray(start, start + elements * size[dtype]!))
    return { name, shape: shape.map(Number), dtype: dtype as number, start, data }
  })
  return { metadata: metadata as unknown as Record<string, unknown>, tensors, bytes: bytes.length }
}

const floats = (data: Uint8Array) => Array.from(new Float32Array(data.buffer))

test("keys of every type and tensors of every dtype are read as they were written", async (t) => {
  const path = newPath()
  const metadata: GgufMetadata = {
    "general.architecture": ["text", "mamba"],
    "a.u32": ["u32", 2 ** 32 - 1],
    "a.f32": ["f32", 0.5],
    "a.bool": ["bool", true],
    "a.texts": ["texts", ["", "é\u0000👍", "b"]],
    "a.i32s": ["i32s", [-1, 2 ** 31 - 1]],
    "a.none": ["texts", []],
  }
  const values = Float32Array.from({ length: 15 }, (_, i) => i - 7.25)
  const tensors = (["F32", "F16", "BF16"] as const).map((dtype): GgufTensor => {
    return { name: `t.${dtype}`, dtype, shape: [3, 5], data: fromF32(dtype, values) }
  })
  await writeGguf(path, metadata, tensors)
  const read = await parse(path)
  for (const [key, [, value]] of Object.entries(metadata)) t.deepEqual(read.metadata[key], value, key)
  t.is(read.metadata.version, 3)
  t.deepEqual(
    read.tensors.map(({ name, shape, dtype }) => ({ name, shape, dtype })),
    [0, 1, 30].map((dtype, i) => ({ name: tensors[i]!.name, shape: [5, 3], dtype })),
  )
  for (const [i, { data, start }] of read.tensors.entries()) {
    t.deepEqual(data, new Uint8Array(tensors[i]!.data as Uint8Array))
    t.is(start % 32, 0)
  }
  t.is(read.bytes % 32, 0)
})

test("what the format or llama.cpp cannot hold is refused, and the old file stays", async (t) => {
  const path = newPath()
  writeFileSync(path, "old")
  const tensor = (change: object) => [{ name: "w", dtype: "F32", shape: [2], data: new Uint8Array(8), ...change }]
  const cases: [GgufMetadata, object[], string, RegExp][] = [
    [{}, tensor({ name: "x".repeat(64) }), "BAD_INPUT", /expected a name of 1 to 63 bytes/],
    [{}, tensor({ name: "" }), "BAD_INPUT", /expected a name of 1 to 63 bytes/],
    [{}, [...tensor({}), ...tensor({})], "BAD_INPUT", /tensor "w": expected one tensor of this name, got two/],
    [{}, tensor({ shape: [] }), "BAD_SHAPE", /expected 1 to 4 dimensions of at least 1, got \[\]/],
    [{}, tensor({ shape: [1, 1, 1, 1, 2] }), "BAD_SHAPE", /got \[1,1,1,1,2\]/],
    [{}, tensor({ shape: [0] }), "BAD_SHAPE", /got \[0\]/],
    [{}, tensor({ data: new Uint8Array(7) }), "BAD_INPUT", /expected 8 bytes for F32 \[2\], got 7/],
    [{ a: ["u32", -1] }, [], "BAD_INPUT", /a whole number below 2\^32, got -1/],
    [{ a: ["texts", ["\ud800"]] }, [], "BAD_INPUT", /expected well-formed Unicode/],
  ]
  for (const [metadata, tensors, code, message] of cases) {
    const error = await t.throwsAsync(writeGguf(path, metadata, tensors as GgufTensor[]), { code }, String(message))
    t.regex(error.message, message)
  }
  t.is(readFileSync(path, "utf8"), "old")
  t.false(readdirSync(folder).some((name) => name.startsWith(`.${basename(path)}.`)))
})

test("a Mamba is written in the words of llama.cpp", async (t) => {
  const [source, path] = [join(folder, "untied"), newPath()]
  const weights = await writeModel(source, { ...mamba, tied: false, convBias: false, normEps: 1e-6 })
  t.like(await convert(source, path, { modelName: "a name" }), { to: "gguf", dtype: "f32", tensors: 23 })
  const { metadata, tensors } = await parse(path)
  t.like(metadata, {
    "general.architecture": "mamba",
    "general.name": "a name",
    "general.file_type": 0,
    "mamba.context_length": 1048576,
    "mamba.embedding_length": 16,
    "mamba.feed_forward_length": 0,
    "mamba.attention.head_count": 0,
    "mamba.block_count": 2,
    "mamba.vocab_size": 40,
    "mamba.ssm.conv_kernel": 3,
    "mamba.ssm.inner_size": 32,
    "mamba.ssm.state_size": 4,
    "mamba.ssm.time_step_rank": 3,
    "mamba.ssm.dt_b_c_rms": false,
    "mamba.attention.layer_norm_rms_epsilon": Math.fround(1e-6),
  })
  const block = "backbone.layers.1"
  const expected: Record<string, [shape: number[], name: string | undefined]> = {
    "token_embd.weight": [[16, 40], "backbone.embedding.weight"],
    "blk.1.attn_norm.weight": [[16], `${block}.norm.weight`],
    "blk.1.ssm_in.weight": [[16, 64], `${block}.mixer.in_proj.weight`],
    "blk.1.ssm_conv1d.weight": [[3, 32], `${block}.mixer.conv1d.weight`],
    "blk.1.ssm_conv1d.bias": [[32], undefined],
    "blk.1.ssm_x.weight": [[32, 11], `${block}.mixer.x_proj.weight`],
    "blk.1.ssm_dt.weight": [[3, 32], `${block}.mixer.dt_proj.weight`],
    "blk.1.ssm_dt.bias": [[32], `${block}.mixer.dt_proj.bias`],
    "blk.1.ssm_a": [[4, 32], `${block}.mixer.A_log`],
    "blk.1.ssm_d": [[32], `${block}.mixer.D`],
    "blk.1.ssm_out.weight": [[32, 16], `${block}.mixer.out_proj.weight`],
    "output_norm.weight": [[16], "backbone.norm_f.weight"],
    "output.weight": [[16, 40], "lm_head.weight"],
  }
  for (const [name, [shape, ours]] of Object.entries(expected)) {
    const found = tensors.find((tensor) => tensor.name === name)!
    t.deepEqual(found.shape, shape, name)
    const plain = ours === undefined ? new Float32Array(32) : weights.get(ours)!
    const values = name.endsWith("ssm_a") ? plain.map((value) => -Math.exp(value)) : plain
    t.deepEqual(floats(found.data), Array.from(values), name)
  }
})

test("matrices have the dtype asked for, everything else is f32; a tied head is not written twice", async (t) => {
  const source = join(folder, "tied")
  await writeModel(source, mamba)
  for (const [dtype, type] of [
    ["f16", 1],
    ["bf16", 30],
  ] as const) {
    const path = newPath()
    await convert(source, path, { dtype })
    const { metadata, tensors } = await parse(path)
    t.is(metadata["general.file_type"], { f16: 1, bf16: 32 }[dtype])
    t.false(tensors.some(({ name }) => name === "output.weight"))
    const matrices = ["token_embd.weight", ...["in", "x", "dt", "out"].map((part) => `blk.0.ssm_${part}.weight`)]
    for (const { name, dtype } of tensors.filter(({ name }) => !name.startsWith("blk.1")))
      t.is(dtype, matrices.includes(name) ? type : 0, name)
  }
})

test("what llama.cpp has no words for is refused by name", (t) => {
  const config = modelConfig(mamba)
  const [block] = config.pattern as readonly [MambaBlock]
  const blocks = (...changes: object[]): ModelConfig => {
    return { ...config, pattern: changes.map((change) => ({ ...block, ...change }) as MambaBlock) }
  }
  const samba = modelConfig({ dim: 64, layers: 4, vocab: 40, pattern: sambaPattern })
  const cases: [AnyConfig, RegExp][] = [
    [samba, /expected Mamba blocks alone, got the pattern mamba, swiglu, sliding, swiglu; llama.cpp has no words/],
    [{ vocab: 256, dims: [8] } as unknown as AnyConfig, /expected a Mamba, got a MegaByte/],
    [blocks({ bias: true }), /expected projections without biases, got bias true of block 0/],
    [blocks({ inner: 48 }), /expected inner of 2·dim, 32, got 48 of block 0/],
    [blocks({}, { state: 8 }), /expected one state for all blocks, got 4 and 8/],
    [blocks({}, { conv: 4 }), /expected one conv for all blocks, got 3 and 4/],
    [blocks({}, { rank: 1 }), /expected one rank for all blocks, got 3 and 1/],
    [blocks({ mixerNormEps: 1e-6 }), /expected one eps for all norms, 0.00001, got 0.000001 in block 0/],
    [blocks({ gated: "twice" }), /expected a plain Mamba, got gated "twice" of block 0/],
    [{ ...config, norm: "layer" } as AnyConfig, /expected a plain Mamba, got norm "layer" of the model/],
    [{ ...config, depth: 514 }, /expected at most 512 blocks, got 514/],
  ]
  for (const [refused, message] of cases) {
    const error = t.throws(() => ggufMamba(refused), { code: "BAD_CHECKPOINT" }, String(message))
    t.regex(error.message, message)
  }
  t.notThrows(() => ggufMamba(blocks({ convBias: false }, {})))
  t.deepEqual(ggufMamba(blocks({ mixerNormEps: 1e-5 })).metadata["mamba.ssm.dt_b_c_rms"], ["bool", true])
})
