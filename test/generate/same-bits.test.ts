/**
 * Same bits, clause by clause: on one device and instruction set, what a sequence says depends neither on the number of threads, nor on
 * its neighbours in a run, nor on the number of rows, nor on how its text was cut into calls.
 */
import test from "ava"
import { layoutInputs, layoutOf } from "../../lib/generate/layout.ts"
import { load } from "../../lib/generate/load.ts"
import type { Model } from "../../lib/generate/model.ts"
import { rowCounts } from "../../lib/generate/programs.ts"
import type { Token } from "../../lib/generate/session.ts"
import { type Program, trace } from "../../lib/graph/program.ts"
import { headOf } from "../../lib/models/language-model.ts"
import { type Piece, startId } from "../../lib/models/patches.ts"
import { setThreads } from "../../lib/native.ts"
import { linear } from "../../lib/ops/linear.ts"
import { device } from "../device.ts"
import { fresh, next, noise } from "./compare.ts"
import { tinyKinds, tinyModel } from "./tiny.ts"

const quick = device === "emulated"
const numerics: Record<string, Parameters<typeof tinyModel>[0]> = {
  f32: { precision: "f32" },
  bf16: { precision: "bf16" },
  ...(device === "cpu" && { int8: { precision: "bf16", weights: "int8" } }),
}

for (const kind of tinyKinds) {
  for (const [kept, options] of Object.entries(numerics)) {
    const name = (clause: string) => `${kind} in ${kept}: the same bits ${clause}`
    const make = () => tinyModel({ kind, ...options, sessions: 6 })

    test.serial(name("whatever the number of threads"), async (t) => {
      const said: Token[][] = []
      const text = noise(quick ? 40 : 700)
      for (const threads of [1, 2, 3, 5]) {
        await setThreads(threads)
        await using model = await make()
        const { logprobs } = await model.score(text)
        const scored = logprobs.map((logprob, id) => ({ id, logprob: logprob ?? 0 }))
        said.push([...scored, ...(await fresh(model, text))])
      }
      await setThreads(0)
      for (const other of said.slice(1)) t.deepEqual(other, said[0])
    })

    test.serial(name("whoever its neighbours in a run are"), async (t) => {
      await using model = await make()
      const text = noise(21)
      const alone = await packed(model, [text])
      const neighbours = [noise(9, 2), noise(17, 3), [], noise(1, 4)]
      for (const others of [neighbours.slice(0, 1), neighbours.slice(1), neighbours]) {
        for (const at of [0, others.length]) {
          const logits = await packed(model, others.toSpliced(at, 0, text))
          t.deepEqual(logits[at], alone[0], `${others.length} of them, ${at} before it`)
        }
      }
      const [first, second] = await packed(model, [text, text])
      t.deepEqual(first, second)
    })

    test.serial(name("whatever the number of rows of the program"), async (t) => {
      await using model = await make()
      const step = model.step.bind(model)
      const counts = quick ? [1, 3, 16] : [1, 2, 3, 5, 8, 13, 31, 64, 100, 127, 200, 257, 511, 512]
      for (const count of counts) {
        const text = noise(count)
        const expected = await fresh(model, text)
        for (const larger of rowCounts.filter((rows) => rows > count && (!quick || rows <= 64))) {
          model.step = (what, rows, ...rest) => step(what, what === "prompt" ? Math.max(rows, larger) : rows, ...rest)
          t.deepEqual(await fresh(model, text), expected, `${count} rows of ${larger}`)
        }
        model.step = step
      }
    })

    test.serial(name("however its text is cut into calls"), async (t) => {
      await using model = await make()
      const text = noise(quick ? 60 : 611)
      const expected = await fresh(model, text)
      for (const size of [1, 2, 3, 7, 13, 61, 127, 512]) {
        using session = model.session()
        for (let at = 0; at < text.length; at += size) await session.append(text.slice(at, at + size))
        t.deepEqual(await next(session), expected, `pieces of ${size}`)
      }
      using growing = model.session()
      for (let at = 0, size = 1; at < text.length; at += size++) await growing.append(text.slice(at, at + size))
      t.deepEqual(await next(growing), expected, "pieces that grow")
    })
  }
}

for (const name of ["demo", "demo-samba"]) {
  const here = quick ? test.skip : test.serial
  here(`${name}: the same bits whatever the number of threads, where the work is divided among them`, async (t) => {
    const said: unknown[] = []
    for (const threads of [1, 2, 3]) {
      await setThreads(threads)
      await using model = await load(name, { device })
      said.push([(await model.score(noise(600))).logprobs, await fresh(model, noise(300))])
    }
    await setThreads(0)
    for (const other of said.slice(1)) t.deepEqual(other, said[0])
  })
}

/** Logits of the last row of each sequence, all of them run at once. */
async function packed(model: Model, texts: readonly (readonly number[])[]): Promise<Float32Array[]> {
  const { network } = model
  const start = network.patches ? [startId] : []
  const all = texts.map((text) => [...start, ...text])
  const rows = 64 * Math.ceil(all.flat().length / 64)
  const patches = network.patches && all.length + network.patches.mostBegun(0, rows)
  const program = logits(model, rows, texts.length, patches)
  const executable = await model.store.compile(program)
  let begin = 0
  const pieces = all.map((ids, i): Piece => {
    const piece = { begin, end: begin + ids.length, position: 0, from: 0, to: 1 + i, ring: 1 + i, ids }
    begin = piece.end
    return piece
  })
  const outputs = await executable.run(layoutInputs(program, network, pieces))
  const values = outputs.logits as Float32Array
  return pieces.map(({ end }) => values.slice((end - 1) * network.vocab, end * network.vocab))
}

function logits(model: Model, rows: number, sequences: number, patches: number | undefined): Program {
  const { network, shape } = model
  return trace(
    "packed",
    (t) => {
      const layout = layoutOf(t, network, { ...shape, patches }, sequences)
      const x = network.forward(t.input("ids", "i32", [rows]), layout)
      return { logits: linear({ x, ...headOf(network, layout) }, { precision: t.precision, dtype: "f32" }).y }
    },
    { precision: shape.precision!, activations: shape.activations! },
  )
}
