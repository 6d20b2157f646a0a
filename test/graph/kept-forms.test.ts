/**
 * On the cpu a weight that all programs read packed is kept packed alone. Whatever is asked of it, nobody can tell.
 */
import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { embedding } from "../../lib/ops/embedding.ts"
import { linear, linearInputGrad } from "../../lib/ops/linear.ts"

type Dtype = "f32" | "bf16"

/** Bits of every kind of number, those that products take for zero among them. */
function weightBits(dtype: Dtype, count: number): Float32Array | Uint16Array {
  if (dtype === "f32")
    return Float32Array.from({ length: count }, (_, i) => Math.fround(Math.sin(i + 1) * 2 ** ((i % 40) - 20)))
  return Uint16Array.from({ length: count }, (_, i) => [0x8000, 0x0001, 0x807f, 0x3f80 + (i % 997)][i % 4]!)
}

const bytesOf = (array: ArrayBufferView) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength)

const product = (out: number, inner: number, dtype: Dtype, precision: Dtype) =>
  trace("product", (t) => ({
    y: linear({ x: t.input("x", "f32", [2, inner]), weight: t.weight("w", dtype, [out, inner]) }, { precision }).y,
  }))
const rows = (out: number, inner: number, dtype: Dtype) =>
  trace("rows", (t) => ({
    y: embedding({ ids: t.input("ids", "i32", [3]), weight: t.weight("w", dtype, [out, inner]) }).y,
  }))
const backward = (out: number, inner: number, dtype: Dtype, precision: Dtype) =>
  trace("backward", (t) => ({
    dx: linearInputGrad(
      { dy: t.input("dy", "f32", [1, out]), weight: t.weight("w", dtype, [out, inner]) },
      { precision },
    ).dx,
  }))

for (const [out, inner] of [
  [1, 1],
  [16, 32],
  [48, 64],
  [50, 96],
  [33, 47],
  [700, 1024],
] as const) {
  for (const [dtype, precision] of [
    ["f32", "f32"],
    ["bf16", "bf16"],
    ["bf16", "f32"],
    ["f32", "bf16"],
  ] as const) {
    test(`a weight of ${out} × ${inner}, ${dtype} in products of ${precision}, reads back as it was written`, async (t) => {
      await using store = new Store("cpu")
      const bits = weightBits(dtype, out * inner)
      const slot = { name: "w", dtype, shape: [out, inner] }
      const x = Float32Array.from({ length: 2 * inner }, (_, i) => Math.cos(i))
      const ids = Int32Array.of(0, out - 1, -1)
      await store.upload("weight", slot, bits)
      const gather = await store.compile(rows(out, inner, dtype))
      const plain = (await gather.run({ ids })).y!

      const forward = await store.compile(product(out, inner, dtype, precision))
      const first = (await forward.run({ x })).y!
      t.deepEqual((await gather.run({ ids })).y, plain, "rows are the same beside a product")
      t.deepEqual(await store.download("weight", "w"), new Uint8Array(bytesOf(bits)))
      const [at, length] = [Math.floor(bits.byteLength / 3), Math.ceil(bits.byteLength / 2)]
      t.deepEqual(
        await store.download("weight", "w", at, length),
        new Uint8Array(bytesOf(bits).subarray(at, at + length)),
      )

      const dy = Float32Array.from({ length: out }, (_, i) => Math.sin(i))
      const late = await store.compile(backward(out, inner, dtype, precision)) // wants another form of it
      const dx = (await late.run({ dy })).dx!
      await late.dispose()
      t.deepEqual((await forward.run({ x })).y, first)

      await using fresh = new Store("cpu")
      await fresh.upload("weight", slot, bits)
      t.deepEqual((await (await fresh.compile(backward(out, inner, dtype, precision))).run({ dy })).dx, dx)

      const changed = bits.slice()
      changed[changed.length - 1] = dtype === "f32" ? 3 : 0x4040
      const last = changed.subarray(changed.length - 1)
      await store.upload("weight", slot, last, bits.byteLength - last.byteLength)
      t.deepEqual(await store.download("weight", "w"), new Uint8Array(bytesOf(changed)))
      t.notDeepEqual((await forward.run({ x })).y, first, "a weight that was written is packed anew")
      t.deepEqual(await store.download("weight", "w"), new Uint8Array(bytesOf(changed)))
    })
  }
}

test("a weight that is read packed alone takes its memory once, and a table beside a tied head too", async (t) => {
  for (const dtype of ["f32", "bf16"] as const) {
    await using store = new Store("cpu")
    const [out, inner] = [100, 96]
    await store.upload("weight", { name: "w", dtype, shape: [out, inner] }, weightBits(dtype, out * inner))
    const forward = await store.compile(product(out, inner, dtype, dtype))
    const gather = await store.compile(rows(out, inner, dtype))
    await forward.run({ x: new Float32Array(2 * inner) })
    await gather.run({ ids: Int32Array.of(1, 2, 3) })
    const { weights, derived } = await store.memory()
    t.is(weights, out * inner * (dtype === "f32" ? 4 : 2))
    t.is(derived, 0)
    const late = await store.compile(backward(out, inner, dtype, dtype))
    await late.run({ dy: new Float32Array(out) })
    t.true((await store.memory()).derived > 0, "another form is there beside it")
  }
})

const eights = (out: number, inner: number, scales: "weight" | "input" = "weight") =>
  trace("eights", (t) => {
    const matrix = {
      weight: t.weight("w", "i8", [out, inner]),
      scales: t[scales]("s", "bf16", [out, Math.ceil(inner / 32)]),
    }
    return {
      y: linear({ x: t.input("x", "f32", [2, inner]), ...matrix }).y,
      rows: embedding({ ids: t.input("ids", "i32", [3]), ...matrix }).y,
    }
  })

for (const [out, inner] of [
  [1, 1],
  [16, 32],
  [50, 96],
  [33, 47],
  [700, 1024],
] as const) {
  test(`a weight of ${out} × ${inner} in 8 bits and its scales read back as they were written`, async (t) => {
    await using store = new Store("cpu")
    const q = Int8Array.from({ length: out * inner }, (_, i) => ((i * 37) % 255) - 127)
    const scales = weightBits("bf16", out * Math.ceil(inner / 32)).map((bits) => bits & 0x7fff) as Uint16Array
    const [slot, scaleSlot] = [
      { name: "w", dtype: "i8", shape: [out, inner] },
      { name: "s", dtype: "bf16", shape: [out, Math.ceil(inner / 32)] },
    ] as const
    await store.upload("weight", slot, q)
    await store.upload("weight", scaleSlot, scales)
    const inputs = {
      x: Float32Array.from({ length: 2 * inner }, (_, i) => Math.cos(i)),
      ids: Int32Array.of(0, out - 1, -1),
    }
    const first = await (await store.compile(eights(out, inner))).run(inputs)
    const held = q.byteLength + scales.byteLength
    if (inner % 32 === 0) t.is((await store.memory()).weights + (await store.memory()).derived, held, "kept once")
    t.deepEqual(await store.download("weight", "w"), new Uint8Array(bytesOf(q)))
    t.deepEqual(await store.download("weight", "s"), new Uint8Array(bytesOf(scales)))
    const [at, length] = [Math.floor(q.length / 3), Math.ceil(q.length / 2)]
    t.deepEqual(await store.download("weight", "w", at, length), new Uint8Array(q.buffer.slice(at, at + length)))

    const mixed = await store.compile(eights(out, inner, "input")) // scales of one run beside a weight that is packed alone
    t.deepEqual(await mixed.run({ ...inputs, s: scales }), first)

    const changed = q.slice()
    changed[q.length - 1] = q.at(-1) === 5 ? 6 : 5
    await store.upload("weight", slot, changed.subarray(q.length - 1), q.length - 1)
    t.deepEqual(await store.download("weight", "w"), new Uint8Array(bytesOf(changed)))
    const again = await (await store.compile(eights(out, inner))).run(inputs)
    t.notDeepEqual(again.rows, first.rows, "a weight that was written is packed anew")
  })
}
