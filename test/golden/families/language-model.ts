import { expect } from "../../../lib/errors.ts"
import { layoutOf, type ModelShape, ringInput } from "../../../lib/generate/layout.ts"
import { gradients } from "../../../lib/graph/gradient.ts"
import { type Program, trace } from "../../../lib/graph/program.ts"
import { allParameters } from "../../../lib/layers/layer.ts"
import type { MambaBlock } from "../../../lib/models/config.ts"
import type { Store } from "../../../lib/native.ts"
import { arithmetic } from "../../../lib/ops/cast.ts"
import { linear } from "../../../lib/ops/linear.ts"
import { linearCrossEntropy } from "../../../lib/ops/linear-cross-entropy.ts"
import { sum } from "../../../lib/ops/reduce.ts"
import type { GoldenCase } from "../case.ts"
import { type Comparison, compare } from "../compare.ts"
import { type CaseFamily, run, runOn } from "../family.ts"
import { type Checkpoint, inFile, readCheckpoint, storeOf } from "./model-checkpoint.ts"

/**
 * logits_L{n} of ids_L{n} (B,n), in one run, and of the longest ids one token at a time too; logits_{dtype}_weights_L{n} of the same ids
 * with the weights of that dtype's checkpoint, computed in f32; loss of loss_ids and its gradients by the file's names; conv_state.K
 * and ssm_state.K after the longest ids.
 *
 * logits_rope_bf16_L{n} come from tables of sine and cosine that the reference rounds to bf16, relatively by up to 2⁻⁹. Ours are exact;
 * they may differ by that much of the largest logit. Of the case `samba` the reference's own two answers differ by 0.0117 of 6.9,
 * which is 0.86 of it; without rotary positions they are the same, and so is their tolerance.
 */
export const languageModelFamily: CaseFamily = {
  ops: [
    "mamba language_model",
    "falcon_mamba language_model",
    "samba language_model",
    "llama language_model",
    "mistral language_model",
  ],
  run: async (golden) => {
    const checkpoint = await readCheckpoint(golden, "f32")
    const longest = Math.max(...golden.names("in.ids_L").map(Number))
    const comparisons: Comparison[] = []
    for (const name of golden.names("out.logits_")) {
      const [, dtype = "f32", tables, length] = /^(?:(f16|bf16|f32)_weights_)?(rope_bf16_)?L(\d+)$/.exec(name) ?? []
      if (length === undefined) continue
      const from = dtype === "f32" ? checkpoint : await readCheckpoint(golden, dtype)
      const plain = dtype === "f32" && tables === undefined
      const asked = {
        name,
        ids: `in.ids_L${length}`,
        last: plain && Number(length) === longest,
        tables: tables !== undefined,
      }
      comparisons.push(...(await compareLogits(golden, from, asked)))
    }
    if (golden.has("in.loss_ids")) comparisons.push(...(await compareLoss(golden, checkpoint)))
    return comparisons
  },
}

interface Asked {
  readonly name: string
  readonly ids: string
  /** The longest: its states are compared, and the same ids one by one. */
  readonly last: boolean
  /** Expected with rounded tables. */
  readonly tables: boolean
}

async function compareLogits(golden: GoldenCase, checkpoint: Checkpoint, asked: Asked): Promise<Comparison[]> {
  const { network, config } = checkpoint
  const [batch = 1, length = 1] = golden.shape(asked.ids)
  const program = logitsProgram(checkpoint, batch, length)
  await using store = await storeOf(program, checkpoint)
  const ids = golden.integers(asked.ids)
  // Slot and ring 0 are nobody's; sequence b begins fresh and leaves its state in slot b + 1.
  const segments = Array.from({ length: batch }, (_, b) => [b * length, (b + 1) * length, 0, 0, b + 1])
  const inputs = { ids, segments: Int32Array.from(segments.flat()), ...ringInput(network, ringsOf(batch)) }
  const { logits } = await runOn(store, program, inputs)
  const name = `out.logits_${asked.name}`
  const turning = config.pattern.some((block) => block.kind === "attention" && block.rope !== false)
  if (asked.tables && turning) {
    const largest = golden.floats(name).reduce((most, value) => Math.max(most, Math.abs(value)), 0)
    return [compare(golden, name, logits!, { tolerance: { atol: largest * 2 ** -9, rtol: 0 } })]
  }
  const comparisons = [compare(golden, name, logits!)]
  if (!asked.last) return comparisons
  const stepped = await stepLogits(checkpoint, ids, batch, length)
  return [...comparisons, compare(golden, name, stepped), ...(await compareStates(golden, checkpoint, store, batch))]
}

const ringsOf = (batch: number) => Array.from({ length: batch }, (_, b) => b + 1)

/** Logits of every row. Each sequence has two slots, used in turn, and a ring. */
function logitsProgram({ network }: Checkpoint, batch: number, length: number): Program {
  const shape: ModelShape = {
    slots: 2 * batch + 1,
    rings: { count: batch + 1, rowsMost: length },
    matrixDtype: "f32",
  }
  return trace("logits", (t) => {
    const rows = layoutOf(t, network, shape, batch)
    const x = network.forward(t.input("ids", "i32", [batch * length]), rows)
    return { logits: linear({ x, ...network.head(rows) }).y }
  })
}

/** The same logits, one token of every sequence at a time: what is before it comes out of slots and rings. */
async function stepLogits(
  checkpoint: Checkpoint,
  ids: Int32Array,
  batch: number,
  length: number,
): Promise<Float32Array> {
  const { network } = checkpoint
  const { vocab } = network
  const program = logitsProgram(checkpoint, batch, 1)
  await using store = await storeOf(program, checkpoint)
  const executable = await store.compile(program)
  const all = new Float32Array(batch * length * vocab)
  const slot = (b: number, position: number) => 1 + b + batch * (position % 2)
  for (let position = 0; position < length; position++) {
    const from = (b: number) => (position === 0 ? 0 : slot(b, position - 1))
    const segments = Array.from({ length: batch }, (_, b) => [b, b + 1, position, from(b), slot(b, position)])
    const inputs = {
      ids: Int32Array.from({ length: batch }, (_, b) => ids[b * length + position]!),
      segments: Int32Array.from(segments.flat()),
      ...ringInput(network, ringsOf(batch)),
    }
    const { logits } = await run(executable, inputs)
    for (let b = 0; b < batch; b++) {
      all.set(logits!.subarray(b * vocab, (b + 1) * vocab), (b * length + position) * vocab)
    }
  }
  return all
}

/** What the Mamba blocks of a store have kept. */
async function compareStates(
  golden: GoldenCase,
  { config }: Checkpoint,
  store: Store,
  batch: number,
): Promise<Comparison[]> {
  const comparisons: Comparison[] = []
  for (let layer = 0; layer < config.depth; layer++) {
    const [conv, ssm] = [`out.conv_state.${layer}`, `out.ssm_state.${layer}`]
    if (!golden.has(conv) && !golden.has(ssm)) continue
    const block = config.pattern[layer % config.pattern.length] as MambaBlock
    const state = async (which: string, size: number) => {
      const bytes = await store.download("state", `backbone.layers.${layer}.mixer.${which}`, size * 4, batch * size * 4)
      return new Float32Array(bytes.buffer)
    }
    const columns = block.conv - 1
    // The file keeps one input more than a convolution of that width ever reads again.
    if (golden.has(conv))
      comparisons.push(compare(golden, conv, await state("conv", block.inner * columns), { columns }))
    if (golden.has(ssm)) comparisons.push(compare(golden, ssm, await state("ssm", block.inner * block.state)))
  }
  return comparisons
}

/** Mean cross-entropy of logits[:, :−1] against ids[:, 1:], and its gradients. */
async function compareLoss(golden: GoldenCase, checkpoint: Checkpoint): Promise<Comparison[]> {
  const { network, tensors } = checkpoint
  const { batch, length, ids, targets, segments } = shifted(golden.integers("in.loss_ids"), golden.shape("in.loss_ids"))
  const wanted = golden.names("grad.").filter((name) => tensors.has(name))
  const names = [...new Set(wanted.flatMap((name) => tensors.get(name)!.parts.map((part) => part.name)))]
  const parameters = allParameters(network)
  const program = trace("loss", (t) => {
    const rows = { segments: t.input("segments", "i32", [batch, 5]), matrixDtype: "f32" } as const
    const x = network.forward(t.input("ids", "i32", [batch * length]), rows)
    const targets = t.input("targets", "i32", [batch * length])
    const total = sum({ x: linearCrossEntropy({ x, ...network.head(rows), targets }).losses }).y
    const values = names.map((name) => t.weight(name, "f32", parameters.get(name)!.shape))
    const seed = t.input("seed", "f32", [])
    const grads = values.length === 0 ? [] : gradients([[total, seed]], values, arithmetic)
    return { total, ...Object.fromEntries(names.map((name, i) => [`grad ${name}`, grads[i]!])) }
  })
  await using store = await storeOf(program, checkpoint)
  const seed = Float32Array.of(1 / (batch * length))
  const { total, ...grads } = await runOn(store, program, { ids, targets, segments, seed })
  const loss = Float32Array.of(total![0]! / (batch * length))
  const compared = wanted.map((name) => {
    return compare(
      golden,
      `grad.${name}`,
      inFile(tensors.get(name)!, (ours) => grads[`grad ${ours}`]!),
    )
  })
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
