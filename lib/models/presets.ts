/**
 * Sizes of published models, by name.
 */
import { expect, suggestion } from "../errors.ts"
import { type BlockName, type ModelConfig, type ModelSize, modelConfig, sambaPattern } from "./config.ts"

/** The GPT-NeoX vocabulary, 50277, padded to a multiple of 8. */
const neox = 50280
/** Llama-2's, which SAMBA's models of SlimPajama use. */
const llama = 32000

/** Mixers followed by one MLP each. */
const withMlp = (...mixers: readonly BlockName[]) => mixers.flatMap((mixer) => [mixer, "swiglu"] as const)

const small = { dim: 1536, vocab: llama, heads: 12, mlp: 4096 }
const medium = { dim: 2304, vocab: llama, heads: 18, mlp: 6144 }
// d_mlp 8196 as printed in SAMBA's Table 12.
const large = { dim: 2048, vocab: 50304, heads: 32, kvHeads: 4, mlp: 8196 }

/**
 * Mamba: state-spaces/mamba. MambaByte: arXiv 2401.13660 §A. SAMBA and what its paper compares it with: arXiv 2406.07522,
 * Tables 3, 11 and 12, and where microsoft/Samba has them its configurations. Llama, Mistral, Phi-3, Falcon-Mamba: the configurations of
 * the published checkpoints.
 */
export const presets = {
  "mamba-130m": { dim: 768, layers: 24, vocab: neox },
  "mamba-370m": { dim: 1024, layers: 48, vocab: neox },
  "mamba-790m": { dim: 1536, layers: 48, vocab: neox },
  "mamba-1.4b": { dim: 2048, layers: 48, vocab: neox },
  "mamba-2.8b": { dim: 2560, layers: 64, vocab: neox },
  "mambabyte-353m": { dim: 1024, layers: 53, vocab: 256 },
  "mambabyte-972m": { dim: 1792, layers: 48, vocab: 256 },
  "mambabyte-1.6b": { dim: 2304, layers: 48, vocab: 256 },
  "falcon-mamba-7b": { dim: 4096, layers: 64, vocab: 65024, tied: false, mixerNormEps: 1e-6 },

  // Of the size of the demo; window and length of training sequences as 1 to 2, as in SAMBA §3.1.
  "samba-byte": { dim: 192, vocab: 256, layers: 12, pattern: sambaPattern, heads: 6, window: 256, mlp: 448 },
  "samba-421m": { ...small, layers: 24, pattern: sambaPattern },
  "samba-1.3b": { ...medium, layers: 36, pattern: sambaPattern },
  "samba-1.7b": { ...large, layers: 48, pattern: sambaPattern },
  "samba-3.8b": { dim: 2816, vocab: 32064, layers: 64, pattern: sambaPattern, heads: 11, kvHeads: 1, mlp: 9984 },
  "samba-nope-421m": { ...small, layers: 24, pattern: sambaPattern, rope: false },
  "samba-nope-1.3b": { ...medium, layers: 36, pattern: sambaPattern, rope: false },

  "mamba-swa-mlp-400m": { ...small, layers: 24, pattern: ["mamba", "sliding", "swiglu"] },
  "mamba-swa-mlp-1.3b": { ...medium, layers: 36, pattern: ["mamba", "sliding", "swiglu"] },
  "mamba-swa-mlp-1.6b": { ...large, layers: 54, pattern: ["mamba", "sliding", "swiglu"] },
  "mamba-mlp-1.9b": { ...large, layers: 48, pattern: withMlp("mamba") },
  "mamba-430m": { dim: 1024, vocab: llama, layers: 60 },
  "mamba-1.3b": { dim: 2048, vocab: llama, layers: 48 },
  "mamba-1.8b": { dim: 2048, vocab: 50304, layers: 64 },
  // Samba_421M_abl_mamba: an MLP of width 2·dim, which has the parameters of a Mamba block, in its place.
  "mlp2-swa-mlp-417m": {
    ...small,
    layers: 24,
    pattern: [{ block: "swiglu", mlp: 3072 }, "swiglu", "sliding", "swiglu"],
  },
  "mlp2-swa-mlp-1.3b": {
    ...medium,
    layers: 36,
    pattern: [{ block: "swiglu", mlp: 4608 }, "swiglu", "sliding", "swiglu"],
  },
  "sliding-gla-438m": { ...small, layers: 24, pattern: withMlp("gla", "sliding"), tied: false },
  "sliding-gla-1.2b": { ...medium, layers: 36, pattern: withMlp("gla", "sliding") },
  "sliding-retnet-446m": { ...small, layers: 24, pattern: withMlp("retention", "sliding") },
  "sliding-retnet-1.4b": { ...medium, layers: 36, pattern: withMlp("retention", "sliding") },

  "llama-438m": { ...small, layers: 24, pattern: withMlp("full"), tied: false },
  "llama-1.3b": { ...medium, layers: 40, pattern: withMlp("full") },
  "llama-1.6b": { ...large, layers: 48, pattern: withMlp("full"), tied: false },
  "llama-swa-438m": { ...small, layers: 24, pattern: withMlp("sliding"), tied: false },
  "llama-swa-1.3b": { ...medium, layers: 40, pattern: withMlp("sliding") },
  "mistral-1.6b": { ...large, layers: 48, pattern: withMlp("sliding"), tied: false },

  "llama-2-7b": { dim: 4096, vocab: llama, layers: 64, pattern: withMlp("full"), heads: 32, mlp: 11008, tied: false },
  "llama-3-8b": {
    ...{
      dim: 4096,
      vocab: 128256,
      layers: 64,
      pattern: withMlp("full"),
      heads: 32,
      kvHeads: 8,
      mlp: 14336,
      tied: false,
    },
    ...{ rope: { base: 500000 }, contextMax: 8192 },
  },
  "mistral-7b": {
    ...{
      dim: 4096,
      vocab: llama,
      layers: 64,
      pattern: withMlp("sliding"),
      heads: 32,
      kvHeads: 8,
      mlp: 14336,
      tied: false,
    },
    window: 4096,
  },
  // SAMBA's TFM++ (Table 7): the architecture of Phi-3-mini.
  "tfm++-3.8b": { dim: 3072, vocab: 32064, layers: 64, pattern: withMlp("full"), heads: 32, mlp: 8192, tied: false },
} as const satisfies Record<string, ModelSize>

export type Preset = keyof typeof presets

/** The configuration of a preset by name. Throws BAD_OPTION, with a suggestion, for a name that is none. */
export function modelPreset(name: string): ModelConfig {
  const known = Object.keys(presets)
  expect(known.includes(name), "BAD_OPTION", () => `preset: unknown preset ${name}, ${suggestion(name, known)}`)
  return modelConfig(presets[name as Preset])
}
