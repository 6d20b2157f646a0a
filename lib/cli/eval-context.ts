/**
 * `selscan eval context`: what a longer context is worth to a model, as tables of perplexity by length show it.
 */
import { basename } from "node:path"
import { writeFileAtomically } from "../checkpoint/atomic.ts"
import { expect } from "../errors.ts"
import { linePlot } from "../plot.ts"
import { openModel } from "./common.ts"
import type { EvalFlags } from "./eval.ts"

interface Judged {
  readonly model: string
  readonly points: { readonly context: number; readonly bitsPerByte: number }[]
}

/**
 * Bits per byte of every model at contexts from..to, each twice the last: a table, or a plot, or JSON. The first context that holds the
 * whole text is the last one that says anything.
 */
export async function judgeContexts(bytes: Uint8Array, flags: EvalFlags, signal: AbortSignal): Promise<void> {
  const { model: names = ["demo"], from = 512, to = 16384, out, json } = flags
  for (const [name, value] of Object.entries({ from, to })) {
    const whole = Number.isSafeInteger(value) && value >= 1
    expect(whole, "BAD_OPTION", () => `eval: --${name} is a whole number of at least 1, got ${value}`)
  }
  expect(from <= to, "BAD_OPTION", () => `eval: --from is at most --to, got ${from} and ${to}`)
  expect(
    flags.context === undefined,
    "BAD_OPTION",
    () => "eval: --context is for the measure bpb; give --from and --to",
  )
  const contexts: number[] = []
  for (let context = from; context <= to; context *= 2) {
    contexts.push(context)
    if (context >= bytes.length) break
  }
  const judged: Judged[] = []
  for (const name of names) {
    await using model = await openModel(name, flags, signal)
    const one: Judged = { model: name, points: [] }
    judged.push(one)
    const { contextMax = Number.POSITIVE_INFINITY } = model.network
    expect(
      from <= contextMax,
      "BAD_OPTION",
      () => `eval: --from is at most the contextMax of ${name}, ${contextMax}, got ${from}`,
    )
    for (const context of contexts) {
      if (context > contextMax) break
      const bitsPerByte = await model.bitsPerByte(bytes, { signal, context })
      one.points.push({ context, bitsPerByte })
      if (!json) console.log(`${name}, context ${context}: ${bitsPerByte.toFixed(4)} bits per byte`)
    }
  }
  if (json) console.log(JSON.stringify({ models: judged }))
  if (out !== undefined) await writeFileAtomically(out, plot(judged, basename(String(flags.file))))
}

const plot = (judged: readonly Judged[], text: string): string =>
  linePlot({
    title: `Bits per byte of ${text} by context`,
    x: "context, bytes",
    y: "bits per byte",
    logX: true,
    series: judged.map(({ model, points }) => ({
      name: model,
      points: points.map(({ context, bitsPerByte }) => [context, bitsPerByte] as const),
    })),
  })
