import { expect } from "../../../lib/errors.ts"
import { layoutInputs, layoutOf } from "../../../lib/generate/layout.ts"
import { gradients } from "../../../lib/graph/gradient.ts"
import { trace } from "../../../lib/graph/program.ts"
import { allParameters } from "../../../lib/layers/layer.ts"
import { headOf } from "../../../lib/models/language-model.ts"
import { MegaByte } from "../../../lib/models/megabyte.ts"
import { type Piece, startId } from "../../../lib/models/patches.ts"
import { arithmetic } from "../../../lib/ops/cast.ts"
import { linearCrossEntropy } from "../../../lib/ops/linear-cross-entropy.ts"
import { sum } from "../../../lib/ops/reduce.ts"
import { logitsAtOnce, logitsByRow, shapeOf } from "../../models/megabyte-runs.ts"
import type { GoldenCase } from "../case.ts"
import { type Comparison, compare } from "../compare.ts"
import { type CaseFamily, run } from "../family.ts"
import { type AnyCheckpoint, inFile, readAny, storeOf } from "./model-checkpoint.ts"

/**
 * logits_L{n} of ids_L{n} (B,n) in one run, and of the longest one row at a time too; loss of loss_ids, which judges every id, the first
 * from the start alone, and its gradients by the file's names. Ids equal to pad_id, 0, would not be judged there; the file has none.
 */
export const megabyteFamily: CaseFamily = {
  ops: ["megabyte language_model"],
  run: async (golden) => {
    const checkpoint = await readAny(golden, "f32")
    const lengths = golden.names("out.logits_L").map(Number)
    const comparisons: Comparison[] = []
    for (const length of lengths) {
      const ids = idsOf(golden, `in.ids_L${length}`)
      const name = `out.logits_L${length}`
      for (const run of length === Math.max(...lengths) ? [logitsAtOnce, logitsByRow] : [logitsAtOnce]) {
        const logits = await run(megabyteOf(checkpoint), (program) => storeOf(program, checkpoint), ids)
        comparisons.push(compare(golden, name, withoutStart(logits, ids.length, checkpoint.network.vocab)))
      }
    }
    return [...comparisons, ...(await compareLoss(golden, checkpoint))]
  },
}

function megabyteOf({ network }: AnyCheckpoint): MegaByte {
  expect(network instanceof MegaByte, "BAD_CHECKPOINT", () => "golden: a MegaByte is expected, got another model")
  return network
}

/** The ids of each sequence. */
function idsOf(golden: GoldenCase, name: string): number[][] {
  const [batch = 1, length = 1] = golden.shape(name)
  const all = [...golden.integers(name)]
  return Array.from({ length: batch }, (_, b) => all.slice(b * length, (b + 1) * length))
}

/** The file has no logits of the start. */
function withoutStart(logits: Float32Array, batch: number, vocab: number): Float32Array {
  const size = logits.length / batch
  return Float32Array.from(
    Array.from({ length: batch }, (_, b) => [...logits.subarray(b * size + vocab, (b + 1) * size)]).flat(),
  )
}

async function compareLoss(golden: GoldenCase, checkpoint: AnyCheckpoint): Promise<Comparison[]> {
  const [model, { tensors }] = [megabyteOf(checkpoint), checkpoint]
  const ids = idsOf(golden, "in.loss_ids")
  const [batch, length] = [ids.length, ids[0]!.length]
  const wanted = golden.names("grad.").filter((name) => tensors.has(name))
  const names = [...new Set(wanted.flatMap((name) => tensors.get(name)!.parts.map((part) => part.name)))]
  const parameters = allParameters(model)
  const program = trace("loss", (t) => {
    const patches = batch * model.patches.mostBegun(0, length)
    const { slots: _, rings: __, ...rows } = layoutOf(t, model, { ...shapeOf(batch), patches }, batch)
    const x = model.forward(t.input("ids", "i32", [batch * length]), rows)
    const targets = t.input("targets", "i32", [batch * length])
    const total = sum({ x: linearCrossEntropy({ x, ...headOf(model, rows), targets }).losses }).y
    const weights = names.map((name) => t.weight(name, "f32", parameters.get(name)!.shape))
    const grads = gradients([[total, t.input("seed", "f32", [])]], weights, arithmetic)
    return { total, ...Object.fromEntries(names.map((name, i) => [`grad ${name}`, grads[i]!])) }
  })
  await using store = await storeOf(program, checkpoint)
  const pieces = ids.map((own, b): Piece => {
    const place = { begin: b * length, end: (b + 1) * length, position: 0, from: 0, to: 0, ring: 0 }
    return { ...place, ids: [startId, ...own.slice(0, -1)] }
  })
  const inputs = { targets: Int32Array.from(ids.flat()), seed: Float32Array.of(1 / (batch * length)) }
  const { total, ...grads } = await run(await store.compile(program), {
    ...inputs,
    ...layoutInputs(program, model, pieces),
  })
  const compared = wanted.map((name) =>
    compare(
      golden,
      `grad.${name}`,
      inFile(tensors.get(name)!, (ours) => grads[`grad ${ours}`]!),
    ),
  )
  return [compare(golden, "out.loss", Float32Array.of(total![0]! / (batch * length))), ...compared]
}
