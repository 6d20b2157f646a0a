/**
 * Products where the cases of linear.ts and linear-cross-entropy.ts are too small to go: every size of tile of the CUDA kernels, all of
 * which give the same bits, pieces of a head, and what three planes of bf16 keep of f32.
 */
import test from "ava"
import { trace } from "../../lib/graph/program.ts"
import type { Value } from "../../lib/graph/value.ts"
import { Store } from "../../lib/native.ts"
import { linear, linearInputGrad, linearWeightGrad } from "../../lib/ops/linear.ts"
import { linearCrossEntropy } from "../../lib/ops/linear-cross-entropy.ts"
import { device } from "../device.ts"
import { ints, normal, type Tensor64, values } from "./spec.ts"

type Tensors = Readonly<Record<string, Tensor64>>
type Body = (values: Record<string, Value>) => Record<string, Value>

async function run(inputs: Tensors, body: Body): Promise<Record<string, Float32Array>> {
  const program = trace("products", (tr) =>
    body(
      Object.fromEntries(Object.entries(inputs).map(([key, { dtype, shape }]) => [key, tr.input(key, dtype, shape)])),
    ),
  )
  await using store = new Store(device)
  const executable = await store.compile(program)
  const outputs = await executable.run(
    Object.fromEntries(
      program.inputs.map(({ name }) => {
        const { dtype, data } = inputs[name]!
        return [name, dtype === "i32" ? Int32Array.from(data) : Float32Array.from(data)]
      }),
    ),
  )
  return outputs as Record<string, Float32Array>
}

/** The first rows of a matrix, or its first columns. */
function part({ dtype, shape, data }: Tensor64, rows: number, columns = shape[1] ?? 1): Tensor64 {
  const width = shape[1] ?? 1
  const cut = Float64Array.from(
    { length: rows * columns },
    (_, i) => data[Math.floor(i / columns) * width + (i % columns)]!,
  )
  return { dtype, shape: shape.length === 1 ? [rows] : [rows, columns], data: cut }
}

const product =
  (precision: string): Body =>
  ({ x, weight, dy }) => ({
    y: linear({ x: x!, weight: weight! }, { precision }).y,
    dx: linearInputGrad({ dy: dy!, weight: weight! }, { precision }).dx,
    dweight: linearWeightGrad({ dy: dy!, x: x! }, { precision }).dweight,
  })

/** The greatest difference from Σ_k a(m, k)·b(k, n), relative to the greatest Σ_k |a(m, k)·b(k, n)|, over some elements. */
function relativeError(
  got: Float32Array,
  [rows, inner, columns]: readonly [number, number, number],
  a: (m: number, k: number) => number,
  b: (k: number, n: number) => number,
): number {
  let [worst, largest] = [0, 0]
  const stride = Math.max(1, Math.floor((rows * columns) / 4000))
  for (let i = 0; i < rows * columns; i += stride) {
    const [m, n] = [Math.floor(i / columns), i % columns]
    let [sum, magnitude] = [0, 0]
    for (let k = 0; k < inner; k++) {
      sum += a(m, k) * b(k, n)
      magnitude += Math.abs(a(m, k) * b(k, n))
    }
    const difference = Math.abs(got[i]! - sum)
    worst = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : Math.max(worst, difference)
    largest = Math.max(largest, magnitude)
  }
  return worst / largest
}

function errors({ x, weight, dy }: Tensors, { y, dx, dweight }: Record<string, Float32Array>) {
  const [rows, inner, out] = [x!.shape[0]!, x!.shape[1]!, weight!.shape[0]!]
  const [xs, ws, ds] = [x!.data, weight!.data, dy!.data]
  const at = (data: Float64Array, width: number) => (i: number, j: number) => data[i * width + j]!
  const across = (data: Float64Array, width: number) => (i: number, j: number) => data[j * width + i]!
  return {
    y: relativeError(y!, [rows, inner, out], at(xs, inner), across(ws, inner)),
    dx: relativeError(dx!, [rows, out, inner], at(ds, out), at(ws, inner)),
    dweight: relativeError(dweight!, [out, rows, inner], across(ds, out), at(xs, inner)),
  }
}

const sized = (rows: number, inner: number, out: number) => ({
  x: normal([rows, inner], 1),
  weight: normal([out, inner], 2),
  dy: normal([rows, out], 3),
})

const edges = [1, 7, 8, 15, 16, 17, 31, 33, 64, 100, 130]

test("products of every combination of edge sizes are those of f64", async (t) => {
  for (const [i, inner] of edges.entries()) {
    for (const [j, out] of edges.entries()) {
      const rows = edges[(3 * i + 5 * j) % edges.length]!
      const inputs = sized(rows, inner, out)
      for (const [key, error] of Object.entries(errors(inputs, await run(inputs, product("f32"))))) {
        t.true(error < 2 ** -22, `${key} of ${rows} × ${inner} × ${out}: ${error}`)
      }
      // Rounding both factors to bf16 is 2 · 2⁻⁸ of each product.
      for (const [key, error] of Object.entries(errors(inputs, await run(inputs, product("bf16"))))) {
        t.true(error < 2 ** -7, `${key} of ${rows} × ${inner} × ${out} in bf16: ${error}`)
      }
    }
  }
})

for (const precision of ["f32", "bf16"]) {
  test(`the first row has the same bits among 1 to 200 rows, ${precision}`, async (t) => {
    const [inner, out] = [70, 90]
    const { x, weight, dy } = sized(200, inner, out)
    const all = await run({ x, weight, dy }, product(precision))
    for (const rows of [1, 2, 15, 16, 17, 64, 100]) {
      const some = await run({ x: part(x, rows), weight, dy: part(dy, rows) }, product(precision))
      t.deepEqual(some.y, all.y!.slice(0, rows * out), `y of ${rows} rows`)
      t.deepEqual(some.dx, all.dx!.slice(0, rows * inner), `dx of ${rows} rows`)
    }
  })

  test(`large products have the bits of small ones, ${precision}`, async (t) => {
    const size = 1260 // 10 × 10 of the largest tiles, the last ones cut
    const [x, weight] = [normal([size, 19], 1), normal([size, 19], 2)]
    const narrow = { dy: normal([size, 21], 3), weight: normal([21, size], 4), x: normal([size, 18], 5) }
    const forward: Body = ({ x, weight }) => ({ y: linear({ x: x!, weight: weight! }, { precision }).y })
    const { y } = await run({ x, weight }, forward)
    const few = await run({ x: part(x, 5), weight: part(weight, 40) }, forward)
    t.deepEqual(
      few.y,
      Float32Array.from(part({ dtype: "f32", shape: [size, size], data: Float64Array.from(y!) }, 5, 40).data),
    )

    const inputGrad: Body = ({ dy, weight }) => ({
      dx: linearInputGrad({ dy: dy!, weight: weight! }, { precision }).dx,
    })
    const { dx } = await run({ dy: narrow.dy, weight: narrow.weight }, inputGrad)
    const fewer = await run({ dy: part(narrow.dy, 33), weight: narrow.weight }, inputGrad)
    t.deepEqual(fewer.dx, dx!.slice(0, 33 * size))

    const weightGrad: Body = ({ dy, x }) => ({ dweight: linearWeightGrad({ dy: dy!, x: x! }, { precision }).dweight })
    const [wide, tall] = [normal([18, size], 6), normal([18, size], 7)]
    const { dweight } = await run({ dy: wide, x: tall }, weightGrad)
    const column = await run({ dy: part(wide, 18, 70), x: tall }, weightGrad)
    t.deepEqual(column.dweight, dweight!.slice(0, 70 * size))
    const error = relativeError(
      dweight!,
      [size, 18, size],
      (m, k) => wide.data[k * size + m]!,
      (k, n) => tall.data[k * size + n]!,
    )
    t.true(error < (precision === "f32" ? 2 ** -22 : 2 ** -7), `dweight: ${error}`)
  })
}

test("a sum of 4096 products is f32's, in both ends of its range", async (t) => {
  const inner = 4096
  for (const scale of [1, 2 ** -60, 2 ** 60]) {
    const inputs = { x: normal([3, inner], 1, scale), weight: normal([5, inner], 2), dy: normal([3, 5], 3) }
    const { y, dx } = errors(inputs, await run(inputs, product("f32")))
    t.log(`scale ${scale}: ${(y * 2 ** 24).toFixed(2)} · 2⁻²⁴ of Σ |products|`)
    t.true(y < 2 ** -23, `y: ${y}`)
    t.true(dx < 2 ** -22, `dx: ${dx}`)
  }
})

test("the greatest f32 stays finite, and what is not finite shows", async (t) => {
  const greatest = 3.4028234663852886e38
  const one = (data: number[]) => values("f32", [1, data.length], data)
  const forward: Body = ({ x, weight }) => ({ y: linear({ x: x!, weight: weight! }).y })
  const { y } = await run({ x: one([greatest, 0]), weight: one([1, 1]) }, forward)
  t.is(y![0], greatest)
  for (const bad of [Number.POSITIVE_INFINITY, Number.NaN]) {
    const { y } = await run({ x: one([bad, 1]), weight: one([1, 1]) }, forward)
    t.false(Number.isFinite(y![0]))
  }
})

test("a head whose logits are made in pieces has the losses of one that is not", async (t) => {
  const [rows, vocab] = [2049, 4101] // on CUDA 2 × 2 pieces, their tiles the largest
  const inputs = {
    x: normal([rows, 1], 1),
    weight: normal([vocab, 1], 2),
    targets: ints([rows], 3, 0, vocab),
  }
  const head: Body = ({ x, weight, targets }) => {
    const { losses, logsumexp } = linearCrossEntropy({ x: x!, weight: weight!, targets: targets! }, { smoothing: 0.1 })
    return { losses, logsumexp }
  }
  const pieces = await run(inputs, head)
  for (const row of [0, 2047, 2048]) {
    const [target, x] = [inputs.targets.data[row]!, inputs.x.data[row]!]
    const alone = await run(
      { x: values("f32", [1, 1], [x]), weight: inputs.weight, targets: values("i32", [1], [target]) },
      head,
    )
    t.is(pieces.losses![row], alone.losses![0])
    t.is(pieces.logsumexp![row], alone.logsumexp![0])
    const logits = inputs.weight.data.map((w) => x * w)
    const logsumexp = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0))
    const mean = logits.reduce((sum, logit) => sum + logsumexp - logit, 0) / vocab
    const loss = 0.9 * (logsumexp - logits[target]!) + 0.1 * mean
    t.true(Math.abs(alone.losses![0]! - loss) < 1e-5 * loss, `loss ${alone.losses![0]} of ${loss}`)
  }
})
