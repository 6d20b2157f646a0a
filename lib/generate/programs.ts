/**
 * The programs of generation: T token rows of one sequence, and the token that follows the last of them.
 */
import { type Program, trace } from "../graph/program.ts"
import { headOf, type LanguageModel } from "../models/language-model.ts"
import { gatherRows } from "../ops/columns.ts"
import { linear } from "../ops/linear.ts"
import { recordTokens, sample } from "../ops/sample.ts"
import { layoutOf, numericsOf, type StepShape } from "./layout.ts"

/**
 * `prompt`: rows that the caller gave; they enter the penalty history. `next`: one row that was sampled before, and is in
 * the history already. Inputs: ids (rows; −1 spare), those of the layout, picks (1; the row whose logits are wanted), and those of
 * the sample op. Outputs: ids, logprobs, and on request logits. Of a model that reads patches, `shape.patches` says which of its two programs this is.
 */
export function stepProgram(
  model: LanguageModel,
  kind: "prompt" | "next",
  shape: StepShape,
  withLogits = false,
): Program {
  const { rows, slots } = shape
  return trace(
    `${kind} ${rows}`,
    (t) => {
      const layout = layoutOf(t, model, shape)
      const ids = t.input("ids", "i32", [rows])
      const hidden = model.forward(ids, layout)
      const history = t.state("history", "i32", [slots, model.vocab])
      if (kind === "prompt") recordTokens({ ids, segments: layout.segments, history })
      const x = gatherRows({ x: hidden, index: t.input("picks", "i32", [1]) }).y
      const logits = linear({ x, ...headOf(model, layout) }, { precision: t.precision, dtype: "f32" }).y
      const chosen = sample({
        logits,
        settings: t.input("settings", "f32", [1, 6]),
        limits: t.input("limits", "i32", [1, 5]),
        position: t.input("position", "i32", [1]),
        history,
      })
      return { ...chosen, ...(withLogits && { logits }) }
    },
    numericsOf(shape),
  )
}

/** Row counts that programs are made for: a prompt runs as pieces of the largest, the rest in the smallest that holds it. */
export const rowCounts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] as const

export const rowsFor = (count: number): number => rowCounts.find((rows) => rows >= count) ?? rowCounts.at(-1)!
