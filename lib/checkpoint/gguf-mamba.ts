/**
 * Mamba in the words of llama.cpp (architecture "mamba"): its keys, and its tensors made of our parameters.
 *
 * | there              | ours                      | differs in                                                |
 * | ------------------ | ------------------------- | --------------------------------------------------------- |
 * | token_embd, output | embedding, lm_head        | there is an output only where the head is not tied        |
 * | ssm_conv1d         | conv1d                    | (inner, width); its bias must be there, zeros where we have none |
 * | ssm_a              | A_log                     | A itself, −exp(A_log)                                     |
 * | ssm_in, ssm_x, …   | in_proj, x_proj, …        | no biases of in and out                                   |
 *
 * Its kernels read the matrices in any dtype, everything else as f32. One set of sizes holds for all blocks, inner is 2·dim, and there is
 * one eps for all norms: Falcon-Mamba with its two (10⁻⁵, and 10⁻⁶ on Δ, B and C) is refused, for with one the logits of a small model
 * were off by 1.1e-2 (2026-11-22); of one eps they were off by 4.0e-6.
 * @see llama.cpp v0.5.0, src/models/mamba.cpp (load_arch_hparams, load_arch_tensors)
 */
import { SelscanError } from "../errors.ts"
import { allParameters } from "../layers/layer.ts"
import type { MambaBlock, ModelConfig } from "../models/config.ts"
import { PatternModel } from "../models/pattern-model.ts"
import type { AnyConfig } from "./family.ts"
import type { GgufMetadata } from "./gguf.ts"
import { blocksOf, patternNames } from "./patterns.ts"

/** A tensor of the file, and which of our parameters it is; undefined: zeros. */
export interface GgufPart {
  readonly name: string
  readonly shape: readonly number[]
  readonly parameter: string | undefined
  /** Whether its dtype may be chosen; else it is f32. */
  readonly matrix: boolean
  /** What it holds of the parameter's elements. */
  readonly change: (values: Float32Array) => Float32Array
}

/** Positions: a Mamba has no limit, and llama.cpp needs one; its own converter writes this one. */
const contextLength = 2 ** 20

/** llama.cpp's LLAMA_MAX_LAYERS. */
const depthMost = 512

/** Names within a block, and of our parameters below `backbone.layers.N`. */
const blockTensors = {
  "attn_norm.weight": "norm.weight",
  "ssm_in.weight": "mixer.in_proj.weight",
  "ssm_conv1d.weight": "mixer.conv1d.weight",
  "ssm_conv1d.bias": "mixer.conv1d.bias",
  "ssm_x.weight": "mixer.x_proj.weight",
  "ssm_dt.weight": "mixer.dt_proj.weight",
  "ssm_dt.bias": "mixer.dt_proj.bias",
  ssm_a: "mixer.A_log",
  ssm_d: "mixer.D",
  "ssm_out.weight": "mixer.out_proj.weight",
} as const

/**
 * The keys of a model's architecture and its tensors.
 * @throws SelscanError BAD_CHECKPOINT, with what llama.cpp's Mamba has no words for
 */
export function ggufMamba(config: AnyConfig): { metadata: GgufMetadata; parts: GgufPart[] } {
  const { block, model } = onlyMamba(config)
  const { dim, depth, vocab, normEps } = model
  return {
    metadata: {
      "mamba.context_length": ["u32", contextLength],
      "mamba.embedding_length": ["u32", dim],
      "mamba.feed_forward_length": ["u32", 0],
      "mamba.attention.head_count": ["u32", 0],
      "mamba.block_count": ["u32", depth],
      "mamba.vocab_size": ["u32", vocab],
      "mamba.ssm.conv_kernel": ["u32", block.conv],
      "mamba.ssm.inner_size": ["u32", block.inner],
      "mamba.ssm.state_size": ["u32", block.state],
      "mamba.ssm.time_step_rank": ["u32", block.rank],
      "mamba.ssm.dt_b_c_rms": ["bool", block.mixerNormEps !== undefined],
      "mamba.attention.layer_norm_rms_epsilon": ["f32", normEps],
    },
    parts: partsOf(model, block),
  }
}

const same = (values: Float32Array) => values
const negExp = (values: Float32Array) => values.map((value) => -Math.exp(value))

function partsOf(config: ModelConfig, block: MambaBlock): GgufPart[] {
  const parameters = allParameters(new PatternModel(config))
  const part = (name: string, parameter: string): GgufPart => {
    const ours = parameters.get(parameter)
    // Only the convolution's bias can be absent; its weight is (inner, 1, width) here.
    const shape = ours?.shape.filter((_, i) => ours.shape.length < 3 || i !== 1) ?? [block.inner]
    const change = name.endsWith("ssm_a") ? negExp : same
    return { name, shape, parameter: ours && parameter, matrix: ours?.matrix === true, change }
  }
  const blocks = Array.from({ length: config.depth }, (_, i) =>
    Object.entries(blockTensors).map(([name, ours]) => part(`blk.${i}.${name}`, `backbone.layers.${i}.${ours}`)),
  )
  return [
    part("token_embd.weight", "backbone.embedding.weight"),
    ...blocks.flat(),
    part("output_norm.weight", "backbone.norm_f.weight"),
    ...(config.tied ? [] : [part("output.weight", "lm_head.weight")]),
  ]
}

/** Falcon-Mamba's has norms without weights on Δ, B and C. */
type Block = MambaBlock & { readonly mixerNormEps?: number }

/** What a configuration and a block may say; of anything else only that it is off. */
const knownOfModel = ["dim", "vocab", "depth", "pattern", "tied", "normEps", "extra"]
const knownOfBlock = ["kind", "state", "conv", "inner", "rank", "convBias", "bias", "mixerNormEps"]

/** Refuses what llama.cpp would not compute, or would compute otherwise. */
function onlyMamba(config: AnyConfig): { model: ModelConfig; block: Block } {
  if (!("pattern" in config)) return refuse("a Mamba", "a MegaByte")
  const blocks = blocksOf(config)
  const [first] = blocks
  if (first?.kind !== "mamba" || blocks.some(({ kind }) => kind !== "mamba"))
    return refuse("Mamba blocks alone", `the pattern ${patternNames(config.pattern)}`)
  if (config.depth > depthMost) refuse(`at most ${depthMost} blocks`, `${config.depth}`)
  holdFields(config, knownOfModel, "the model")
  for (const [i, block] of (blocks as readonly Block[]).entries()) {
    holdFields(block, knownOfBlock, `block ${i}`)
    if (block.bias) refuse("projections without biases", `bias true of block ${i}`)
    if (block.inner !== 2 * config.dim) refuse(`inner of 2·dim, ${2 * config.dim}`, `${block.inner} of block ${i}`)
    const { mixerNormEps: eps = config.normEps } = block
    if (eps !== config.normEps) refuse(`one eps for all norms, ${config.normEps}`, `${eps} in block ${i}`)
    for (const name of ["state", "conv", "rank", "mixerNormEps"] as const) {
      const [one, other] = [(first as Block)[name], block[name]]
      if (one !== other) refuse(`one ${name} for all blocks`, `${one ?? "none"} and ${other ?? "none"}`)
    }
  }
  return { model: config, block: first }
}

function holdFields(said: object, known: readonly string[], of: string): void {
  for (const [name, value] of Object.entries(said)) {
    if (known.includes(name) || value === undefined || value === false) continue
    refuse("a plain Mamba", `${name} ${JSON.stringify(value)} of ${of}`)
  }
}

function refuse(expected: string, got: string): never {
  const message = `gguf: expected ${expected}, got ${got}; llama.cpp has no words for it, so choose another naming, such as selscan`
  throw new SelscanError("BAD_CHECKPOINT", message, { expected, got })
}
