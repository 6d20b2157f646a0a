/**
 * What a GPU can do to a program: be lost in the middle of a run, run out of memory, not be there. Asked of the emulated device
 * (DEVICE=emulated), which fails on request; each in a process of its own.
 */
import { fileURLToPath } from "node:url"
import test from "ava"
import { printed } from "./printed.ts"

const emulated = process.env.DEVICE === "emulated" ? test : test.skip
const root = fileURLToPath(new URL("..", import.meta.url))

const prelude = `
  import { devices, Store } from "${root}lib/native.ts"
  import { trace } from "${root}lib/graph/program.ts"
  import { add, scale } from "${root}lib/ops/elementwise.ts"
  const size = 4096
  const program = trace("doubling", (t) => {
    const x = t.input("x", "f32", [size])
    return { y: add({ a: scale({ x }, { factor: 2 }).y, b: t.weight("w", "f32", [size]) }).y }
  })
  const x = new Float32Array(size).fill(3)
  const run = async (executable) => (await executable.run({ x })).y[size - 1]
  const attempt = async (fn) => { try { return await fn() } catch ({ code, message }) { return { code, message } } }
  const free = () => devices().find(({ name }) => name === "emulated").freeBytes
`

interface Refusal {
  readonly code: string
  readonly message: string
}

// A run is two launches: the first two runs go node by node, of which the second is recorded, and all later ones are replayed.
for (const fault of [1, 2, 3, 5, 6]) {
  emulated(`a device lost at launch ${fault} says so in that run and for ever after, and the cpu goes on`, (t) => {
    const script = `
      const store = new Store("emulated")
      const executable = await store.compile(program)
      const results = []
      for (let i = 0; i < 5; i++) results.push(await attempt(() => run(executable)))
      results.push(await attempt(() => store.download("weight", "w")))
      results.push(await attempt(() => new Store("emulated").compile(program).then(run)))
      results.push(devices().find(({ name }) => name === "emulated").missing)
      await executable.dispose()
      await store.dispose()
      const other = await new Store("cpu").compile(program)
      results.push(await run(other))
      console.log(JSON.stringify(results))`
    const results = printed(prelude + script, { SELSCAN_EMULATED_FAULT: String(fault) }) as (
      | number
      | Refusal
      | string
    )[]
    t.is(results.at(-1), 6)
    const runs = results.slice(0, 5)
    const first = runs.findIndex((result) => typeof result !== "number")
    t.true(first >= 0, "the fault was met")
    t.deepEqual(runs.slice(0, first), Array(first).fill(6))
    for (const refusal of [...runs.slice(first), ...results.slice(5, 7)] as Refusal[]) {
      t.is(refusal.code, "DEVICE_LOST")
      t.regex(refusal.message, /the device was lost by cudaErrorIllegalAddress .* start the process again$/)
    }
    t.regex(results[7] as string, /the device was lost/)
  })
}

emulated("memory that cannot be had is refused with its sizes, and nothing of it is leaked", (t) => {
  const script = `
    const store = new Store("emulated")
    const executable = await store.compile(program)
    await run(executable)
    const before = free()
    const slot = { name: "big", dtype: "f32", shape: [1 << 26] }
    const refused = []
    for (let i = 0; i < 20; i++) refused.push(await attempt(() => store.upload("weight", slot, new Float32Array(1))))
    console.log(JSON.stringify({ refused, leaked: before - free(), again: await run(executable) }))`
  const { refused, leaked, again } = printed(prelude + script, { SELSCAN_EMULATED_MEMORY: String(64 << 20) }) as {
    refused: Refusal[]
    leaked: number
    again: number
  }
  for (const { code, message } of refused) {
    t.is(code, "OUT_OF_MEMORY")
    t.regex(message, /256 MiB \(268435456 bytes\) could not be had, \d+ MiB of 64 MiB are free/)
  }
  t.is(leaked, 0)
  t.is(again, 6)
})

emulated("a model that is disposed gives all its memory back", (t) => {
  const script = `
    const warm = new Store("emulated")
    await run(await warm.compile(program))
    await warm.dispose()
    const before = free()
    for (let i = 0; i < 10; i++) {
      const store = new Store("emulated")
      const executable = await store.compile(program)
      for (let k = 0; k < 3; k++) await run(executable)
      await store.dispose()
    }
    console.log(JSON.stringify(before - free()))`
  t.is(printed(prelude + script, {}), 0)
})

for (const [devices, pattern] of [
  ["0", /the NVIDIA driver reports no GPU/],
  ["nodriver", /no NVIDIA driver was found/],
] as const) {
  emulated(`a machine with SELSCAN_EMULATED_DEVICES=${devices} is told what is missing`, (t) => {
    const script = `
      const found = devices().find(({ name }) => name === "emulated")
      console.log(JSON.stringify([found.missing, await attempt(() => new Store("emulated"))]))`
    const [missing, refusal] = printed(prelude + script, { SELSCAN_EMULATED_DEVICES: devices }) as [string, Refusal]
    t.regex(missing, pattern)
    t.is(refusal.code, "NO_DEVICE")
    t.regex(refusal.message, pattern)
  })
}

emulated("sizes that no launch could count are refused at compile", (t) => {
  const script = `
    const huge = trace("huge", (t) => ({ y: scale({ x: t.input("x", "f32", [2 ** 31, 1]) }).y }))
    console.log(JSON.stringify([await attempt(() => new Store("emulated").compile(huge))]))`
  t.deepEqual(printed(prelude + script, {}), [
    { code: "BAD_SHAPE", message: "scale: sizes on device emulated are at most 2147483647, got [2147483648,1]" },
  ])
})

emulated("a device number that is not there is refused with how many there are", (t) => {
  const [refusal] = printed(
    `${prelude}console.log(JSON.stringify([await attempt(() => new Store("emulated:7"))]))`,
    {},
  ) as [Refusal]
  t.deepEqual(refusal, { code: "NO_DEVICE", message: "device emulated:7: there is 1, emulated:0, got 7" })
})
