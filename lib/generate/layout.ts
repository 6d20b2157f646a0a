/**
 * Where the rows of a program belong: the inputs that say so, and the sizes of the states behind them.
 */
import type { Program } from "../graph/program.ts"
import type { Numerics, Trace } from "../graph/trace.ts"
import type { Dtype } from "../graph/value.ts"
import type { Rings, Rows } from "../layers/layer.ts"
import type { LanguageModel } from "../models/language-model.ts"
import type { Piece, RunInputs } from "../models/patches.ts"

/** What all programs of a model share. */
export interface ModelShape extends Numerics {
  /** Number of slots of every state, 0 among them. */
  readonly slots: number
  /** Of models that have rings; without them segments see their own rows alone. */
  readonly rings?: Omit<Rings, "index">
  readonly matrixDtype: Dtype
  /** Full names of the matrices that are kept in 8 bits. */
  readonly int8?: ReadonlySet<string> | undefined
}

/** A program of so many rows. */
export interface StepShape extends ModelShape {
  readonly rows: number
  /** Of models that read patches: how many a run begins at most; 0 for runs inside one. */
  readonly patches?: number | undefined
}

/** The numerics among the fields of a shape. */
export const numericsOf = ({ precision, activations }: Numerics): Numerics => ({
  ...(precision && { precision }),
  ...(activations && { activations }),
})

/** The rows of so many segments. Inputs: segments (sequences, 5), and rings (sequences) where the model has them. */
export function layoutOf(
  t: Trace,
  model: LanguageModel,
  { slots, rings, matrixDtype, int8, patches }: ModelShape & Pick<StepShape, "patches">,
  sequences = 1,
): Rows {
  const shared = { slots, matrixDtype, int8, ...(model.patches && { patches: patches ?? 0 }) }
  const segments = t.input("segments", "i32", [sequences, 5])
  if (!model.hasRings || rings === undefined) return { segments, ...shared }
  return { segments, ...shared, rings: { ...rings, index: t.input("rings", "i32", [sequences]) } }
}

/** The input beside `segments` of a model that has rings, one for each segment. */
export const ringInput = (model: LanguageModel, rings: readonly number[]): { rings?: Int32Array } =>
  model.hasRings ? { rings: Int32Array.from(rings) } : {}

/** The ids of a program's rows and the inputs of its layout, for the rows that a run has of each sequence; the others are spare. */
export function layoutInputs(program: Program, model: LanguageModel, pieces: readonly Piece[]): RunInputs {
  const shapes = new Map(program.inputs.map(({ name, shape }) => [name, shape]))
  const rows = (shapes.get("ids") ?? shapes.get("local.index"))![0]!
  const ids = new Int32Array(rows).fill(-1)
  for (const { begin, end, ids: own } of pieces) for (let row = begin; row < end; row++) ids[row] = own[row - begin]!
  if (model.patches === undefined) {
    const lines = pieces.flatMap(({ begin, end, position, from, to }) => [begin, end, position, from, to])
    const rings = pieces.map(({ ring }) => ring)
    return { ids, segments: Int32Array.from(lines), ...ringInput(model, rings) }
  }
  const patches = shapes.has("patch.segments") ? shapes.get("local.segments")![0]! : 0
  const inputs = { ids, ...model.patches.inputs(pieces, rows, patches) }
  return Object.fromEntries(Object.entries(inputs).filter(([name]) => shapes.has(name)))
}
