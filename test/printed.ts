import { spawnSync } from "node:child_process"

/** What a module prints as JSON in a process of its own, whose environment decides what its device does. */
export function printed(module: string, env: Record<string, string>): unknown {
  const words = ["--import=tsx", "--input-type=module", "-e", module]
  const { status, stdout, stderr } = spawnSync(process.execPath, words, {
    env: { ...process.env, ...env },
    encoding: "utf8",
  })
  if (status !== 0) throw new Error(`status ${status}\n${stdout}\n${stderr}`)
  return JSON.parse(stdout)
}
