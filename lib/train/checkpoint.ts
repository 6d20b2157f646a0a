/**
 * A training run on disk. `checkpoint.safetensors` alone decides where a resumed run goes on: weights, moments, carried
 * states, step and recipe in one file that is replaced atomically.
 */

import { access } from "node:fs/promises"
import { join } from "node:path"
import { writeFileAtomically } from "../checkpoint/atomic.ts"
import { modelConfigFields } from "../checkpoint/families.ts"
import { openSafetensors, type TensorEntry, writeSafetensors } from "../checkpoint/safetensors.ts"
import { expect, SelscanError } from "../errors.ts"
import type { Slot } from "../graph/program.ts"
import type { Store, StoredKind } from "../native.ts"
import { checkRecipe, type TrainRecipe } from "./options.ts"

const kinds: readonly StoredKind[] = ["weight", "training", "state", "ring"]
/** Raised when the meaning of a checkpoint changes. */
const version = "2"

/** Where a run stands after `step` optimizer steps. */
export interface Progress {
  readonly step: number
  readonly bytesSeen: number
  /** Seconds spent training so far, over all sessions. */
  readonly seconds: number
  /** sha256 of the training text: a run goes on with the text it began with. */
  readonly text: string
}

/** Stored values of the programs of a run: what a checkpoint holds. */
export type StoredSlots = ReadonlyMap<StoredKind, readonly Slot[]>

export const checkpointPath = (out: string): string => join(out, "checkpoint.safetensors")

export async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  )
}

/** Rings may be bf16; all else that training stores is f32. */
const fileDtype = ({ dtype }: Slot) => (dtype === "bf16" ? "BF16" : "F32")

/** Writes the checkpoint, then the model as a folder that load() reads. */
export async function saveRun(
  out: string,
  store: Store,
  slots: StoredSlots,
  recipe: TrainRecipe,
  progress: Progress,
): Promise<void> {
  const entries = kinds.flatMap((kind) =>
    (slots.get(kind) ?? []).map(
      (slot): TensorEntry => ({
        name: kind === "weight" ? slot.name : `${kind}:${slot.name}`,
        dtype: fileDtype(slot),
        shape: slot.shape,
        data: () => store.download(kind, slot.name),
      }),
    ),
  )
  const metadata = { selscan: version, recipe: JSON.stringify(recipe), progress: JSON.stringify(progress) }
  await writeSafetensors(checkpointPath(out), entries, { metadata })
  const weights = entries.slice(0, slots.get("weight")?.length ?? 0)
  await writeSafetensors(join(out, "model.safetensors"), weights, { metadata: { format: "pt" } })
  await writeFileAtomically(join(out, "config.json"), `${JSON.stringify(modelConfigFields(recipe.config), null, 2)}\n`)
}

/** Reads recipe and progress of a run. Throws BAD_CHECKPOINT when the file is not one. */
export async function readRun(out: string): Promise<{ recipe: TrainRecipe; progress: Progress }> {
  const path = checkpointPath(out)
  await using file = await openSafetensors(path)
  const { metadata } = file
  expect(
    metadata.selscan === version,
    "BAD_CHECKPOINT",
    () => `${path}: a training checkpoint of version ${version} is expected, got ${metadata.selscan ?? "another file"}`,
  )
  try {
    const recipe = JSON.parse(metadata.recipe ?? "") as TrainRecipe
    const progress = JSON.parse(metadata.progress ?? "") as Progress
    checkRecipe(recipe)
    checkProgress(progress)
    return { recipe, progress }
  } catch (cause) {
    throw new SelscanError(
      "BAD_CHECKPOINT",
      `${path}: a recipe and progress of this trainer are expected, got others (${(cause as Error).message})`,
      { path },
      { cause },
    )
  }
}

function checkProgress({ step, bytesSeen, seconds }: Progress): void {
  for (const [name, value] of Object.entries({ step, bytesSeen, seconds })) {
    expect(
      Number.isFinite(value) && value >= 0 && (name === "seconds" || Number.isSafeInteger(value)),
      "BAD_CHECKPOINT",
      () => `${name} is a number of at least 0, got ${value}`,
    )
  }
}

/** Puts every stored value of a checkpoint back onto the device. */
export async function restoreRun(out: string, store: Store, slots: StoredSlots): Promise<void> {
  const path = checkpointPath(out)
  await using file = await openSafetensors(path)
  for (const kind of kinds) {
    for (const slot of slots.get(kind) ?? []) {
      const name = kind === "weight" ? slot.name : `${kind}:${slot.name}`
      const info = file.tensors.get(name)
      expect(
        info !== undefined && info.dtype === fileDtype(slot) && `${info.shape}` === `${slot.shape}`,
        "BAD_CHECKPOINT",
        () =>
          `${path}: ${name} is expected as ${fileDtype(slot)} [${slot.shape}], got ${info === undefined ? "nothing" : `${info.dtype} [${info.shape}]`}`,
      )
      await store.upload(kind, slot, await file.read(name))
    }
  }
}
