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

/** Row counts that programs are made for. */
export const rowCounts = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] as const

/** The rows of the smallest program that holds so many, or of the largest. */
export const rowsFor = (count: number): number => rowCounts.find((rows) => rows >= count) ?? rowCounts.at(-1)!

/**
 * How many of `count` waiting rows run next. A GPU takes pieces of the largest program, then the rest in the smallest that holds it: it
 * has spare rows for less than the launches of another run.
 *
 * The cpu computes a spare row like any other. There half of such a program's rows run first where that is less work in all: 300 as 256
 * and 44 (of 64), not of 512. Mamba-130M in bf16 on two cores, before and after in turns: 129 rows 0.72 of the time,
 * 300 0.68, 384 0.78, 700 0.94.
 */
export function rowsNext(count: number, device: string): number {
  const rows = rowsFor(count)
  return device === "cpu" && rowsOfWork(count) < rows ? rows / 2 : Math.min(count, rows)
}

/**
 * Rows that cost as much as another run, which reads all weights again: 2 bytes of each at 38 GB/s against its 2 operations a row at
 * 0.9 TFLOP/s are 24, and the row that a token is chosen after adds some. With 24 itself, 33 rows ran as 32 and 1, in 1.10 of the time.
 */
const runRows = 32

/** What so many rows cost, in rows, but for the one run that they need at least. */
function rowsOfWork(count: number): number {
  const rows = rowsFor(count)
  return count < rows ? Math.min(rows, rows / 2 + runRows + rowsOfWork(count - rows / 2)) : rows
}
