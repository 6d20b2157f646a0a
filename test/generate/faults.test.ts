/**
 * Sessions when the device fails them: a lost one, and one without the memory that they ask for. Asked of the emulated device
 * (DEVICE=emulated), which fails on request; each in a process of its own.
 */
import { fileURLToPath } from "node:url"
import test from "ava"
import { SelscanError } from "../../lib/errors.ts"
import { outOfMemory } from "../../lib/generate/out-of-memory.ts"
import { stepProgram } from "../../lib/generate/programs.ts"
import { printed } from "../printed.ts"
import { tinyModel } from "./tiny.ts"

const emulated = process.env.DEVICE === "emulated" ? test : test.skip
const tiny = fileURLToPath(new URL("tiny.ts", import.meta.url))

/** With a tiny model at hand. */
const withTiny = (script: string) => `import { tinyModel } from "${tiny}"\n${script}`

/** Loads the device's launches while a session generates; another one is in host memory by then. */
const generating = (kind: string) => `
  const model = await tinyModel({ kind: "${kind}", sessions: 1 })
  const held = model.session()
  await held.append("held")
  const before = await held.save()
  const session = model.session()
  await session.append("abc")
  const received = []
  let code = "none"
  try {
    for await (const { id } of session.tokens("def", { seed: 1, maxTokens: 6 })) received.push(id)
  } catch (error) { code = error.code }
  const codeOf = (fn) => fn().then(() => "none", (error) => error.code)
  const after = await held.save()
  console.log(JSON.stringify({
    code, received: received.length, length: session.length, same: Buffer.compare(before, after) === 0,
    later: code === "none" ? "none" : await codeOf(() => session.append("x")),
    other: code === "none" ? "none" : await codeOf(() => held.append("x")),
  }))`

interface Told {
  readonly code: string
  readonly received: number
  readonly length: number
  readonly same: boolean
  readonly later: string
  readonly other: string
}

for (const kind of ["mamba", "samba", "megabyte"]) {
  emulated(
    `${kind}: when the device is lost at any launch, a session says what was received, and what the host has is whole`,
    (t) => {
      let met = 0
      for (let fault = 60; fault < 4000 && met < 5; fault = Math.ceil(fault * 1.3)) {
        let told: Told
        try {
          told = printed(withTiny(generating(kind)), { SELSCAN_EMULATED_FAULT: String(fault) }) as Told
        } catch (error) {
          t.regex(String(error), /DEVICE_LOST|device was lost/) // before there was a session to judge
          continue
        }
        if (told.code === "none") break
        met++
        t.is(told.code, "DEVICE_LOST")
        t.true(told.same)
        t.is(told.length, told.received === 0 ? 3 : 6 + told.received, `lost at launch ${fault}`)
        t.deepEqual([told.later, told.other], ["DEVICE_LOST", "DEVICE_LOST"])
      }
      t.true(met > 0, "a launch while it generated was met")
    },
  )
}

emulated("memory that sessions ask for and cannot have is named with the options that decide it", (t) => {
  const script = (options: string) => `
    const model = await tinyModel(${options})
    const error = await model.session().append("abc").catch((error) => error)
    console.log(JSON.stringify({ code: error.code, message: error.message }))`
  const memory = { SELSCAN_EMULATED_MEMORY: String(32 << 20) }
  const samba = printed(withTiny(script(`{ kind: "llama", sessions: 64, contextMax: 65536 }`)), memory) as SelscanError
  t.is(samba.code, "OUT_OF_MEMORY")
  t.regex(
    samba.message,
    /^model: \d+ bytes on device emulated are expected for sessions = 64 of contextMax = 65536 tokens, got no room for the ring backbone\.layers\.0\.mixer\.keys, \d+ bytes; load it with fewer sessions, or a smaller contextMax$/,
  )
  const mamba = printed(withTiny(script(`{ kind: "mamba", sessions: 4096 }`)), memory) as SelscanError
  t.is(mamba.code, "OUT_OF_MEMORY")
  t.regex(mamba.message, /for sessions = 4096, got no room for the state .*; load it with fewer sessions$/)
})

test("memory that is missing for anything else keeps its own words", async (t) => {
  await using model = await tinyModel()
  const program = stepProgram(model.network, "prompt", { ...model.shape, rows: 1 })
  const other = new SelscanError("OUT_OF_MEMORY", "cpu: 12345 bytes could not be had; use a smaller model")
  t.is(outOfMemory(other, program, model), other)
  const plain = new Error("something else")
  t.is(outOfMemory(plain, program, model), plain)
  const { name, sizeBytes } = program.stored("state")[0]!
  const states = new SelscanError("OUT_OF_MEMORY", `cpu: ${sizeBytes} bytes could not be had; use a smaller model`)
  const { message, cause } = outOfMemory(states, program, model) as SelscanError
  t.true(message.includes(`for sessions = 16, got no room for the state ${name}`), message)
  t.is(cause, states)
})
