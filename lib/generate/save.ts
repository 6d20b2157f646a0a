/**
 * Writing a model as a folder that load() and the reference implementations read.
 */
import { mkdir } from "node:fs/promises"
import { join } from "node:path"
import { writeFileAtomically } from "../checkpoint/atomic.ts"
import { type ConfigForm, type MambaConfig, mambaConfigFields } from "../checkpoint/config.ts"
import { fromF32 } from "../checkpoint/dtypes.ts"
import { bf16ToF32 } from "../checkpoint/halves.ts"
import { checkNames, fromOurs } from "../checkpoint/names.ts"
import { type TensorEntry, writeSafetensors } from "../checkpoint/safetensors.ts"
import { checkOptions, expect, SelscanError } from "../errors.ts"
import { allParameters, type Parameter } from "../layers/layer.ts"
import type { Model } from "./model.ts"

export interface SaveOptions {
  /** Tensor names and config.json of state-spaces/mamba, or of transformers. Default original. */
  readonly naming?: ConfigForm
  /** Of the matrices; everything else is f32. Default: as the model holds them. */
  readonly dtype?: "f32" | "bf16" | "f16"
}

const fileDtype = { f32: "F32", bf16: "BF16", f16: "F16" } as const

/**
 * Writes config.json and model.safetensors into a folder, each atomically.
 * @throws BAD_OPTION for options; DISK when the folder cannot be written or is full: what was there before stays
 * @example
 * await saveModel(model, "exported", { naming: "transformers", dtype: "bf16" })
 */
export async function saveModel(
  model: Model,
  config: MambaConfig,
  folder: string,
  options: SaveOptions = {},
): Promise<void> {
  checkOptions("save", options, ["naming", "dtype"])
  const { naming = "original", dtype = model.matrixDtype as "f32" | "bf16" } = options
  expect(
    naming === "original" || naming === "transformers",
    "BAD_OPTION",
    () => `save: naming is original or transformers, got ${naming}`,
  )
  expect(Object.hasOwn(fileDtype, dtype), "BAD_OPTION", () => `save: dtype is f32, bf16 or f16, got ${dtype}`)
  const parameters = allParameters(model.network)
  const report = fromOurs(parameters.keys(), naming, config)
  checkNames(report, folder)
  const entries = [...report.mapping].map(([ours, theirs]): TensorEntry => {
    const parameter = parameters.get(ours)!
    const stored = parameter.matrix ? fileDtype[dtype] : "F32"
    return {
      name: theirs,
      dtype: stored,
      shape: parameter.shape,
      data: async () => fromF32(stored, await weight(model, ours, parameter)),
    }
  })
  await mkdir(folder, { recursive: true }).catch((cause: Error) => {
    throw new SelscanError("DISK", `save: folder ${folder} could not be made: ${cause.message}`, { folder }, { cause })
  })
  await writeSafetensors(join(folder, "model.safetensors"), entries, { metadata: { format: "pt" } })
  await writeFileAtomically(
    join(folder, "config.json"),
    `${JSON.stringify(mambaConfigFields(config, naming), null, 2)}\n`,
  )
}

async function weight(model: Model, name: string, { matrix }: Parameter): Promise<Float32Array> {
  const bytes = await model.store.download("weight", name)
  return matrix && model.matrixDtype === "bf16"
    ? bf16ToF32(new Uint16Array(bytes.buffer))
    : new Float32Array(bytes.buffer)
}
