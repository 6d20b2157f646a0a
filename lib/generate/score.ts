/**
 * Judging a model by the bits it needs per byte.
 */
import { checkOptions, checkSignal, expect } from "../errors.ts"
import { type Program, trace } from "../graph/program.ts"
import { headOf, type LanguageModel } from "../models/language-model.ts"
import { startId } from "../models/patches.ts"
import type { Executable } from "../native.ts"
import { linearCrossEntropy } from "../ops/linear-cross-entropy.ts"
import { layoutInputs, layoutOf, numericsOf, type StepShape } from "./layout.ts"
import type { Place } from "./places.ts"
import { rowCounts, rowsFor } from "./programs.ts"

/** Rows that a scoring run takes at most; long enough that the head and the linears work on full blocks. */
export const scoreRows = 1024

/** The rows of the program that scores so many at once; how many they are changes no bits. */
export const scoreRowsFor = (count: number): number => (count > rowCounts.at(-1)! ? scoreRows : rowsFor(count))

/**
 * Losses of `rows` tokens of one sequence, from the first of a patch on unless `shape.patches` is 0. Inputs: ids, targets
 * (−100: not judged), those of the layout. Output: losses in nats.
 */
export function scoreProgram(model: LanguageModel, shape: StepShape): Program {
  return trace(
    "score",
    (t) => {
      const patches = shape.patches ?? model.patches?.mostBegun(0, shape.rows)
      const layout = layoutOf(t, model, { ...shape, patches })
      const x = model.forward(t.input("ids", "i32", [shape.rows]), layout)
      const targets = t.input("targets", "i32", [shape.rows])
      return {
        losses: linearCrossEntropy({ x, ...headOf(model, layout), targets }, { precision: t.precision }).losses,
      }
    },
    numericsOf(shape),
  )
}

export interface ScoreOptions {
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: (done: number) => void
  /** Tokens after which the state is emptied. Default: never. */
  readonly context?: number | undefined
}

/** Throws BAD_OPTION for options of other names and for what is no signal or function, ABORTED for a signal that has fired. */
export function checkScoreOptions(where: string, options: ScoreOptions, known: readonly (keyof ScoreOptions)[]): void {
  checkOptions(where, options, known)
  const { signal, onProgress } = options
  expect(
    onProgress === undefined || typeof onProgress === "function",
    "BAD_OPTION",
    () => `${where}: onProgress is a function, got ${onProgress === null ? "null" : typeof onProgress}`,
    { option: "onProgress" },
  )
  checkSignal(where, signal)
}

/** What scores a model: its program. */
export interface Scorer {
  readonly model: LanguageModel
  readonly executable: Executable
}

/**
 * Nats of every token of `ids` given all before it, the state carried over the whole sequence; the first token is not judged
 * (NaN in its place) unless the model's sequences begin with a row of no token. With `context` the state is emptied after every so
 * many tokens. The first two slots of `place` are read and written in turn.
 */
export async function tokenLosses(
  scorer: Scorer,
  ids: ArrayLike<number>,
  place: Place,
  { signal, onProgress, context = Number.POSITIVE_INFINITY }: ScoreOptions = {},
): Promise<Float32Array> {
  const losses = new Float32Array(ids.length).fill(Number.NaN)
  for (const run of cutRows(scorer, ids.length, context)) {
    const outputs = await scorer.executable.run(runInputs(scorer, ids, place, run), { signal })
    losses.set((outputs.losses as Float32Array).subarray(0, run.count), run.target)
    onProgress?.(run.target + run.count)
  }
  return losses
}

/** One run: its first row's position, what that row predicts, and the slot that it continues in turn. */
interface ScoreRun {
  readonly count: number
  readonly position: number
  readonly target: number
  readonly turn: number
}

/** Runs over rows that predict every token in turn; of a model without a start row the first has nobody to predict it. */
function* cutRows({ model: { patches }, executable }: Scorer, tokens: number, context: number): Generator<ScoreRun> {
  const rows = rowsOf(executable)
  let count = 0
  for (let target = patches ? 0 : 1, turn = 0; target < tokens; target += count, turn++) {
    const position = (target - (patches ? 0 : 1)) % context
    const wanted = Math.min(context - position, tokens - target)
    count = patches ? patches.cut(position, wanted, rows) : Math.min(rows, wanted)
    yield { count, position, target, turn }
  }
}

function runInputs(scorer: Scorer, ids: ArrayLike<number>, { slots, ring }: Place, run: ScoreRun) {
  const { model, executable } = scorer
  const { count, position, target, turn } = run
  const tokens = (first: number, end: number) =>
    Array.from({ length: end - first }, (_, i) => (first + i < 0 ? startId : ids[first + i]!))
  const own = tokens(target - 1, target - 1 + count)
  if (model.patches && position === 0) own[0] = startId
  const before = tokens(Math.max(0, target - 1 - (model.patches?.size ?? 0)), Math.max(0, target - 1))
  const [from, to] = [position === 0 ? 0 : slots[turn % 2]!, slots[(turn + 1) % 2]!]
  const piece = { begin: 0, end: count, position, from, to, ring, ids: own, before }
  const targets = new Int32Array(rowsOf(executable)).fill(-100)
  for (let i = 0; i < count; i++) targets[i] = ids[target + i]!
  return { targets, ...layoutInputs(executable.program, model, [piece]) }
}

const rowsOf = ({ program }: Executable): number => program.inputs.find(({ name }) => name === "targets")!.shape[0]!

/**
 * Bits per byte of a text of so many bytes (default: a token is one): a first token that was not judged is charged as one of `vocab`
 * (default 256, which is 8 bits), as nothing is known before it.
 */
export function bitsPerByte(
  losses: Float32Array,
  judged: "all" | "rest" = "rest",
  { bytes = losses.length, vocab = 256 } = {},
): number {
  if (losses.length === 0) return Number.NaN
  let nats = judged === "all" ? losses[0]! : Math.log2(vocab) * Math.LN2
  for (let i = 1; i < losses.length; i++) nats += losses[i]!
  return nats / Math.LN2 / bytes
}
