import { execFileSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import test from "ava"
import { Player, promptOf, type Settings } from "../../bench/peers/party.ts"
import { load } from "../../lib/generate/load.ts"

const demo = fileURLToPath(new URL("../../models/demo", import.meta.url))
const settings: Settings = {
  ...{ model: demo, threads: 1, vocab: 256, tokensMost: 64, batchMost: 2, modules: "", version: "", load: {} },
}

/** States of the processes that this one has started, as ps has them: T is stopped. */
function states(): string[] {
  const lines = execFileSync("ps", ["-A", "-o", "ppid=,stat=,args="], { encoding: "utf8" }).split("\n")
  const own = lines.filter((line) => line.trim().startsWith(`${process.pid} `) && line.includes("ours.ts"))
  return own.map((line) => line.trim().split(/\s+/)[1]!)
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
  if (process.platform === "linux")
    t.deepEqual(
      states().map(([first]) => first),
      ["T"],
    )
  await using model = await load("demo", { device: "cpu" })
  using session = model.session()
  const ids: number[] = []
  for await (const { id } of session.tokens(promptOf(0, 24, 256), { maxTokens: 1, temperature: 0 })) ids.push(id)
  const logits = await player.logits(promptOf(0, 24, 256))
  t.is(logits.length, 256)
  t.is(logits.indexOf(Math.max(...logits)), ids[0]!, "the same model, the same prompt")
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
