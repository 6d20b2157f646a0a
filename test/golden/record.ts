/**
 * Keeps what golden cases run: a replay file for each run of a program, with what it gave here. `selscan-replay` then runs the
 * cases on other devices with no Node in the process, under ThreadSanitizer for one.
 */
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { type ReplayExpected, type ReplayStored, replayFile } from "../../lib/graph/replay.ts"
import { Executable, type StoredKind } from "../../lib/native.ts"

const kinds = ["weight", "training", "state", "ring"] as const satisfies StoredKind[]
/** A later run of a program differs in its numbers alone. */
const runsOfEach = 2
/** Relative to the largest magnitude: another device adds in another order. */
const rtol = 1e-3

async function storedOf({ store, program }: Executable): Promise<ReplayStored[]> {
  const slots = kinds.flatMap((kind) => program.stored(kind).map(({ name }) => ({ kind, name })))
  return Promise.all(slots.map(async ({ kind, name }) => ({ kind, name, bytes: await store.download(kind, name) })))
}

/** Records every run from now on into a folder; the function returned names the case that runs next. */
export function recordRuns(folder: string): (name: string) => void {
  mkdirSync(folder, { recursive: true })
  const { run } = Executable.prototype
  let current = "case"
  let files = 0
  const seen = new WeakMap<Executable, number>()
  Executable.prototype.run = async function (inputs, options) {
    const earlier = seen.get(this) ?? 0
    seen.set(this, earlier + 1)
    if (earlier >= runsOfEach) return run.call(this, inputs, options)
    const stored = await storedOf(this)
    const outputs = await run.call(this, inputs, options)
    const updated = (await storedOf(this)).filter(
      (after, i) => !Buffer.from(after.bytes.buffer).equals(view(stored[i]!)),
    )
    const expected: ReplayExpected[] = Object.entries(outputs).map(([name, bytes]) => ({ name, bytes, rtol }))
    const bytes = replayFile(this.program, {
      stored,
      inputs,
      expected: [...expected, ...updated.map((value) => ({ ...value, rtol }))],
    })
    writeFileSync(join(folder, `${current}-${files++}.ssr`), bytes)
    return outputs
  }
  return (name) => {
    current = name.replaceAll(/[^\w.-]/g, "-")
    files = 0
  }
}

const view = ({ bytes }: ReplayStored) => Buffer.from(bytes.buffer as ArrayBuffer)
