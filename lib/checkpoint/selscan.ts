/** Our own form, for any pattern of blocks: the configuration as it is, and our own names of parameters. */
import type { BlockConfig, ModelConfig } from "../models/config.ts"
import type { Fields } from "./config-fields.ts"
import { patternFamily } from "./family.ts"
import { depthMost } from "./patterns.ts"

const modelType = "selscan"
const modelFields = [
  ...["model_type", "dim", "vocab", "depth", "pattern", "tied", "normEps", "norm", "selscan"],
  "quantization_config", // of any family: read before its fields
]
/** A base as large as any published, with room. */
const baseMost = 1e12

export const selscan = patternFamily({
  name: "selscan",
  naming: "selscan",
  configFile: "config.json",
  mark: "backbone.embedding.weight",
  recognises: ({ raw }) => raw.model_type === modelType,
  read,
  suits: () => true,
  write: ({ dim, vocab, depth, pattern, tied, normEps, norm }) => {
    return { model_type: modelType, dim, vocab, depth, tied, normEps, ...(norm && { norm }), pattern }
  },
  tensors: (table) => {
    table.below("backbone", "backbone")
    table.head("lm_head.weight", "backbone.embedding.weight")
  },
})

function read(fields: Fields): ModelConfig {
  fields.only(modelFields)
  const { norm } = fields.raw
  fields.require(norm === undefined || norm === "layer", "norm", '"layer", or no field for RMSNorm')
  return {
    dim: fields.count("dim"),
    vocab: fields.count("vocab"),
    depth: fields.count("depth", { most: depthMost }),
    pattern: fields.objects("pattern").map(block),
    tied: fields.flag("tied"),
    normEps: fields.positive("normEps"),
    ...(norm === "layer" && { norm }),
  }
}

/** Readers of a block's fields; the list of a kind is what a block of it may have, and must. */
const kinds: { readonly [Kind in BlockConfig["kind"]]: (fields: Fields) => BlockConfig } = {
  mamba: (fields) => ({
    kind: "mamba",
    state: fields.count("state", { most: 64 }),
    conv: fields.count("conv", { least: 2, most: 4 }),
    inner: fields.count("inner"),
    rank: fields.count("rank"),
    convBias: fields.flag("convBias"),
    bias: fields.flag("bias"),
    ...(fields.raw.mixerNormEps !== undefined && { mixerNormEps: fields.positive("mixerNormEps") }),
  }),
  attention: (fields) => ({
    kind: "attention",
    heads: fields.count("heads"),
    kvHeads: fields.count("kvHeads"),
    headDim: fields.count("headDim"),
    window: fields.count("window", { least: 0 }),
    contextMax: fields.count("contextMax"),
    rope: ropeOf(fields),
    conv: convOf(fields),
  }),
  swiglu: (fields) => ({ kind: "swiglu", inner: fields.count("inner") }),
  gla: (fields) => ({ kind: "gla", ...linear(fields) }),
  retention: (fields) => ({ kind: "retention", ...linear(fields) }),
}

function block(fields: Fields): BlockConfig {
  const known = Object.keys(kinds)
  const { kind } = fields.raw
  fields.require(typeof kind === "string" && Object.hasOwn(kinds, kind), "kind", `one of ${known.join(", ")}`)
  const config = kinds[kind as BlockConfig["kind"]](fields)
  fields.only(Object.keys(config))
  return config
}

function ropeOf(fields: Fields) {
  if (fields.raw.rope === false) return false
  const rope = fields.optionalObject("rope") ?? fields.empty("rope")
  rope.only(["base", "rotary", "interleaved"])
  return {
    base: rope.positive("base", undefined, baseMost),
    rotary: rope.count("rotary"),
    interleaved: rope.flag("interleaved"),
  }
}

function convOf(fields: Fields): number {
  const taps = fields.count("conv", { least: 0, most: 4 })
  fields.require(taps !== 1, "conv", "0, or 2 to 4 taps")
  return taps
}

const linear = (fields: Fields) => ({
  heads: fields.count("heads"),
  expandK: fields.positive("expandK"),
  expandV: fields.positive("expandV"),
})
