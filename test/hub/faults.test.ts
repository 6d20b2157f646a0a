import { existsSync } from "node:fs"
import { mkdir, writeFile } from "node:fs/promises"
import type { ServerResponse } from "node:http"
import { join } from "node:path"
import baseTest, { type TestFn } from "ava"
import { SelscanError } from "../../lib/errors.ts"
import { blobs, bytesOf, check, commit, contents, file, name, put, unfinished, weights, withHub } from "./helpers.ts"
import { type Asked, answers, type Bend, sendContent, sha256 } from "./server.ts"

const test = baseTest.serial as TestFn
const context = withHub()
const ofWeights = ({ host, file: asked }: Asked): boolean => host === "cdn" && asked === file

/** Where a request goes on. */
const resumedAt = (range: string | undefined): number => Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0)

/**
 * The first so many bytes of what was asked for, and the end of the connection: some time later, since fetch throws away what has
 * come but has not been read when a connection breaks.
 */
function cut(response: ServerResponse, asked: Asked, bytes: Uint8Array, count: number, pauseMs = 30): true {
  const from = Number(/\d+/.exec(asked.range ?? "0")![0])
  response.writeHead(asked.range ? 206 : 200, {
    "content-length": bytes.length - from,
    ...(asked.range && { "content-range": `bytes ${from}-${bytes.length - 1}/${bytes.length}` }),
  })
  response.write(bytes.subarray(from, from + count), () => setTimeout(() => response.destroy(), pauseMs))
  return true
}

/** Bends the first answers with weights, the others not. */
function bendFirst(bend: Bend, times = 1): Bend {
  let left = times
  return (...given) => ofWeights(given[0]) && left-- > 0 && bend(...given)
}

test("a connection that is cut goes on where it ended, at every byte of a small file", async (t) => {
  const { hub, get, newCache } = context
  const small = bytesOf(120)
  let kept = 0
  for (let at = 0; at <= small.length; at++) {
    put(context.hub, small)
    hub.reset()
    const cacheDir = await newCache()
    hub.bend = bendFirst((asked, response) => cut(response, asked, small, at, 3))
    const folder = await get(name, { cacheDir })
    await check(t, cacheDir, folder, small)
    const [first, next] = hub.ranges(file).map(resumedAt)
    t.is(first, 0)
    t.true((next ?? 0) <= at)
    if (next === at) kept++
  }
  t.true(kept > 60, `${kept} of ${small.length}`)
})

test("a large file that is cut many times comes whole, as long as each piece is worth the try", async (t) => {
  const { hub, get, newCache } = context
  const large = bytesOf(12_000_000)
  put(context.hub, large)
  const cacheDir = await newCache()
  hub.bend = bendFirst((asked, response) => cut(response, asked, large, 1_500_000), 7)
  await check(t, cacheDir, await get(name, { cacheDir }), large)
  t.true(hub.ranges(file).length >= 8)
})

test("a server that always cuts is given up, and the next download goes on", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const cacheDir = await newCache()
  hub.bend = bendFirst((asked, response) => cut(response, asked, weights, 1000), Number.POSITIVE_INFINITY)
  const message =
    /^download owner\/model: expected an answer of http.*, got .*; check the network.*what has arrived is kept$/
  await t.throwsAsync(get(name, { cacheDir }), { code: "NETWORK", message })
  t.is(hub.ranges(file).length, 3)
  t.deepEqual(await unfinished(cacheDir), [join(blobs, `${sha256(weights)}.selscan.incomplete`)])
  t.false((await contents(cacheDir)).some((path) => path.endsWith(join(commit, file))))
  hub.reset()
  await check(t, cacheDir, await get(name, { cacheDir }))
  const begin = resumedAt(hub.ranges(file)[0])
  t.true(begin > 0 && begin <= 3000)
})

test("wrong content is refused by its hash, removed, and never gets a name", async (t) => {
  const { hub, get, newCache } = context
  const wrong = Buffer.from(weights)
  wrong[1234]! ^= 1
  for (const [bent, given, what] of [
    [ofWeights, wrong, "sha256"],
    [({ file }: Asked) => file === "tokenizer.json", Buffer.from("[]"), "git hash"],
  ] as const) {
    put(context.hub)
    const cacheDir = await newCache()
    hub.bend = (asked, response, request) => {
      if (bent(asked)) sendContent(given, request, response)
      return bent(asked)
    }
    const message = new RegExp(`expected \\S+ with ${what} [0-9a-f]+, got another; it is removed`)
    await t.throwsAsync(get(name, { cacheDir }), { code: "BAD_FILE", message })
    t.false((await contents(cacheDir)).some((path) => path.endsWith(file)))
    const left = await unfinished(cacheDir)
    t.true(what === "git hash" || left.length === 0)
    hub.reset()
    await check(t, cacheDir, await get(name, { cacheDir }))
  }
})

test("what an earlier download left is held to the hash too, and comes again when it is wrong or too long", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  for (const left of [
    Buffer.alloc(1000),
    Buffer.alloc(weights.length),
    Buffer.alloc(weights.length + 1),
    Buffer.alloc(0),
  ]) {
    const cacheDir = await newCache()
    await mkdir(join(cacheDir, blobs), { recursive: true })
    await writeFile(join(cacheDir, blobs, `${sha256(weights)}.selscan.incomplete`), left)
    hub.reset()
    await check(t, cacheDir, await get(name, { cacheDir }))
    t.is(hub.ranges(file).at(-1), undefined)
  }
})

test("a file of another size than listed is refused, whether it says so or not", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  for (const bend of [
    (_: Asked, response: ServerResponse) => void response.writeHead(200, { "content-length": 5 }).end("small"),
    (_: Asked, response: ServerResponse) => void response.writeHead(200).end(Buffer.concat([weights, weights])),
  ]) {
    const cacheDir = await newCache()
    hub.bend = (asked, response) => {
      if (ofWeights(asked)) bend(asked, response)
      return ofWeights(asked)
    }
    const message = /expected 300000 bytes of model\.safetensors, as it is listed, got \d+; it is removed/
    await t.throwsAsync(get(name, { cacheDir }), { code: "BAD_FILE", message })
    t.deepEqual(await unfinished(cacheDir), [])
  }
})

test("an answer without a length, and one that ignores ranges, are taken", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  let times = 0
  const cacheDir = await newCache()
  hub.bend = (asked, response) => {
    if (!ofWeights(asked)) return false
    response.writeHead(200) // chunked, and from the beginning whatever was asked
    if (times++ === 0) response.write(weights.subarray(0, 70_000), () => setTimeout(() => response.destroy(), 30))
    else response.end(weights)
    return true
  }
  await check(t, cacheDir, await get(name, { cacheDir }))
  t.true(resumedAt(hub.ranges(file)[1]) > 0)
})

test("a file that becomes another between two parts begins again", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const conditions: unknown[] = []
  for (const obeys of [true, false]) {
    hub.reset()
    let times = 0
    const cacheDir = await newCache()
    hub.bend = (asked, response) => {
      if (!ofWeights(asked) || times++ > 1) return false
      response.setHeader("etag", times === 1 ? '"old"' : '"new"')
      if (times === 1) return cut(response, asked, Buffer.alloc(weights.length), 50_000)
      conditions.push(asked.ifRange)
      if (obeys) response.end(weights)
      return obeys || cut(response, asked, weights, 10)
    }
    await check(t, cacheDir, await get(name, { cacheDir }))
    t.deepEqual(
      hub.ranges(file).map((range) => resumedAt(range) > 0),
      obeys ? [false, true] : [false, true, false],
    )
  }
  t.deepEqual(conditions, ['"old"', '"old"'])
})

test("an answer to another range than asked is thrown away", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  for (const range of ["bytes 7-299999/300000", "nonsense"]) {
    let times = 0
    const cacheDir = await newCache()
    hub.bend = (asked, response) => {
      if (!ofWeights(asked) || times++ > 1) return false
      if (times === 1) return cut(response, asked, weights, 1000)
      response.writeHead(206, { "content-range": range }).end(weights.subarray(7))
      return true
    }
    await check(t, cacheDir, await get(name, { cacheDir }))
  }
})

test("statuses that pass are tried again, others not", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  for (const status of [500, 502, 503, 429, 408]) {
    const seen = new Map<string, number>()
    hub.bend = (asked, response) => {
      const count = (seen.get(asked.path) ?? 0) + 1
      seen.set(asked.path, count)
      if (asked.host === "cdn" || count > 2) return false
      response.writeHead(status, { "retry-after": "0.01" }).end("busy")
      return true
    }
    const cacheDir = await newCache()
    await check(t, cacheDir, await get(name, { cacheDir }))
  }
  hub.reset()
  hub.bend = answers(503)
  await t.throwsAsync(get(name, { cacheDir: await newCache() }), { code: "NETWORK", message: /got status 503;/ })
  t.is(hub.asked.length, 3)
  hub.reset()
  hub.bend = answers(418)
  await t.throwsAsync(get(name, { cacheDir: await newCache() }), { code: "NETWORK", message: /got status 418;/ })
  t.is(hub.asked.length, 1)
})

test("weights get their name last: a snapshot that has them has all else", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const cacheDir = await newCache()
  let arrived = false
  const onProgress = ({ file: grown }: { file: string }) => {
    arrived ||= grown === file
  }
  hub.bend = ({ file: asked }, response) => {
    if (asked !== "tokenizer.json") return false
    const wait = setInterval(() => {
      if (!arrived) return
      clearInterval(wait)
      setTimeout(() => response.writeHead(404, { "x-error-code": "EntryNotFound" }).end(), 200)
    }, 5)
    return true
  }
  await t.throwsAsync(get(name, { cacheDir, onProgress }), { code: "NOT_FOUND" })
  t.true((await contents(cacheDir)).includes(join(blobs, sha256(weights))))
  const message = /expected weights in the cache, as offline is set/
  hub.reset()
  t.false((await contents(cacheDir)).some((path) => path.endsWith(join(commit, file))))
  await t.throwsAsync(get(name, { cacheDir, offline: true, revision: commit }), { code: "NOT_FOUND", message })
  await check(t, cacheDir, await get(name, { cacheDir }))
  t.deepEqual(hub.ranges(file), [])
})

test("a server that falls silent, at once or in the middle, does not hang a download", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  const silences: Bend[] = [
    () => true,
    (_, response) => {
      response.writeHead(200, { "content-length": weights.length }).write(weights.subarray(0, 5000))
      return true
    },
  ]
  for (const silence of silences) {
    const cacheDir = await newCache()
    hub.bend = bendFirst(silence)
    await check(t, cacheDir, await get(name, { cacheDir, timeoutMs: 150 }))
  }
  hub.bend = () => true
  const message = /got silence for 60 ms; check the network/
  await t.throwsAsync(get(name, { cacheDir: await newCache(), timeoutMs: 60 }), { code: "NETWORK", message })
})

test("a token goes to the Hub alone, not where it redirects or points to", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  hub.pageSize = 1
  const folder = await get(name, { cacheDir: await newCache(), token: "hf_secret" })
  t.true(existsSync(folder))
  for (const { host, authorization } of hub.asked) t.is(authorization, host === "hub" ? "Bearer hf_secret" : undefined)
  t.true(hub.asked.some(({ host }) => host === "cdn"))
  hub.reset()
  const elsewhere = `http://localhost:${new URL(hub.endpoint).port}` // another origin
  hub.bend = ({ path }, response) => {
    if (!path.includes("/tree/")) return false
    const link = `<${elsewhere}${path.replace(/\?.*/, "")}?leak=${path.includes("leak") ? 2 : 1}>; rel="next"`
    response.writeHead(200, { "content-type": "application/json", ...(!path.includes("leak=2") && { link }) }).end("[]")
    return true
  }
  await t.throwsAsync(get(name, { cacheDir: await newCache(), token: "hf_secret" }), { code: "NOT_FOUND" })
  const leaks = hub.asked.filter(({ path }) => path.includes("leak="))
  t.deepEqual(
    leaks.map(({ authorization }) => authorization),
    [undefined, undefined],
  )
})

test("whatever a server does, in any order, a download ends with the right file or one clear error", async (t) => {
  const { hub, get, newCache } = context
  put(context.hub)
  let state = 20_261_122
  const random = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
  const wrong = Buffer.from(weights).fill(1, 1000, 1010)
  const bends: Bend[] = [
    (asked, response) => cut(response, asked, weights, random(weights.length), 1),
    (asked, response) => cut(response, asked, wrong, random(weights.length), 1),
    (_, response) => {
      response
        .setHeader("etag", `"${random(3)}"`)
        .writeHead(200)
        .end(weights)
      return true
    },
    (_, response) => {
      const from = random(weights.length)
      const range = `bytes ${from}-${weights.length - 1}/${weights.length}`
      response.writeHead(206, { "content-range": range }).end(weights.subarray(from, random(weights.length)))
      return true
    },
    answers(500),
    answers(416),
    (_, response) => {
      response.destroy()
      return true
    },
    () => false,
  ]
  const ends = { right: 0, refused: 0 }
  for (let run = 0; run < 60; run++) {
    const cacheDir = await newCache()
    hub.bend = (...given) => ofWeights(given[0]) && bends[random(bends.length)]!(...given)
    for (let again = 0; again < 2; again++) {
      try {
        const folder = await get(name, { cacheDir })
        await check(t, cacheDir, folder)
        ends.right++
      } catch (error) {
        t.true(error instanceof SelscanError && ["NETWORK", "BAD_FILE"].includes(error.code), String(error))
        t.false((await contents(cacheDir)).some((path) => path.endsWith(join(commit, file))))
        ends.refused++
      }
    }
  }
  t.true(ends.right > 10 && ends.refused > 10, JSON.stringify(ends))
})

test("a server that ignores ranges and cuts every answer is given up, however much it sends", async (t) => {
  const { hub, get, newCache } = context
  const large = bytesOf(3 << 20)
  put(context.hub, large)
  hub.bend = (asked, response) => {
    if (!ofWeights(asked)) return false
    if (hub.ranges(file).length > 20) return false
    response.writeHead(200, { "content-length": large.length })
    response.write(large.subarray(0, 2 << 20), () => setTimeout(() => response.destroy(), 30))
    return true
  }
  await t.throwsAsync(get(name, { cacheDir: await newCache() }), { code: "NETWORK" })
  t.true(hub.ranges(file).length <= 4)
})
