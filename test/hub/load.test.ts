import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import baseTest, { type TestFn } from "ava"
import { load } from "../../lib/generate/load.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { device } from "../device.ts"
import { tinyModel } from "../generate/tiny.ts"
import { commit, withHub } from "./helpers.ts"
import { answers } from "./server.ts"

const test = baseTest.serial as TestFn
const context = withHub()

test("load takes a model from the Hub, bit for bit, and then from the cache without a connection", async (t) => {
  const { hub, folder, newCache } = context
  await using model = await tinyModel({ kind: "samba" })
  const saved = join(folder, "saved")
  await model.save(saved)
  const files = Object.fromEntries(readdirSync(saved).map((file) => [file, readFileSync(join(saved, file))]))
  hub.put("tiny/samba", files, commit)
  const cacheDir = await newCache()
  const { endpoint } = hub
  let loaded = 0
  const onProgress = ({ loadedBytes, totalBytes }: { loadedBytes: number; totalBytes: number }) => {
    loaded = loadedBytes / totalBytes
  }
  await using fromHub = await load("tiny/samba", { device, cacheDir, endpoint, onProgress, sessions: 2 })
  t.is(loaded, 1)
  for (const [name] of allParameters(model.network)) {
    t.deepEqual(await fromHub.store.download("weight", name), await model.store.download("weight", name))
  }
  hub.reset()
  await using again = await load(`tiny/samba@${commit}`, { device, cacheDir, endpoint })
  await using offline = await load("tiny/samba", { device, cacheDir, endpoint, offline: true })
  t.is(again.network.vocab, 256)
  t.is(offline.network.vocab, 256)
  t.is(hub.connections, 0)
})

test("a name that is neither a folder nor on the Hub says both, and one that cannot be there asks nobody", async (t) => {
  const { hub, folder, newCache } = context
  const options = { device, endpoint: hub.endpoint, cacheDir: await newCache() }
  const message = /^download models\/typo: expected a model of this name at .*give the path of a folder that exists/
  await t.throwsAsync(load("models/typo", options), { code: "NOT_FOUND", message })
  hub.reset()
  for (const path of ["./models/typo", "models/typo/", "typo", join(folder, "typo"), "a/b/c", "../b"]) {
    await t.throwsAsync(load(path, options), {
      code: "NOT_FOUND",
      message: /^load: expected .* owner\/name on the Hub/,
    })
  }
  await t.throwsAsync(load("demo", { device, revision: "v1" }), {
    code: "BAD_OPTION",
    message: /load: expected no revision/,
  })
  await t.throwsAsync(load("tiny/x", { device, endpont: "x" } as object), {
    code: "BAD_OPTION",
    message: /did you mean endpoint/,
  })
  t.is(hub.connections, 0)
})

test("a path with a typing error, which looks like a name, is told of where the Hub says nothing", async (t) => {
  const { hub, newCache } = context
  hub.reset()
  hub.bend = answers(418)
  await t.throwsAsync(load("runs/bok", { device, cacheDir: await newCache(), endpoint: hub.endpoint }), {
    code: "NETWORK",
    message: /^download runs\/bok: .*; of a folder give a path that exists$/,
  })
  hub.reset()
})
