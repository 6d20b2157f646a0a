/**
 * Printed programs against files: a refactoring leaves them as they are, byte for byte.
 */
import { createHash } from "node:crypto"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import type { ExecutionContext } from "ava"

/**
 * Snapshots keep the lines of the first two blocks, or as many as are said, and of what surrounds them, and a hash of everything.
 * After a change that is meant, `SNAPSHOT=update npx ava test/models` writes them anew.
 */
export function againstSnapshot(t: ExecutionContext, name: string, print: string, blocks = 2): void {
  const path = new URL(`../snapshots/${name}.txt`, import.meta.url)
  const lines = print.split("\n")
  const kept = lines.filter((line) => Number(/layers\.(\d+)\./.exec(line)?.[1] ?? 0) < blocks)
  const hash = createHash("sha256").update(print).digest("hex")
  const text = `${kept.join("\n")}sha256 of all ${lines.length} lines: ${hash}\n`
  if (process.env.SNAPSHOT === "update") writeFileSync(path, text)
  t.true(existsSync(path), "the snapshot exists")
  t.is(text, readFileSync(path, "utf8"))
}
