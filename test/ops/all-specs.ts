/**
 * Every op's spec, found by folder: what the tests, the replay files and the benches go through.
 */
import { readdirSync } from "node:fs"
import type { OpSpec } from "./spec.ts"

export async function allSpecs(): Promise<OpSpec[]> {
  const folder = new URL(".", import.meta.url)
  const files = readdirSync(folder).filter((file) => /^[\w-]+\.ts$/.test(file) && file !== "all-specs.ts")
  const modules = await Promise.all(
    files.map((file) => import(new URL(file, folder).href) as Promise<{ specs?: readonly OpSpec[] }>),
  )
  return modules.flatMap(({ specs = [] }) => specs)
}
