/**
 * Judging a model by the bits it needs per byte.
 */

import { type Program, trace } from "../graph/program.ts"
import type { Numerics } from "../graph/trace.ts"
import type { Dtype } from "../graph/value.ts"
import type { Rows } from "../layers/layer.ts"
import type { LanguageModel } from "../models/language-model.ts"
import type { Executable, HostArray } from "../native.ts"
import { linearCrossEntropy } from "../ops/linear-cross-entropy.ts"

/** Rows that a scoring run takes; long enough that the head and the linears work on full blocks. */
export const scoreRows = 1024

/** Losses of `rows` tokens of one sequence. Inputs: ids, targets (−100: not judged), segments (1, 5). Output: losses in nats. */
export function scoreProgram(
  model: LanguageModel,
  { rows, slots, matrixDtype, ...numerics }: Numerics & { rows: number; slots: number; matrixDtype: Dtype },
): Program {
  return trace(
    "score",
    (t) => {
      const layout: Rows = { segments: t.input("segments", "i32", [1, 5]), slots, matrixDtype }
      const x = model.forward(t.input("ids", "i32", [rows]), layout)
      const targets = t.input("targets", "i32", [rows])
      return {
        losses: linearCrossEntropy({ x, weight: model.head(layout), targets }, { precision: t.precision }).losses,
      }
    },
    numerics,
  )
}

/**
 * Nats of every token of `ids` given all before it, the state carried over the whole sequence; the first token is not judged
 * (NaN in its place). `slots` names two free slots; they are read and written in turn.
 */
export async function tokenLosses(
  executable: Executable,
  ids: ArrayLike<number>,
  slots: readonly [number, number],
  { signal, onProgress }: { signal?: AbortSignal | undefined; onProgress?: (done: number) => void } = {},
): Promise<Float32Array> {
  const rows = executable.program.inputs.find((slot) => slot.name === "ids")!.shape[0]!
  const losses = new Float32Array(ids.length).fill(Number.NaN)
  for (let begin = 0, turn = 0; begin < ids.length - 1; begin += rows, turn++) {
    const count = Math.min(rows, ids.length - 1 - begin)
    const segments = Int32Array.of(0, count, begin, turn === 0 ? 0 : slots[turn % 2]!, slots[(turn + 1) % 2]!)
    const piece = (from: number, spare: number) =>
      Int32Array.from({ length: rows }, (_, i) => (i < count ? ids[from + i]! : spare))
    const inputs: Record<string, HostArray> = { ids: piece(begin, -1), targets: piece(begin + 1, -100), segments }
    const outputs = await executable.run(inputs, { signal })
    losses.set((outputs.losses as Float32Array).subarray(0, count), begin + 1)
    onProgress?.(begin + count + 1)
  }
  return losses
}

/** Bits per byte of a text of bytes: the first is charged 8 bits, as nothing is known before it. */
export function bitsPerByte(losses: Float32Array): number {
  if (losses.length === 0) return Number.NaN
  let nats = 8 * Math.LN2
  for (let i = 1; i < losses.length; i++) nats += losses[i]!
  return nats / Math.LN2 / losses.length
}
