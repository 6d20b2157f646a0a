/**
 * MambaByte as its authors' module (jxiw/MambaByte) has it: Mamba over bytes with LayerNorm and its biases, and a head of its own. The config
 * is the module's constructor arguments as JSON, which their scripts keep in YAML: d_model, num_layers, and where they are not the defaults
 * vocab_size, d_state, d_conv, expand, norm_eps; arguments that choose kernels are ignored. Their published checkpoints are in the original
 * form of Mamba instead (`mamba.ts`), and either form of tensors goes with either config.
 * @see Wang et al. 2024, arXiv:2401.13660, §3 and App. B
 */
import type { MambaBlock, ModelConfig } from "../models/config.ts"
import type { Fields } from "./config-fields.ts"
import { patternFamily } from "./family.ts"
import { onlyMamba } from "./mamba.ts"
import { blocksOf, depthMost, factorOf } from "./patterns.ts"

export const mambaByte = patternFamily({
  // Mamba's files in another form: see `familyOfTensors`.
  name: "Mamba",
  naming: "original",
  configFile: "config.json",
  mark: "mambabyte.token_embedding.weight",
  recognises: ({ raw }) =>
    raw.model_type === undefined &&
    raw.d_model !== undefined &&
    raw.n_layer === undefined &&
    raw.num_layers !== undefined,
  read,
  suits: (config) => onlyMamba(config) && config.norm === "layer",
  write,
  tensors: (table) => {
    table.same("mambabyte.token_embedding.weight", "backbone.embedding.weight")
    table.below("mambabyte.layers", "backbone.layers")
    table.below("mambabyte.final_norm", "backbone.norm_f")
    table.head("lm_head.weight", "mambabyte.token_embedding.weight")
  },
})

function read(fields: Fields): ModelConfig {
  const dim = fields.count("d_model")
  const block: MambaBlock = {
    kind: "mamba",
    state: fields.count("d_state", { absent: 16, most: 64 }),
    conv: fields.count("d_conv", { absent: 4, least: 2, most: 4 }),
    inner: Math.floor(fields.positive("expand", 2) * dim),
    rank: Math.ceil(dim / 16),
    convBias: true,
    bias: false,
  }
  return {
    dim,
    vocab: fields.count("vocab_size", { absent: 256 }),
    depth: fields.count("num_layers", { most: depthMost }),
    pattern: [block],
    tied: false,
    normEps: fields.positive("norm_eps", 1e-5),
    norm: "layer",
  }
}

function write(config: ModelConfig): Record<string, unknown> {
  const { inner, state, conv } = blocksOf(config)[0] as MambaBlock
  return {
    vocab_size: config.vocab,
    d_model: config.dim,
    num_layers: config.depth,
    d_state: state,
    d_conv: conv,
    expand: factorOf(inner, config.dim),
    norm_eps: config.normEps,
  }
}
