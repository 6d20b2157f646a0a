/**
 * What the documentation says, held to the package: every example compiles and runs, every command and flag exists.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import test from "ava"
import { checkCommands } from "../scripts/docs/commands.ts"
import { complete } from "../scripts/docs/complete.ts"
import { type Example, fences, inlineCommands, pageExamples, root } from "../scripts/docs/extract.ts"
import { Package, prelude, Workplace } from "../scripts/docs/run.ts"

const pages = [
  "README.md",
  ...readdirSync(join(root, "docs"))
    .filter((name) => name.endsWith(".md"))
    .map((name) => `docs/${name}`),
]
const face = new Package()
const all = new Map<string, readonly Example[]>([
  ["doc comments", [prelude, ...face.surface.examples]],
  ...pages.map((page) => [page, pageExamples(page)] as const),
])

/** Hub names are downloaded; everything else is at hand. */
const downloads = /\bdownload\("|\bload\("(?!runs\/|models\/)[\w.-]+\/[\w.-]+"/
const runs = ({ words, code }: Example) => !words.includes("no-run") && !downloads.test(code)

for (const [name, examples] of all) {
  test.serial(`examples compile and run: ${name}`, async (t) => {
    using place = new Workplace()
    const code = examples.filter(({ language }) => language === "ts")
    const modules = new Map(code.map((example, index) => [place.write(example, index, face.surface), example]))
    t.deepEqual(face.check(modules), [])
    // In their order, shell and TypeScript: what one makes the next one reads.
    let batch = new Map<string, Example>()
    const flush = async () => {
      if (batch.size > 0) t.deepEqual(await place.run(batch), [])
      batch = new Map()
    }
    const files = new Map([...modules].map(([file, example]) => [example, file]))
    for (const example of examples) {
      if (example.language === "ts" && runs(example)) batch.set(files.get(example)!, example)
      if (example.language === "sh" && example.words.includes("run")) {
        await flush()
        t.is(place.shell(example), undefined)
      }
    }
    await flush()
  })
}

for (const page of pages) {
  test(`commands exist, with their flags: ${page}`, (t) => {
    const shown = [...pageExamples(page).filter(({ language }) => language === "sh"), ...inlineCommands(page)]
    t.deepEqual(shown.flatMap(checkCommands), [])
  })
}

test("an example that does not compile, one that throws, one that crashes and one with another result are told apart", async (t) => {
  using place = new Workplace()
  const example = (where: string, code: string): Example => ({ where, language: "ts", words: [], code })
  const wrong = [
    example("lib/1", "const layer: Mamba = new Mamba({ dims: 64 })"),
    example("lib/2", 'await load("runs/none")'),
    example("lib/3", "parameterCount(new Linear({ inputs: 2, outputs: 3 })) // 7"),
    example("lib/4", "process.kill(process.pid, 9)"),
    example("lib/5", "new Mamba({ dim: 64 })"),
  ]
  const modules = new Map(wrong.map((one, index) => [place.write(one, index, face.surface), one]))
  const told = face.check(modules)
  t.is(told.length, 1)
  t.regex(told[0]!, /^lib\/1: .*dims/)
  const failed = await place.run(modules)
  t.deepEqual(
    failed.map((text) => text.slice(0, 5)),
    ["lib/1", "lib/2", "lib/3", "lib/4", "lib/5"],
  )
  t.regex(failed[1]!, /NOT_FOUND|runs\/none/)
  t.regex(failed[2]!, /7/)
  t.regex(failed[4]!, /not finished/)
})

test("a command or flag that does not exist is told with its place", (t) => {
  const [block] = fences("```sh\nnpx selscan train --file a --outt b && npm run nothing\nselscan dance\n```\n", "b.md")
  t.deepEqual(checkCommands(block!), [
    "b.md:2: selscan train has no --outt",
    "b.md:2: package.json has no script nothing",
    "b.md:2: selscan has no command dance",
  ])
})

test("names that an example leaves out are added, and literals in comments compared", (t) => {
  const code = complete(
    { where: "lib/ops/x.ts:1", language: "ts", words: [], code: "const { y } = linear({ x, weight: w1 })\n" },
    face.surface,
    "lib",
  )
  t.regex(code, /const x = t\.input\("x", "f32", \[8, 8\]\)\nconst w1 = t\.input\("w1", "f32", \[8, 8\]\)/)
  const other = complete(
    { where: "lib/1", language: "ts", words: [], code: "parameterCount(1) // 1_000\n" },
    face.surface,
    "lib",
  )
  t.regex(other, /equal\(parameterCount\(1\), 1000\)/)
})

test("a page's block has its own imports", (t) => {
  const block: Example = { where: "a.md:1", language: "ts", words: [], code: "new Mamba({ dim: 64 })\n" }
  t.notRegex(complete(block, face.surface, "lib"), /import .*Mamba/)
  t.regex(complete({ ...block, where: "lib/a.ts:1" }, face.surface, "lib"), /import \{ Mamba \} from "lib"/)
})

test("every op of the package has an example that runs", (t) => {
  const documented = new Set(
    face.surface.examples.flatMap(({ code }) => [...code.matchAll(/\b(\w+)\(\{/g)].map(([, name]) => name)),
  )
  t.deepEqual(
    [...face.surface.ops].filter((name) => name !== "arithmetic" && !documented.has(name)),
    [],
  )
})

test("pictures and files that pages show are in the repository", (t) => {
  for (const page of pages) {
    const text = readFileSync(join(root, page), "utf8")
    for (const [, path] of text.matchAll(/!\[[^\]]*\]\((?!http)([^)]+)\)/g))
      t.true(existsSync(join(root, page, "..", path!)), `${page}: ${path}`)
    // VitePress shows a sentence where a file to include is missing, and goes on.
    for (const [, path] of text.matchAll(/^<<< ([^\s{]+)/gm))
      t.true(existsSync(join(root, page, "..", path!)), `${page}: ${path}`)
  }
})
