/** Mistral as transformers writes it: Llama's tensors, and attention over a sliding window where sliding_window is a number. */
import { patternFamily } from "./family.ts"
import { isTransformer, readTransformer, rotaryBuffers, transformerFields, transformerTensors } from "./llama.ts"
import { blocksOf, isAttention } from "./patterns.ts"

/** What absent fields mean to the class. */
const absentWindow = 4096
const absentPositions = 131072
const absentKvHeads = 8

export const mistral = patternFamily({
  name: "Mistral",
  naming: "transformers",
  configFile: "config.json",
  mark: "model.embed_tokens.weight",
  ignored: rotaryBuffers,
  recognises: ({ raw }) => raw.model_type === "mistral",
  read: (fields) => {
    const window = fields.raw.sliding_window === null ? 0 : fields.count("sliding_window", { absent: absentWindow })
    return readTransformer(fields, { window, positions: absentPositions, kvHeads: absentKvHeads })
  },
  suits: isTransformer,
  write: (config) => ({
    ...transformerFields(config, "mistral", "MistralForCausalLM", absentPositions),
    sliding_window: blocksOf(config).find(isAttention)!.window || null,
  }),
  tensors: transformerTensors,
})
