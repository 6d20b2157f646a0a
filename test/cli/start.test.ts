/**
 * What a start waits for: a command loads what it needs and no more. Times are measured by `npm run bench -- start`.
 */
import { readFileSync } from "node:fs"
import { dirname, join, relative } from "node:path"
import { fileURLToPath } from "node:url"
import test from "ava"

const lib = fileURLToPath(new URL("../../lib", import.meta.url))
/** import x from "y", export … from "y", import "y"; not import("y"), and no types, which are gone when it runs. */
const pattern = /^(?:import|export) (?!type )(?:[^"';]*? from )?["']([^"']+)["']/gm

/** Files of lib and packages that are loaded with a file, before anything of it runs. */
function loadedWith(file: string, seen = new Set<string>()): Set<string> {
  const name = relative(lib, file)
  if (seen.has(name)) return seen
  seen.add(name)
  for (const [, path] of readFileSync(file, "utf8").matchAll(pattern)) {
    if (!path!.startsWith(".")) seen.add(path!)
    else if (path!.endsWith(".ts")) loadedWith(join(dirname(file), path!), seen)
  }
  return seen
}

test("generate loads no tokenizer, no Hub, no pickles, no progress bar, and no other command", (t) => {
  const loaded = [...loadedWith(join(lib, "cli/main.ts")), ...loadedWith(join(lib, "cli/generate.ts"))]
  t.true(loaded.includes("generate/session.ts") && loaded.includes("cac"), "the walk finds files and packages")
  const unwanted = ["@huggingface/tokenizers", "@huggingface/hub", "cli-progress", "d3-scale", "d3-shape"]
  for (const name of unwanted) t.false(loaded.includes(name), name)
  for (const name of ["checkpoint/torch-file.ts", "hub/download.ts", "text/tokenizer.ts"])
    t.false(loaded.includes(name), name)
  const commands = loaded.filter((name) =>
    /^(train|cli\/(train|bench|build|convert|completion|eval|info|score))\b/.test(name),
  )
  t.deepEqual(commands, [])
})

test("what says which commands there are loads none", (t) => {
  const loaded = [...loadedWith(join(lib, "cli/main.ts"))].filter((name) => name.endsWith(".ts")).sort()
  t.deepEqual(loaded, ["cli/main.ts", "cli/words.ts", "errors.ts"])
})
