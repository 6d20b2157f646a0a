import { readdirSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import test from "ava"
import { commit, withHub } from "../hub/helpers.ts"
import { selscan } from "./run.ts"

const context = withHub()
const demo = fileURLToPath(new URL("../../models/demo", import.meta.url))

test.serial(
  "commands take models on the Hub, once, and info tells what the cache has without asking anybody",
  async (t) => {
    const { hub, newCache } = context
    const files = readdirSync(demo).map((file) => [file, readFileSync(`${demo}/${file}`)] as const)
    hub.put("owner/demo", Object.fromEntries(files), commit)
    const env = { ...process.env, HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: await newCache() }
    const generate = ["generate", "In the", "--max-tokens", "4", "--seed", "1", "--json", "--device", "cpu", "--model"]

    const before = await selscan(["info", "--model", "owner/demo"], { env })
    t.is(before.code, 1)
    t.regex(before.err, /^selscan: download owner\/demo: .+\n$/)
    t.is(hub.connections, 0)

    const [here, there] = [
      await selscan([...generate, "demo"], { env }),
      await selscan([...generate, "owner/demo"], { env }),
    ]
    t.is(there.err, "")
    t.is(JSON.parse(there.out).text, JSON.parse(here.out).text)

    hub.reset()
    const info = JSON.parse((await selscan(["info", "--json", "--model", "owner/demo"], { env })).out)
    t.is(info.model.family, "Mamba")
    t.is(info.hub.models[0].name, "owner/demo")
    t.is(hub.connections, 0)

    const offline = await selscan(["score", "x", "--model", "owner/demo"], { env: { ...env, HF_HUB_OFFLINE: "1" } })
    t.is(offline.code, 0, offline.err)
    t.is(hub.connections, 0)
    const unknown = await selscan([...generate, "owner/demos"], { env })
    t.is(unknown.code, 1)
    t.regex(unknown.err, /^selscan: download owner\/demos: .+\n$/)
  },
)
