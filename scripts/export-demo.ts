/**
 * Makes a model that ships, models/NAME, from a finished training run: matrices as bf16, everything else f32, with the recipe, the loss plot and
 * the bits per byte on texts that were not trained on.
 *
 *   npx tsx scripts/export-demo.ts NAME RUN HELDOUT…        (see models/demo/README.md for the whole way)
 */
import { copyFile, mkdir, stat } from "node:fs/promises"
import { basename, join } from "node:path"
import { fileURLToPath } from "node:url"
import { writeFileAtomically } from "../lib/checkpoint/atomic.ts"
import { fromF32 } from "../lib/checkpoint/dtypes.ts"
import { modelConfigFields } from "../lib/checkpoint/families.ts"
import { openSafetensors, type TensorEntry, writeSafetensors } from "../lib/checkpoint/safetensors.ts"
import { load } from "../lib/generate/load.ts"
import { allParameters } from "../lib/layers/layer.ts"
import type { ModelConfig } from "../lib/models/config.ts"
import { PatternModel } from "../lib/models/pattern-model.ts"
import { readRun } from "../lib/train/checkpoint.ts"
import { readWhole } from "../lib/train/data.ts"

const [name, run, ...texts] = process.argv.slice(2)
if (name === undefined || !/^demo(-\w+)?$/.test(name) || run === undefined || texts.length === 0) {
  console.error("usage: npx tsx scripts/export-demo.ts demo|demo-samba RUN HELDOUT…")
  process.exit(2)
}

const folder = fileURLToPath(new URL(`../models/${name}`, import.meta.url))
await mkdir(folder, { recursive: true })
const { recipe, progress } = await readRun(run)
await writeWeights(run, join(folder, "model.safetensors"))
const config = modelConfigFields(recipe.config)
const writeConfig = (scores: Record<string, number>) => {
  const { config: _config, ...options } = recipe
  const extra = {
    trainedOn: "bytes",
    recipe: options,
    steps: progress.step,
    bytesSeen: progress.bytesSeen,
    bitsPerByte: scores,
  }
  return writeFileAtomically(join(folder, "config.json"), `${JSON.stringify({ ...config, selscan: extra }, null, 2)}\n`)
}
await writeConfig({})
await copyFile(join(run, "loss.svg"), join(folder, "loss.svg"))

const scores: Record<string, number> = {}
await using model = await load(folder)
for (const text of texts) {
  scores[basename(text)] = await model.bitsPerByte(await readWhole(text))
  console.log(`${text}: ${scores[basename(text)]!.toFixed(4)} bits per byte`)
}
await writeConfig(scores)
console.log(`${folder}: ${(await stat(join(folder, "model.safetensors"))).size} bytes of weights`)

async function writeWeights(from: string, to: string): Promise<void> {
  await using file = await openSafetensors(join(from, "model.safetensors"))
  const entries: TensorEntry[] = []
  for (const [name, { shape, matrix }] of allParameters(new PatternModel(recipe.config as ModelConfig))) {
    const dtype = matrix ? "BF16" : "F32"
    entries.push({ name, dtype, shape, data: fromF32(dtype, await file.readF32(name)) })
  }
  await writeSafetensors(to, entries, { metadata: { format: "pt" } })
}
