import test from "ava"
import { families, modelConfigFields, parseConfig, tensorsOf } from "../../lib/checkpoint/families.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { type ModelConfig, modelConfig } from "../../lib/models/config.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"
import { modelPreset, presets } from "../../lib/models/presets.ts"

for (const name of Object.keys(presets)) {
  test(`every tensor of ${name} is in the files of its namings once, row by row`, (t) => {
    const config = modelPreset(name)
    const parameters = allParameters(new PatternModel(config))
    for (const family of families) {
      if (!family.suits(config)) continue
      const { naming } = family
      try {
        modelConfigFields(config, naming)
      } catch {
        continue // it has no words for the model
      }
      const covered = new Map([...parameters].map(([name, { shape }]) => [name, new Uint8Array(shape[0] ?? 1)]))
      for (const { parts, fileName, shape } of tensorsOf(family, config)) {
        let fileRow = 0
        for (const part of parts) {
          t.is(part.fileRow, fileRow, fileName)
          fileRow += part.rows
          t.deepEqual(shape.slice(1), parameters.get(part.name)!.shape.slice(1))
          const rows = covered.get(part.name)!
          for (let row = part.row; row < part.row + part.rows; row++) rows[row]!++
        }
        t.is(parts.length > 0 ? fileRow : shape[0], shape[0])
      }
      const wrong = [...covered].filter(([, rows]) => rows.some((times) => times !== 1)).map(([name]) => name)
      t.deepEqual(wrong, [], naming)
    }
  })
}

test("SAMBA's queries, keys and values lie by kv head", (t) => {
  const config: ModelConfig = modelConfig({
    ...{ dim: 24, layers: 2, vocab: 8, pattern: ["sliding", "swiglu"] },
    ...{ heads: 6, kvHeads: 2, headDim: 4, window: 3 },
  })
  const { family } = parseConfig(JSON.stringify(modelConfigFields(config, "samba")), "lit_config.json")
  const packed = tensorsOf(family, config).find(({ fileName }) => fileName.endsWith("attn.attn.weight"))!
  t.deepEqual(packed.shape, [40, 24])
  t.deepEqual(
    packed.parts.map(({ fileRow, row, rows }) => [fileRow, row, rows]),
    [
      [0, 0, 12],
      [12, 24, 4],
      [16, 32, 4],
      [20, 12, 12],
      [32, 28, 4],
      [36, 36, 4],
    ],
  )
})
