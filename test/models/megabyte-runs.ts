/**
 * Logits of a MegaByte in one run and row by row, for the golden case and for tests.
 */
import { layoutInputs, layoutOf, type ModelShape } from "../../lib/generate/layout.ts"
import { type Program, trace } from "../../lib/graph/program.ts"
import { headOf } from "../../lib/models/language-model.ts"
import type { MegaByte } from "../../lib/models/megabyte.ts"
import { type Piece, startId } from "../../lib/models/patches.ts"
import type { Store } from "../../lib/native.ts"
import { linear } from "../../lib/ops/linear.ts"

/** Slot and ring 0 are nobody's; each sequence has two slots, used in turn, and a ring. */
export const shapeOf = (batch: number): ModelShape => ({
  slots: 2 * batch + 1,
  rings: { count: batch + 1, rowsMost: 1 },
  matrixDtype: "f32",
})

/** A program of so many rows of each sequence, which begins at most so many patches in all. */
export function logitsProgram(model: MegaByte, batch: number, rows: number, patches: number): Program {
  return trace("logits", (t) => {
    const layout = layoutOf(t, model, { ...shapeOf(batch), patches }, batch)
    const x = model.forward(t.input("ids", "i32", [batch * rows]), layout)
    return { logits: linear({ x, ...headOf(model, layout) }).y }
  })
}

/** Makes a store that holds the weights a program reads. */
type MakeStore = (program: Program) => Promise<Store>

/** Logits of every row, (batch, 1 + length, vocab): the first is the start's. */
export async function logitsAtOnce(
  model: MegaByte,
  makeStore: MakeStore,
  ids: readonly (readonly number[])[],
): Promise<Float32Array> {
  const rows = ids[0]!.length + 1
  const program = logitsProgram(model, ids.length, rows, ids.length * model.patches.mostBegun(0, rows))
  await using store = await makeStore(program)
  const pieces = ids.map((own, b): Piece => {
    const place = { begin: b * rows, end: (b + 1) * rows, position: 0, from: 0, to: 1 + b, ring: 1 + b }
    return { ...place, ids: [startId, ...own] }
  })
  const executable = await store.compile(program)
  return (await executable.run(layoutInputs(program, model, pieces))).logits as Float32Array
}

/** The same, one row of every sequence at a time: what is before it comes out of slots and rings. */
export async function logitsByRow(
  model: MegaByte,
  makeStore: MakeStore,
  ids: readonly (readonly number[])[],
): Promise<Float32Array> {
  const { patches, vocab } = model
  const [batch, rows] = [ids.length, ids[0]!.length + 1]
  const [begin, inside] = [logitsProgram(model, batch, 1, batch), logitsProgram(model, batch, 1, 0)]
  await using store = await makeStore(begin)
  const [beginning, going] = [await store.compile(begin), await store.compile(inside)]
  const all = new Float32Array(batch * rows * vocab)
  const slot = (b: number, turn: number) => (turn === 0 ? 0 : 1 + b + batch * (turn % 2))
  for (let position = 0, begun = 0; position < rows; position++) {
    const begins = patches.begins(position)
    const pieces = ids.map((own, b): Piece => {
      const turn = { from: slot(b, position), to: slot(b, position + 1) }
      const patchTurn = { patchFrom: slot(b, begun), patchTo: slot(b, begun + 1) }
      const [id, before] = [position === 0 ? startId : own[position - 1]!, own.slice(0, Math.max(0, position - 1))]
      return { begin: b, end: b + 1, position, ...turn, ...patchTurn, ring: 1 + b, ids: [id], before }
    })
    if (begins) begun++
    const executable = begins ? beginning : going
    const outputs = await executable.run(layoutInputs(executable.program, model, pieces))
    const logits = outputs.logits as Float32Array
    for (let b = 0; b < batch; b++) all.set(logits.subarray(b * vocab, (b + 1) * vocab), (b * rows + position) * vocab)
  }
  return all
}
