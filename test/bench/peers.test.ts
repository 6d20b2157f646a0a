import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "ava"
import { llama, match, measurements, type Plan, type Result, ratio, tableOf } from "../../bench/peers/match.ts"
import { nameOf, type Party, type Task } from "../../bench/peers/party.ts"
import { ratioPlot } from "../../bench/peers/plot.ts"
import { draw, record } from "../../bench/peers/records.ts"
import { verdicts } from "../../bench/peers/targets.ts"

const setting = { model: "mamba-130m", form: "bf16", vocab: 4, apart: 0.01 }
const tasks: readonly Task[] = [
  { kind: "prefill", tokens: 512 },
  { kind: "prefill", tokens: 700 },
  { kind: "decode", tokens: 10, batch: 1 },
  { kind: "decode", tokens: 10, batch: 8 },
]
const plan: Plan = { tasks, repeats: 3, most: 1e6, tell: () => {} }

/** One that takes so many seconds a token, and writes down when it is asked for what. */
function player(name: string, perToken: number, asked: string[], logits = [1, 2, 3, 4]): Party & { name: string } {
  const tokens = (task: Task) => (task.kind === "prefill" ? task.tokens : task.tokens * task.batch)
  return {
    name,
    about: async () => name,
    warm: async (task) => asked.push(`${name} warm ${nameOf(task)}`),
    seconds: async (task) => {
      asked.push(`${name} ${nameOf(task)}`)
      return tokens(task) * perToken
    },
    logits: async () => logits,
    readBandwidth: async () => 10e9,
    bytesPerToken: async () => 1e6,
  }
}

const played = async (ours: number, theirs: number, more: Partial<Plan> = {}, asked: string[] = []): Promise<Result> =>
  await match([player("selscan", ours, asked), player(llama, theirs, asked)] as never, setting, { ...plan, ...more })

test("players take turns, who began begins last in the next round, and each is warm before the first", async (t) => {
  const asked: string[] = []
  await played(1, 2, { repeats: 2, tasks: tasks.slice(0, 1) }, asked)
  const [a, b] = ["selscan prefill 512", `${llama} prefill 512`]
  t.deepEqual(asked, ["selscan warm prefill 512", `${llama} warm prefill 512`, a, b, b, a])
})

test("a task that has taken its time is left out of later rounds, after one at least", async (t) => {
  const { lines } = await played(1, 1, { most: 0 })
  for (const { seconds } of lines) t.is(seconds.length, 1)
})

test.serial("a task is done as often as its time allows: one round more would pass it", async (t) => {
  const { now } = performance
  t.teardown(() => Object.assign(performance, { now }))
  let clock = 0
  const slow = { ...player("selscan", 1, []), seconds: async () => (clock += 10e3) }
  const rounds = async (most: number) => {
    const { lines } = await match([slow] as never, setting, { ...plan, tasks: tasks.slice(0, 1), repeats: 40, most })
    return lines[0]!.seconds.length
  }
  Object.assign(performance, { now: () => clock })
  t.deepEqual([await rounds(9), await rounds(10), await rounds(29), await rounds(30)], [1, 1, 2, 3])
})

test("models whose logits are apart are not timed", async (t) => {
  const asked: string[] = []
  const [one, other] = [player("selscan", 1, asked), player(llama, 1, asked, [1, 2, 3, 4.2])]
  await t.throwsAsync(match([one, other] as never, setting, plan), { message: /do not compute the same$/ })
  const cut = player(llama, 1, asked, [1, 2, 3])
  await t.throwsAsync(match([one, cut] as never, setting, plan), { message: /do not compute the same$/ })
  t.deepEqual(asked, [])
})

test("a table says who is how much faster, and calls a loss one", async (t) => {
  const won = await played(1e-3, 4e-3)
  t.is(ratio(won.lines, "prefill 512", llama, "selscan")!.median, 4)
  t.regex(tableOf(won), /^prefill 512 +selscan +1000 +1000 – 1000 +4\.00× +4\.00× – 4\.00×$/m)
  t.notRegex(tableOf(won), /LOSS/)
  const lost = tableOf(await played(4e-3, 1e-3))
  t.regex(lost, /^prefill 512 +selscan +250\.0 .* 0\.250× LOSS /m)
  t.is(lost.split("LOSS").length, 1 + tasks.length)
})

test("targets are met or not, and those that a run says nothing about are left out", async (t) => {
  const text = verdicts(await played(1e-3, 4e-3))
  t.regex(text, /^prefill 512, mamba-130m, bf16 +llama\.cpp +≥ 20× +4\.00× +NOT MET$/m)
  t.regex(text, /^prefill 700 +ours at 512, per token +within 15% +\+0\.0% +met$/m)
  t.regex(text, /^decode, batch 1, every model, bf16 +llama\.cpp +≥ 1\.8× +4\.00× +met$/m)
  t.regex(text, /^decode, batch 1, bf16 +read bandwidth of the run +≥ 80% +10% of 10\.0 GB\/s +NOT MET$/m)
  t.notRegex(text, /790m|int8|prefill 509/)
})

test("records have the form of the others: milliseconds of a token, rates, shares, ratios", async (t) => {
  const all = measurements(await played(1e-3, 4e-3))
  const shape = "mamba-130m, bf16: decode, batch 1"
  t.like(
    all.find((one) => one.shape === `${shape}, selscan`),
    { unit: "ms per token", median: 1, bytes: 1e6, share: { value: 0.1, of: "10.0 GB/s read" } },
  )
  t.like(
    all.find((one) => one.shape === `${shape}, selscan over ${llama}`),
    { unit: "×", median: 4 },
  )
  const theirs = all.find((one) => one.shape === `${shape}, ${llama}`)!
  t.is(theirs.rate!.value, 250)
  t.is(theirs.share, undefined)
})

test("a plot has a dot for every task, a loss in another colour, and no text that is markup", (t) => {
  const dot = (name: string, median: number) => ({ name, note: "", median, min: 0.9 * median, max: 1.1 * median })
  const svg = ratioPlot("a < b", [dot("won", 20), dot("lost", 0.5)])
  t.deepEqual(
    [...svg.matchAll(/<circle [^>]*fill="(#\w+)"/g)].map(([, colour]) => colour),
    ["#0072b2", "#d55e00"],
  )
  t.regex(svg, /a &lt; b/)
  t.notRegex(svg, /NaN|undefined/)
})

test("table and plot of the records have the latest ratio of every shape, with the speeds it is of", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), "selscan-records-"))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  draw(folder, "none")
  t.false(existsSync(join(folder, "peers.svg")))
  record(folder, { commit: "first" }, measurements(await played(0.1, 0.2)))
  record(folder, { commit: "second" }, measurements(await played(0.1, 0.5, { tasks: tasks.slice(0, 2) })))
  draw(folder, "all")
  const svg = readFileSync(join(folder, "peers.svg"), "utf8")
  const notes = [...svg.matchAll(/>(\d[^<]*to [^<]*)</g)].map(([, note]) => note!.replace(/\s+/g, " "))
  t.deepEqual(notes.slice(0, 2), ["5.00× 10.00 to 2.000 tokens/s", "5.00× 10.00 to 2.000 tokens/s"])
  t.deepEqual(notes.slice(2), ["2.00× 10.00 to 5.000 tokens/s", "2.00× 10.00 to 5.000 tokens/s"])
  const table = readFileSync(join(folder, "peers.md"), "utf8")
  t.deepEqual(table.match(/\| (first|second) \|$/gm)?.length, 4)
  t.regex(table, /\| mamba-130m, bf16: prefill 512 \| 10\.00 \| 2\.000 \| 5\.00× \| 5\.00× – 5\.00× \| second \|/)
})
