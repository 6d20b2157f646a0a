import { expect } from "../../../lib/errors.ts"
import { gradients } from "../../../lib/graph/gradient.ts"
import { type Program, trace } from "../../../lib/graph/program.ts"
import { allParameters } from "../../../lib/layers/layer.ts"
import { Store } from "../../../lib/native.ts"
import { arithmetic } from "../../../lib/ops/cast.ts"
import { linear } from "../../../lib/ops/linear.ts"
import { linearCrossEntropy } from "../../../lib/ops/linear-cross-entropy.ts"
import { sum } from "../../../lib/ops/reduce.ts"
import { device } from "../../device.ts"
import type { GoldenCase } from "../case.ts"
import { type Comparison, compare } from "../compare.ts"
import { type Family, runOn } from "../family.ts"
import { type MambaCheckpoint, readCheckpoint } from "./mamba-checkpoint.ts"

/**
 * logits_L{n} of ids_L{n} (B,n); logits_{dtype}_weights_L{n} of the same ids with the weights of that dtype's checkpoint,
 * computed in f32; loss of loss_ids and its gradients by parameter name; conv_state.K and ssm_state.K after the longest ids.
 */
export const mambaModelFamily: Family = {
  ops: ["mamba language_model"],
  run: async (golden) => {
    const checkpoint = await readCheckpoint(golden, "f32")
    const longest = Math.max(...golden.names("in.ids_L").map(Number))
    const comparisons: Comparison[] = []
    for (const name of golden.names("out.logits_")) {
      const [, dtype = "f32", length] = /^(?:(f16|bf16|f32)_weights_)?L(\d+)$/.exec(name) ?? []
      if (length === undefined) continue
      const from = dtype === "f32" ? checkpoint : await readCheckpoint(golden, dtype)
      const states = dtype === "f32" && Number(length) === longest
      comparisons.push(...(await compareLogits(golden, from, { name, ids: `in.ids_L${length}`, states })))
    }
    if (golden.has("in.loss_ids")) comparisons.push(...(await compareLoss(golden, checkpoint)))
    return comparisons
  },
}

async function compareLogits(
  golden: GoldenCase,
  checkpoint: MambaCheckpoint,
  { name, ids, states }: { name: string; ids: string; states: boolean },
): Promise<Comparison[]> {
  const { model, config } = checkpoint
  const [batch = 1, length = 1] = golden.shape(ids)
  const program = trace("logits", (t) => {
    const rows = { segments: t.input("segments", "i32", [batch, 5]), slots: batch + 1, matrixDtype: "f32" } as const
    const x = model.forward(t.input("ids", "i32", [batch * length]), rows)
    return { logits: linear({ x, weight: model.head(rows) }).y }
  })
  await using store = await storeOf(program, checkpoint)
  // Slot 0 is nobody's; sequence b begins fresh and leaves its state in slot b + 1.
  const segments = Array.from({ length: batch }, (_, b) => [b * length, (b + 1) * length, 0, 0, b + 1])
  const inputs = { ids: golden.integers(ids), segments: Int32Array.from(segments.flat()) }
  const { logits } = await runOn(store, program, inputs)
  const comparisons = [compare(golden, `out.logits_${name}`, logits!)]
  for (const layer of states ? Array.from({ length: config.layers }, (_, i) => i) : []) {
    const state = async (which: string, size: number) => {
      const bytes = await store.download("state", `backbone.layers.${layer}.mixer.${which}`, size * 4, batch * size * 4)
      return new Float32Array(bytes.buffer)
    }
    const [conv, ssm] = [`out.conv_state.${layer}`, `out.ssm_state.${layer}`]
    const tail = config.conv - 1
    // The file keeps one input more than a convolution of that width ever reads again.
    if (golden.has(conv)) comparisons.push(compare(golden, conv, await state("conv", config.inner * tail), tail))
    if (golden.has(ssm)) comparisons.push(compare(golden, ssm, await state("ssm", config.inner * config.state)))
  }
  return comparisons
}

/** Mean cross-entropy of logits[:, :−1] against ids[:, 1:], and its gradients. */
async function compareLoss(golden: GoldenCase, checkpoint: MambaCheckpoint): Promise<Comparison[]> {
  const { model, names } = checkpoint
  const { batch, length, ids, targets, segments } = shifted(golden.integers("in.loss_ids"), golden.shape("in.loss_ids"))
  const wanted = golden.names("grad.").filter((name) => names.has(name))
  const parameters = allParameters(model)
  const program = trace("loss", (t) => {
    const rows = { segments: t.input("segments", "i32", [batch, 5]), matrixDtype: "f32" } as const
    const x = model.forward(t.input("ids", "i32", [batch * length]), rows)
    const targets = t.input("targets", "i32", [batch * length])
    const total = sum({ x: linearCrossEntropy({ x, weight: model.head(rows), targets }).losses }).y
    const values = wanted.map((name) => {
      const ours = names.get(name)!
      return t.weight(ours, "f32", parameters.get(ours)!.shape)
    })
    const seed = t.input("seed", "f32", [])
    const grads = values.length === 0 ? [] : gradients([[total, seed]], values, arithmetic)
    return { total, ...Object.fromEntries(wanted.map((name, i) => [`grad.${name}`, grads[i]!])) }
  })
  await using store = await storeOf(program, checkpoint)
  const seed = Float32Array.of(1 / (batch * length))
  const { total, ...grads } = await runOn(store, program, { ids, targets, segments, seed })
  const loss = Float32Array.of(total![0]! / (batch * length))
  const compared = Object.entries(grads).map(([name, data]) => compare(golden, name, data))
  return golden.has("out.loss") ? [compare(golden, "out.loss", loss), ...compared] : compared
}

/** Inputs that predict their next token: all but the last of each sequence, and all but the first. */
export function shifted(all: Int32Array, [batch = 1, tokens = 2]: readonly number[]) {
  const length = tokens - 1
  expect(
    length >= 1 && all.length === batch * tokens,
    "BAD_FILE",
    () => `loss_ids: sequences have at least 2 tokens, got ${tokens}`,
  )
  return {
    batch,
    length,
    ids: all.filter((_, i) => i % tokens < length),
    targets: all.filter((_, i) => i % tokens > 0),
    segments: Int32Array.from(Array.from({ length: batch }, (_, b) => [b * length, (b + 1) * length, 0, 0, 0]).flat()),
  }
}

/** A store that holds the weights a program reads. */
export async function storeOf(program: Program, { weights }: MambaCheckpoint): Promise<Store> {
  const store = new Store(device)
  for (const slot of program.stored("weight")) {
    const data = weights.get(slot.name)
    expect(data !== undefined, "BAD_CHECKPOINT", () => `golden: weight ${slot.name} is in the checkpoint, got none`)
    await store.upload("weight", slot, data)
  }
  return store
}
