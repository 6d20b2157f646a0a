/**
 * The border is written twice, once in each language, in one line per op: this holds the two against each other.
 */
import { readdirSync } from "node:fs"
import test from "ava"
import { registeredOps } from "../lib/graph/op.ts"
import { devices, kernels } from "../lib/native.ts"

const folder = new URL("../lib/ops/", import.meta.url)
for (const file of readdirSync(folder)) if (file.endsWith(".ts")) await import(new URL(file, folder).href)

/** `x weight residual? -> y sum rstd; eps`, as the op says it: a kernel's line must be this text. */
function signatureOf(name: string): string {
  const { inputs, outputs, attrs = {} } = registeredOps().get(name)!
  const sides = `${Object.keys(inputs).join(" ")} -> ${Object.keys(outputs).join(" ")}`.trimEnd()
  return Object.keys(attrs).length === 0 ? sides : `${sides}; ${Object.keys(attrs).join(" ")}`
}

test("every kernel has the signature of its op", (t) => {
  for (const { name, device, signature } of kernels()) {
    if (!registeredOps().has(name)) continue
    t.is(signature, signatureOf(name), `${device} kernel ${name}`)
  }
})

test("every op has a cpu kernel", (t) => {
  const known = new Set(kernels().flatMap(({ name, device }) => (device === "cpu" ? [name] : [])))
  t.deepEqual(
    [...registeredOps().keys()].filter((name) => !known.has(name)),
    [],
  )
  t.true(known.size > 0)
})

test("every kernel belongs to an op", (t) => {
  t.deepEqual(
    kernels()
      .map(({ name }) => name)
      .filter((name) => !registeredOps().has(name)),
    [],
  )
})

test("no kernel is registered twice for one device", (t) => {
  const all = kernels().map(({ device, name }) => `${device} ${name}`)
  t.deepEqual(
    all.filter((key, i) => all.indexOf(key) !== i),
    [],
  )
})

test("inputs that an op updates are among its inputs", (t) => {
  for (const [name, { inputs, updates = [] }] of registeredOps()) {
    const known = Object.keys(inputs).map((key) => key.replace("?", ""))
    for (const key of updates) t.true(known.includes(key), `${name} updates ${key}`)
  }
  t.true(registeredOps().size > 0)
})

test("the devices say what they are", (t) => {
  const [cpu] = devices()
  t.is(cpu?.name, "cpu")
  t.regex(cpu!.instructionSet, /^(portable|avx2|avx512|avx512bf16|amx)$/)
  t.true(cpu!.threads >= 1)
})
