import { readdirSync, readFileSync } from "node:fs"
import { setTimeout } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import test from "ava"
import { Player, promptOf, type Settings } from "../../bench/peers/party.ts"
import { load } from "../../lib/generate/load.ts"
import { ourLogits } from "../../scripts/llama.ts"

const demo = fileURLToPath(new URL("../../models/demo", import.meta.url))
const settings: Settings = {
  ...{ model: demo, threads: 1, vocab: 256, tokensMost: 64, batchMost: 2, modules: "", version: "", load: {} },
  blockBytes: 4 << 20,
}

/** States of the processes that this one has started and that run ours.ts, as Linux has them: T is stopped. */
function states(): string[] {
  return readdirSync("/proc").flatMap((id) => {
    if (!/^\d+$/.test(id)) return []
    try {
      // pid (name) state parent …: a name may have spaces and brackets.
      const [state, parent] = readFileSync(`/proc/${id}/stat`, "utf8").split(") ").at(-1)!.split(" ")
      const own = Number(parent) === process.pid && readFileSync(`/proc/${id}/cmdline`, "utf8").includes("ours.ts")
      return own ? [state!] : []
    } catch {
      return [] // ended since the folder was read
    }
  })
}

/** The same, once all are stopped, or after two seconds: a process takes a signal when it next has a core. */
async function settledStates(): Promise<string[]> {
  for (let i = 0; i < 100 && states().some((state) => state !== "T"); i++) await setTimeout(20)
  return states()
}

test.serial("a player answers from a process of its own, which is stopped while it is not asked", async (t) => {
  const player = await Player.start("ours", "ours.ts", settings)
  t.teardown(() => player.end())
  t.regex(await player.about(), /^selscan, \w+ products, \w+, 1 threads$/)
  for (const task of [
    { kind: "prefill", tokens: 20 },
    { kind: "decode", tokens: 3, batch: 2 },
  ] as const)
    t.true((await player.seconds(task)) > 0)
  t.true((await player.readBandwidth()) > 1e8)
  t.true((await player.bytesPerToken({ kind: "decode", tokens: 3, batch: 1 })) > 1e6)
  if (process.platform === "linux") t.deepEqual(await settledStates(), ["T"])
  await using model = await load("demo", { device: "cpu" })
  using session = model.session()
  const ids: number[] = []
  for await (const { id } of session.tokens(promptOf(0, 24, 256), { maxTokens: 1, temperature: 0 })) ids.push(id)
  const logits = await player.logits(promptOf(0, 24, 256))
  t.is(logits.length, 256)
  t.is(logits.indexOf(Math.max(...logits)), ids[0]!, "the same model, the same prompt")
})

test.serial("a player whose weights are in 8 bits has the logits of that very model", async (t) => {
  const player = await Player.start("ours", "ours.ts", { ...settings, load: { weights: "int8" } })
  t.teardown(() => player.end())
  const logits = await player.logits(promptOf(0, 24, 256))
  await using model = await load("demo", { device: "cpu", weights: "int8" })
  t.deepEqual(logits, [...(await ourLogits(model, promptOf(0, 24, 256))).subarray(-256)])
  await using plain = await load("demo", { device: "cpu" })
  t.notDeepEqual(logits, [...(await ourLogits(plain, promptOf(0, 24, 256))).subarray(-256)])
})

test.serial("what goes wrong in a player's process is an error of its own name", async (t) => {
  await t.throwsAsync(Player.start("missing", "ours.ts", { ...settings, model: "/nowhere" }), {
    message: /^peers: missing: .*nowhere/,
  })
  const player = await Player.start("ours", "ours.ts", settings)
  const asked = player.seconds({ kind: "prefill", tokens: 64 })
  player.end()
  await t.throwsAsync(asked, { message: "peers: ours ended with SIGKILL while it was asked" })
})
