/**
 * Weights in pieces: one is read ahead, and every one is held to be finite.
 */
import test from "ava"
import type { FileTensor } from "../../lib/checkpoint/family.ts"
import type { StoredTensor, TensorSource } from "../../lib/checkpoint/source.ts"
import { readPieces } from "../../lib/checkpoint/weights.ts"
import { SelscanError } from "../../lib/errors.ts"

/** A tensor of bf16 in memory; reading it fails from byte `failsAt` on. */
function sourceOf(halves: Uint16Array, failsAt = Number.POSITIVE_INFINITY): [TensorSource, FileTensor[]] {
  const bytes = new Uint8Array(halves.buffer)
  const shape = [halves.length]
  const stored: StoredTensor = { name: "w", dtype: "BF16", shape, sizeBytes: bytes.length }
  const source: TensorSource = {
    path: "memory",
    tensors: new Map([["w", stored]]),
    async readInto(_, target, from = 0) {
      await new Promise((resolve) => setImmediate(resolve))
      if (from >= failsAt) throw new SelscanError("BAD_FILE", "memory: cut")
      target.set(bytes.subarray(from, from + target.length))
    },
    close: () => Promise.resolve(),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }
  return [source, [{ fileName: "w", shape, parts: [{ name: "ours", row: 0, fileRow: 0, rows: halves.length }] }]]
}

async function all(...given: [TensorSource, FileTensor[]]): Promise<Uint8Array> {
  const parts: Uint8Array[] = []
  for await (const { bytes } of readPieces(...given)) parts.push(bytes.slice())
  return Buffer.concat(parts)
}

test("every finite pattern of bf16 is taken, every other refused with its index, wherever it stands", async (t) => {
  const patterns = Array.from({ length: 65536 }, (_, pattern) => pattern)
  const finite = (pattern: number) => (pattern & 0x7f80) !== 0x7f80
  const good = Uint16Array.from(patterns.filter(finite))
  t.is((await all(...sourceOf(good))).length, 2 * good.length)
  for (const [i, pattern] of patterns.filter((one) => !finite(one)).entries()) {
    const halves = new Uint16Array(7).fill(0xff7f) // the least finite number
    const at = i % 7
    halves[at] = pattern
    const error = await t.throwsAsync(all(...sourceOf(halves)))
    t.like(error, { code: "NOT_FINITE", details: { index: at } })
  }
})

test("pieces are those of the file in order, though the next is read while one is used", async (t) => {
  const halves = Uint16Array.from({ length: 7_000_001 }, (_, i) => i & 0x3fff)
  t.is(Buffer.compare(await all(...sourceOf(halves)), new Uint8Array(halves.buffer)), 0)
})

test("a read that fails is thrown once, after the pieces before it, and to nobody who has left", async (t) => {
  const halves = new Uint16Array(7_000_000)
  const pieces = readPieces(...sourceOf(halves, 1))
  t.is((await pieces.next()).value?.at, 0)
  t.like(await t.throwsAsync(pieces.next()), { code: "BAD_FILE" })
  for await (const _ of readPieces(...sourceOf(halves, 1))) break
  await new Promise((resolve) => setTimeout(resolve, 50)) // an unhandled rejection would end the process
})
