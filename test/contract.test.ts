/**
 * The border is written twice, once in each language, in one line per op: this holds the two against each other.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs"
import test from "ava"
import { registeredOps } from "../lib/graph/op.ts"
import { devices, kernels, Store } from "../lib/native.ts"

const folder = new URL("../lib/ops/", import.meta.url)
for (const file of readdirSync(folder)) if (file.endsWith(".ts")) await import(new URL(file, folder).href)

/** `x weight residual? carried?* -> y sum rstd; eps`, as the op says it, what it writes in place with a `*`: a kernel's line must be this text. */
function signatureOf(name: string): string {
  const { inputs, outputs, attrs = {}, updates = [] } = registeredOps().get(name)!
  const marked = Object.keys(inputs).map((key) => (updates.includes(key.replace("?", "")) ? `${key}*` : key))
  const sides = `${marked.join(" ")} -> ${Object.keys(outputs).join(" ")}`.trimEnd()
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

const sources = new URL("../native/cuda/", import.meta.url)
/** A GPU bundle has the kernels, not their sources. */
const withSources = existsSync(sources) ? test : test.skip

/**
 * KERNEL lines of the CUDA sources, read as text: no CUDA is needed to see that none is missing. A signature may be cut into
 * several strings, as C++ joins them.
 */
function cudaKernels(): Map<string, string[]> {
  const found = new Map<string, string[]>()
  for (const file of readdirSync(sources).filter((name) => name.endsWith(".cu"))) {
    const text = readFileSync(new URL(file, sources), "utf8").replaceAll(/^\s*\/\/.*$/gm, "")
    for (const [, name = "", strings = ""] of text.matchAll(/^\s*KERNEL\(\s*(\w+),\s*cuda,\s*((?:"[^"]*"\s*)+)/gm)) {
      const signature = [...strings.matchAll(/"([^"]*)"/g)].map(([, part]) => part).join("")
      found.set(name, [...(found.get(name) ?? []), signature])
    }
  }
  return found
}

withSources("every op has a cuda kernel, of its signature", (t) => {
  const found = cudaKernels()
  t.deepEqual(
    [...registeredOps().keys()].filter((name) => !found.has(name)),
    [],
    "ops without a KERNEL line in native/cuda",
  )
  for (const [name, signatures] of found) {
    t.true(registeredOps().has(name), `cuda kernel ${name} belongs to an op`)
    if (registeredOps().has(name)) t.deepEqual(signatures, [signatureOf(name)], `cuda kernel ${name}`)
  }
})

test("an addon with the emulated device has the kernels there that the cpu has", (t) => {
  if (!devices().some(({ name }) => name === "emulated")) return t.pass("this addon has no emulated device")
  const of = (device: string) => kernels().flatMap((kernel) => (kernel.device === device ? [kernel.name] : []))
  t.deepEqual(of("emulated").sort(), of("cpu").sort())
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
  t.is(cpu!.missing, undefined)
  t.regex(cpu!.instructionSet!, /^(portable|avx2|avx512|avx512bf16|amx)$/)
  t.true(cpu!.threads! >= 1)
})

test("cuda is listed on every machine, with what is missing where it cannot be used", (t) => {
  const cuda = devices().find(({ name }) => name === "cuda")
  t.truthy(cuda)
  if (cuda!.missing !== undefined) {
    t.true(cuda!.missing.length > 10, cuda!.missing)
    t.throws(() => new Store("cuda"), { code: "NO_DEVICE", message: /^device cuda: / })
  }
})
