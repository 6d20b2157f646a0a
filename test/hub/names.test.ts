import { mkdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import baseTest, { type TestFn } from "ava"
import { remoteFile } from "../../lib/hub/files.ts"
import { isHubName, parseHubName } from "../../lib/hub/name.ts"
import type { DownloadOptions } from "../../lib/hub/options.ts"
import { commit, config, contents, name, withHub } from "./helpers.ts"
import { answers, gitHash } from "./server.ts"

const test = baseTest.serial as TestFn
const context = withHub()

test("names are owner/name, with a revision after an @", (t) => {
  t.deepEqual(parseHubName("state-spaces/mamba-130m-hf"), {
    repository: "state-spaces/mamba-130m-hf",
    revision: undefined,
  })
  t.deepEqual(parseHubName("a/b_c.d-1@refs/pr/12"), { repository: "a/b_c.d-1", revision: "refs/pr/12" })
  t.deepEqual(parseHubName("a/b@v1.0+x", "v1.0+x"), { repository: "a/b", revision: "v1.0+x" })
  for (const good of ["a/b", "A1/b-c", "_a/b_", `a/${"b".repeat(96)}`, "a/b@anything"]) t.true(isHubName(good), good)
  for (const bad of [
    ...["", "a", "/", "a/", "/a", "a/b/c", "./b", "../b", "a/..", "a/.b", "a/b.", "-a/b", "a/b-", "a--b/c", "a/b..c"],
    ...[
      "a/b.git",
      "~/b",
      "a\\b/c",
      "a/b c",
      "a/b\n",
      "a/b\0",
      "C:/b",
      "a/b?x",
      "a/b#x",
      "a/%2e%2e",
      `a/${"b".repeat(97)}`,
    ],
  ]) {
    t.false(isHubName(bad), bad)
    t.throws(() => parseHubName(bad), { code: "BAD_INPUT" })
  }
  for (const bad of [
    "",
    "/x",
    "x/",
    "x//y",
    "..",
    "a/../b",
    "./a",
    ".a",
    "a/.b",
    "a\\b",
    "a b",
    "a\0",
    "a.lock",
    "a%2f",
    "é",
  ]) {
    t.throws(() => parseHubName(`a/b@${bad}`), { code: "BAD_OPTION" }, bad)
    t.throws(() => parseHubName("a/b", bad), { code: "BAD_OPTION" }, bad)
  }
  t.throws(() => parseHubName("a/b@main", "v2"), {
    code: "BAD_OPTION",
    message: /expected one revision, got main in the name and v2/,
  })
  for (const bad of [undefined, null, 1, {}, ["a/b"]]) t.throws(() => parseHubName(bad), { code: "BAD_INPUT" })
})

test("options are checked by name and value before anything is asked", async (t) => {
  const { get } = context
  const cases: [object, RegExp][] = [
    [{ revison: "main" }, /unknown option revison, did you mean revision\?/],
    [{ revision: 1 }, /expected revision to be a branch, a tag or a commit hash, got number/],
    [{ token: "two words" }, /expected token to be one word of ASCII characters/],
    [{ token: true }, /expected token/],
    [{ endpoint: "ftp://x" }, /expected endpoint to be an address such as https:\/\/huggingface\.co, got "ftp:\/\/x"/],
    [{ endpoint: "nowhere" }, /expected endpoint/],
    [{ endpoint: "https://user:pass@host" }, /expected endpoint/],
    [{ cacheDir: "" }, /cacheDir is the path of a folder, got ""/],
    [{ cacheDir: 1 }, /cacheDir is the path of a folder, got 1/],
    [{ offline: "yes" }, /offline is true or false, got "yes"/],
    [{ onProgress: 1 }, /onProgress is a function, got 1/],
    [{ signal: {} }, /signal is an AbortSignal, got object/],
    [{ timeoutMs: 0 }, /timeoutMs is a whole number above 0, got 0/],
    [{ timeoutMs: 2 ** 40 }, /timeoutMs/],
    [{ fetch: "x" }, /fetch is a function/],
  ]
  for (const [options, message] of cases) {
    await t.throwsAsync(get(name, options as DownloadOptions), { code: "BAD_OPTION", message })
  }
  const secret = await t.throwsAsync(get(name, { token: "my secret" }))
  t.notRegex(secret.message, /my secret/)
  t.is(context.hub.connections, 0)
})

test("the token comes from the option, the environment, or where `hf auth login` has put it", async (t) => {
  const { hub, folder, get, newCache } = context
  hub.put(name, { "config.json": config, "model.safetensors": "x" }, commit)
  const sent = async (options: DownloadOptions = {}) => {
    hub.reset()
    await get(name, { cacheDir: await newCache(), ...options })
    return hub.asked[0]?.authorization
  }
  t.is(await sent(), undefined)
  mkdirSync(join(folder, "home"), { recursive: true })
  writeFileSync(join(folder, "home", "token"), "hf_stored\n")
  t.is(await sent(), "Bearer hf_stored")
  process.env.HF_TOKEN = "of-a-mirror"
  t.teardown(() => {
    delete process.env.HF_TOKEN
    rmSync(join(folder, "home", "token"))
  })
  t.is(await sent(), "Bearer of-a-mirror")
  t.is(await sent({ token: "hf_mine" }), "Bearer hf_mine")
  t.is(await sent({ token: false }), undefined)
})

test("refusals of the Hub say what is missing and what to do", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, { "config.json": config, "model.safetensors": "x" }, commit)
  const cacheDir = await newCache()
  await t.throwsAsync(get("owner/absent", { cacheDir }), {
    code: "NOT_FOUND",
    message:
      /^download owner\/absent: expected a model of this name at http.*, got status 404; check the name at .*, give a token if it is private/,
  })
  await t.throwsAsync(get(`${name}@v9`, { cacheDir }), {
    code: "NOT_FOUND",
    message: /expected the revision v9, got status 404;/,
  })
  await t.throwsAsync(get(`${name}@${"3".repeat(40)}`, { cacheDir }), {
    code: "NOT_FOUND",
    message: /expected the revision 333/,
  })
  const token = "hf_x"
  const cases: [number, string | undefined, DownloadOptions, string, RegExp][] = [
    [
      401,
      undefined,
      {},
      "NO_ACCESS",
      /that may be read, got status 401 \("no entry"\); check the name, or give a token/,
    ],
    [401, undefined, { token }, "NO_ACCESS", /check the token and its rights/],
    [403, undefined, { token }, "NO_ACCESS", /check the token and its rights/],
    [401, "RepoNotFound", {}, "NOT_FOUND", /expected a model of this name/],
    [
      403,
      "GatedRepo",
      {},
      "NO_ACCESS",
      /accept its terms at http.*\/owner\/model, and give a token as option or HF_TOKEN/,
    ],
    [403, "GatedRepo", { token }, "NO_ACCESS", /and give that account's token/],
  ]
  for (const [status, kind, options, code, message] of cases) {
    const headers = { "x-error-message": "no entry", ...(kind && { "x-error-code": kind }) }
    hub.reset()
    hub.bend = answers(status, headers)
    await t.throwsAsync(get(name, { cacheDir, ...options }), { code, message })
    t.is(hub.asked.length, 1)
    // As the Hub does it: what is gated is listed, but not sent.
    hub.bend = answers(status, headers, ({ file }) => file !== undefined)
    await t.throwsAsync(get(name, { cacheDir, ...options }), { code, message })
  }
})

test("a listing cannot name a file outside its folder, nor a hash that is a path", async (t) => {
  const { hub, get, folder, newCache } = context
  const cacheDir = await newCache()
  const hash = gitHash(config)
  const file = { type: "file", path: "config.json", size: 3, oid: hash } as const
  for (const path of [
    "../config.json",
    "/config.json",
    "a/config.json",
    "..\\config.json",
    "C:config.json",
    ".config",
    "",
    "con\0",
  ]) {
    t.is(remoteFile({ ...file, path }, "x"), undefined, path)
  }
  const lists: object[] = [
    { ...file, oid: "../../../../evil" },
    { ...file, oid: "1".repeat(39) },
    { ...file, oid: hash.toUpperCase() },
    { ...file, oid: undefined },
    { ...file, size: -1 },
    { ...file, size: 1e300 },
    { ...file, size: "3" },
    { ...file, lfs: { oid: "../".repeat(22).slice(0, 64), size: 3 } },
    { ...file, lfs: { oid: hash, size: 3 } },
  ]
  const list = (value: unknown) => {
    hub.bend = ({ path }, response) => {
      if (!path.includes("/tree/")) return false
      response
        .setHeader("content-type", "application/json")
        .end(typeof value === "string" ? value : JSON.stringify(value))
      return true
    }
  }
  hub.put(name, { "config.json": config, "model.safetensors": "x" }, commit)
  for (const entry of lists) {
    list([entry])
    await t.throwsAsync(get(name, { cacheDir }), { code: "NETWORK", message: /expected size and hash of config\.json/ })
  }
  for (const value of ["{", "null", "7", "[null]", '"text"', '[{"type":"file","path":7}]', "<html>log in</html>"]) {
    list(value)
    const error = await t.throwsAsync(get(name, { cacheDir }))
    t.true(["NETWORK", "NOT_FOUND"].includes((error as unknown as { code: string }).code), value)
  }
  for (const sha of ["../../evil", "main", 7, undefined, "1".repeat(41)]) {
    hub.bend = (_, response) => {
      response.setHeader("content-type", "application/json").end(JSON.stringify({ id: name, sha }))
      return true
    }
    await t.throwsAsync(get(name, { cacheDir }), { code: "NETWORK", message: /expected the commit of main/ })
  }
  t.false((await contents(folder)).some((path) => path.includes("evil")))
})

test("an endless answer is given up", async (t) => {
  const { hub, get, newCache } = context
  hub.bend = (_, response) => {
    const more = () => {
      while (!response.destroyed && response.write(Buffer.alloc(1 << 20, " ")));
    }
    response.on("drain", more)
    more()
    return true
  }
  const message = /got an answer of more than \d+ bytes/
  await t.throwsAsync(get(name, { cacheDir: await newCache() }, { tries: 1 }), { code: "NETWORK", message })
})

test("a listing that leads in a circle is given up", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, { "config.json": config, "model.safetensors": "x" }, commit)
  hub.bend = ({ path }, response) => {
    if (!path.includes("/tree/") || hub.asked.length > 1100) return false
    response
      .writeHead(200, { "content-type": "application/json", link: `<${hub.endpoint}${path}>; rel="next"` })
      .end("[]")
    return true
  }
  const message = /got another \(more than 1000 pages of files\)/
  await t.throwsAsync(get(name, { cacheDir: await newCache() }), { code: "NETWORK", message })
})

test("a text file that nobody would read is refused before it comes", async (t) => {
  const { hub, get, newCache } = context
  hub.put(name, { "config.json": config, "model.safetensors": "x" }, commit)
  hub.bend = ({ path }, response) => {
    if (!path.includes("/tree/")) return false
    const oid = "0".repeat(40)
    const sizes = { "config.json": 200, "model.safetensors": 8, "tokenizer.json": 2 ** 27 + 1 }
    const entries = Object.entries(sizes).map(([path, size]) => ({ type: "file", path, oid, size }))
    response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(entries))
    return true
  }
  const message = /at most 134217728 bytes of tokenizer.json, got 134217729/
  await t.throwsAsync(get(name, { cacheDir: await newCache() }), { code: "BAD_FILE", message })
  t.deepEqual(
    hub.asked.filter(({ file }) => file !== undefined),
    [],
  )
})
