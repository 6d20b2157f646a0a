/**
 * Prints the files of a folder of golden cases that the runner would run, as JSON: `{ index, files }`. Cases of ops that are
 * not supported yet would only take room in the bundle.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { families } from "../../test/golden/families/index.ts"
import { listCases } from "../../test/golden/runner.ts"

const folder = process.argv[2]!
const ops = new Set(families.flatMap((family) => family.ops))
const entries = (await listCases(folder)).filter(({ family, fault }) => fault !== undefined || ops.has(family))
const files = new Set(entries.map(({ file }) => file))
for (const file of [...files]) {
  // A model's configuration and weights lie beside the case, or in folders there.
  if (!file.startsWith("models/")) continue
  const model = dirname(file)
  const all = readdirSync(join(folder, model), { recursive: true, encoding: "utf8" })
  for (const name of all) if (/\.(json|safetensors)$/.test(name)) files.add(join(model, name))
}
const index = JSON.parse(readFileSync(join(folder, "index.json"), "utf8")) as { file: string }[]
const existing = [...files].filter((file) => existsSync(join(folder, file)))
console.log(JSON.stringify({ index: index.filter(({ file }) => files.has(file)), files: existing.sort() }))
