/**
 * Falcon-Mamba as transformers writes it: Mamba's fields and tensors, an RMS norm without a weight on each of Δ's low-rank input, B and C
 * (mixer_rms_eps, which its first files lack), and a head of its own. Its 4-bit files, whose config calls itself mamba, are quantised and
 * refused as such.
 * @see Zuo et al. 2024, arXiv:2410.05355, §3.1
 */
import type { MambaBlock } from "../models/config.ts"
import { patternFamily } from "./family.ts"
import { backbone, isFalcon, onlyMamba, readTransformers, transformersFields } from "./mamba.ts"

/** What an absent mixer_rms_eps means to the class. */
const absentEps = 1e-6

export const falconMamba = patternFamily({
  name: "Falcon-Mamba",
  naming: "transformers",
  configFile: "config.json",
  mark: "backbone.embeddings.weight",
  recognises: ({ raw }) => isFalcon(raw),
  read: (fields) =>
    readTransformers(fields, { use_bias: false }, { mixerNormEps: fields.positive("mixer_rms_eps", absentEps) }),
  suits: (config) => onlyMamba(config) && config.pattern.some((block) => "mixerNormEps" in block),
  write: (config) => {
    const { mixerNormEps } = config.pattern[0] as MambaBlock
    return { ...transformersFields(config, "falcon_mamba", "FalconMambaForCausalLM"), mixer_rms_eps: mixerNormEps }
  },
  tensors: (table) => backbone(table, "embeddings"),
})
