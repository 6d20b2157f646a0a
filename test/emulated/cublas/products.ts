/**
 * What test/cublas.test.ts runs in a process of its own, since the library is chosen once: products of whole numbers, exact
 * in f32, held against their sums. Prints "right", or the error that compile() gave.
 */
import { SelscanError } from "../../../lib/errors.ts"
import { trace } from "../../../lib/graph/program.ts"
import { type HostArray, Store } from "../../../lib/native.ts"
import { linear, linearInputGrad, linearWeightGrad } from "../../../lib/ops/linear.ts"

const [rows, inner, out] = [264, 256, 272]
const whole = (length: number, seed: number) =>
  Float32Array.from({ length }, (_, i) => ((i * seed + Math.floor(i / 7)) % 5) - 2)
const [x, weight, dy] = [whole(rows * inner, 3), whole(out * inner, 7), whole(rows * out, 11)]
const residual = whole(rows * out, 13)

const program = trace("products", (tr) => {
  const [xs, ws] = [tr.input("x", "f32", [rows, inner]), tr.input("weight", "f32", [out, inner])]
  const [ds, rs] = [tr.input("dy", "f32", [rows, out]), tr.input("residual", "f32", [rows, out])]
  const attrs = { precision: "bf16" }
  return {
    y: linear({ x: xs, weight: ws }, attrs).y,
    added: linear({ x: xs, weight: ws, residual: rs }, attrs).y,
    activated: linear({ x: xs, weight: ws }, { ...attrs, activation: "silu" }).y,
    dx: linearInputGrad({ dy: ds, weight: ws }, attrs).dx,
    dweight: linearWeightGrad({ dy: ds, x: xs }, attrs).dweight,
  }
})

/** Whether got[m, n] = Σ_k a(m, k)·b(k, n) + more(m, n) for all elements. */
function equals(
  got: HostArray,
  [m, k, n]: readonly [number, number, number],
  a: (m: number, k: number) => number,
  b: (k: number, n: number) => number,
  more: Float32Array = new Float32Array(m * n),
): boolean {
  return more.every((added, at) => {
    const [row, column] = [Math.floor(at / n), at % n]
    let sum = added
    for (let i = 0; i < k; i++) sum += a(row, i) * b(i, column)
    return got[at] === sum
  })
}

try {
  await using store = new Store("emulated")
  const executable = await store.compile(program)
  const got = await executable.run({ x, weight, dy, residual })
  const forward = [
    (m: number, k: number) => x[m * inner + k]!,
    (k: number, n: number) => weight[n * inner + k]!,
  ] as const
  const right =
    equals(got.y!, [rows, inner, out], ...forward) &&
    equals(got.added!, [rows, inner, out], ...forward, residual) &&
    equals(
      got.dx!,
      [rows, out, inner],
      (m, k) => dy[m * out + k]!,
      (k, n) => weight[k * inner + n]!,
    ) &&
    equals(
      got.dweight!,
      [out, rows, inner],
      (m, k) => dy[k * out + m]!,
      (k, n) => x[k * inner + n]!,
    )
  console.log(right ? "right" : "wrong")
} catch (error) {
  if (!(error instanceof SelscanError)) throw error
  console.log(`${error.code} ${error.message}`)
}
