/**
 * Programs of elementwise ops, for tests of what runs them.
 */
import fc from "fast-check"
import { type Program, trace } from "../../lib/graph/program.ts"
import type { Value } from "../../lib/graph/value.ts"
import { add, exp, multiply, scale } from "../../lib/ops/elementwise.ts"

/** `nodes` nodes one after another over `elements` elements: x comes out as it went in. */
export function chain(nodes: number, elements: number): Program {
  return trace(`chain of ${nodes}`, (t) => {
    let y = t.input("x", "f32", [elements])
    for (let i = 0; i < nodes; i++) y = scale({ x: y }, { factor: i % 2 === 0 ? 2 : 0.5 }).y
    return { y }
  })
}

/** Random programs: each step takes two earlier values of one of a few sizes. */
export const randomPrograms: fc.Arbitrary<Program> = fc
  .record({
    sizes: fc.array(fc.constantFrom(1, 3, 16, 17, 100, 1000), { minLength: 1, maxLength: 3 }),
    steps: fc.array(fc.tuple(fc.nat(), fc.nat(), fc.nat(3)), { minLength: 1, maxLength: 40 }),
    outputs: fc.array(fc.nat(), { minLength: 1, maxLength: 4 }),
  })
  .map(({ sizes, steps, outputs }) =>
    trace("random", (t) => {
      const values: Value[] = sizes.map((size, i) => t.input(`input${i}`, "f32", [size]))
      for (const [first, second, which] of steps) {
        const a = values[first % values.length]!
        const alike = values.filter((value) => value.elements === a.elements)
        const b = alike[second % alike.length]!
        const unary = which === 0 ? scale({ x: a }, { factor: 0.5 }).y : exp({ x: a }).y
        values.push(which < 2 ? unary : which === 2 ? add({ a, b }).y : multiply({ a, b }).y)
      }
      return Object.fromEntries(outputs.map((index, i) => [`out${i}`, values[index % values.length]!]))
    }),
  )

/** What a random program gives, by f32 arithmetic on the host. */
export function onHost(program: Program, inputs: Readonly<Record<string, Float32Array>>): Record<string, Float32Array> {
  const known = new Map<Value, Float32Array>()
  const of = (value: Value) => known.get(value) ?? inputs[value.name]!
  for (const { op, inputs: from, outputs, attrs } of program.nodes) {
    const [a, b] = Object.values(from).map(of)
    known.set(
      outputs.y!,
      a!.map((value, i) => {
        if (op.name === "scale") return value * (attrs.factor as number)
        if (op.name === "exp") return Math.exp(value)
        return op.name === "add" ? value + b![i]! : value * b![i]!
      }),
    )
  }
  return Object.fromEntries(Object.entries(program.outputs).map(([key, value]) => [key, of(value)]))
}
