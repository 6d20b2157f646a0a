/**
 * Which node-llama-cpp is taken: packages here are empty but for their version, and npm fetches nothing.
 */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test, { type ExecutionContext } from "ava"
import { installLlama, llamaPlatform, llamaVersion, llamaVersionIn, NotInstalled } from "../../scripts/llama.ts"

const names = ["node-llama-cpp", `@node-llama-cpp/${llamaPlatform()}`] as const

/** A folder with these packages in its node_modules. */
async function folderWith(t: ExecutionContext, versions: Readonly<Record<string, unknown>>): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "selscan-llama-"))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  for (const [name, version] of Object.entries(versions)) {
    await mkdir(join(folder, "node_modules", name), { recursive: true })
    await writeFile(join(folder, "node_modules", name, "package.json"), JSON.stringify({ name, version }))
  }
  return folder
}

test("an install of the version that is wanted is taken as it is", async (t) => {
  const folder = await folderWith(t, { [names[0]]: llamaVersion, [names[1]]: llamaVersion })
  t.is(await installLlama(folder), join(folder, "node_modules"))
})

test.serial("of another version, or without its binary, it is installed anew", async (t) => {
  const { npm_config_offline, npm_config_cache } = process.env
  t.teardown(() => {
    for (const [name, value] of Object.entries({ npm_config_offline, npm_config_cache })) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  })
  Object.assign(process.env, { npm_config_offline: "true", npm_config_cache: await folderWith(t, {}) })
  for (const [own, binary] of [
    ["3.0.0", llamaVersion],
    [llamaVersion, "3.0.0"],
    [llamaVersion, undefined],
  ]) {
    const folder = await folderWith(t, { [names[0]]: own, [names[1]]: binary })
    await t.throwsAsync(installLlama(folder), {
      instanceOf: NotInstalled,
      message: new RegExp(`^node-llama-cpp@${llamaVersion} and ${names[1]}@${llamaVersion} could not be installed`),
    })
  }
})

test("the version that is reported is the one that is there", async (t) => {
  const folder = await folderWith(t, { "node-llama-cpp": "3.0.0" })
  t.is(await llamaVersionIn(join(folder, "node_modules")), "3.0.0")
  await writeFile(join(folder, "node_modules", "node-llama-cpp", "package.json"), "{")
  const error = await t.throwsAsync(llamaVersionIn(join(folder, "node_modules")), { instanceOf: NotInstalled })
  t.is(
    error.message,
    `node-llama-cpp is expected in the node_modules folder ${join(folder, "node_modules")}, got none; install it there`,
  )
})
