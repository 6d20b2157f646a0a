/**
 * The same random weights as each side takes them. A form is a line of the table: how ours loads the folder, and the file that
 * llama.cpp gets.
 */
import { existsSync } from "node:fs"
import { join } from "node:path"
import { type ConvertOptions, convert } from "../../lib/checkpoint/convert.ts"
import { expect, suggestion } from "../../lib/errors.ts"
import type { LoadOptions } from "../../lib/generate/load.ts"
import { randomModel } from "../../lib/generate/random-weights.ts"

export interface Form {
  readonly ours: LoadOptions
  /** How the GGUF file is made. */
  readonly theirs: ConvertOptions
  readonly label: string
  /** The largest relative error of logits at which both are taken to compute the same: root mean squares over the vocabulary. */
  readonly apart: number
}

export const forms: Readonly<Record<string, Form>> = {
  bf16: { ours: {}, theirs: { dtype: "f16" }, label: "bf16 beside f16", apart: 0.03 },
  "bf16-bf16": { ours: {}, theirs: { dtype: "bf16" }, label: "bf16 beside bf16", apart: 0.03 },
  int8: { ours: { weights: "int8" }, theirs: { weights: "int8" }, label: "int8 beside q8_0", apart: 0.05 },
  f32: { ours: { precision: "f32" }, theirs: { dtype: "f32" }, label: "f32 products beside f32", apart: 1e-3 },
}

export function formOf(name: string): Form {
  expect(Object.hasOwn(forms, name), "BAD_OPTION", () => {
    return `peers: unknown form ${name}, ${suggestion(name, Object.keys(forms))}`
  })
  return forms[name]!
}

/** The folder of a published size with random weights in bf16, made unless it is there. */
export async function weights(folder: string, preset: string): Promise<string> {
  const path = join(folder, preset)
  if (!existsSync(join(path, "config.json"))) {
    await using model = await randomModel(preset, "bf16", { device: "cpu" })
    await model.save(path)
  }
  return path
}

/** The same weights in a file for llama.cpp, made unless it is there. bf16 of ordinary size are the same numbers in f16 and f32. */
export async function gguf(path: string, { theirs }: Form): Promise<string> {
  const file = `${path}.${Object.values(theirs).join("-")}.gguf`
  if (!existsSync(file)) await convert(path, file, { ...theirs, to: "gguf" })
  return file
}
