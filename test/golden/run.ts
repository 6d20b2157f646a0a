/**
 * `npm run golden -- DIR [--device D] [--record OUT]`: runs every case and every model folder of DIR, a folder of golden
 * cases; keeps what ran as replay files in OUT.
 *
 * Names each tensor that differs and each family not supported yet, and ends with `N passed, N failed, N skipped`.
 */
import { parseArgs } from "node:util"
import { SelscanError } from "../../lib/errors.ts"
import type { Outcome } from "./runner.ts"

function options() {
  try {
    return parseArgs({ allowPositionals: true, options: { device: { type: "string" }, record: { type: "string" } } })
  } catch (error) {
    console.error((error as Error).message)
    return { positionals: [], values: {} }
  }
}

async function main(): Promise<number> {
  const { positionals: folders, values } = options()
  if (folders.length === 0) {
    console.error("usage: npm run golden -- DIR [--device cpu|cuda|emulated] [--record OUT]")
    return 2
  }
  if (values.device !== undefined) process.env.DEVICE = values.device
  const { listCases, runCase } = await import("./runner.ts") // after DEVICE is set: test/device.ts reads it
  const { recordRuns } = await import("./record.ts")
  const nameCase = values.record === undefined ? undefined : recordRuns(values.record)
  const outcomes: Outcome[] = []
  for (const folder of folders) {
    for (const entry of await listCases(folder)) {
      nameCase?.(entry.file.replace(/\.safetensors$/, ""))
      const outcome = await runCase(entry)
      outcomes.push(outcome)
      if (outcome.status === "failed") console.log([`failed ${entry.file}`, ...outcome.failures].join("\n  "))
    }
  }
  const skipped = outcomes.filter(({ status }) => status === "skipped").map(({ entry }) => entry.family)
  for (const family of new Set(skipped)) {
    console.log(`skipped ${family}: ${skipped.filter((name) => name === family).length}`)
  }
  const count = (wanted: Outcome["status"]) => outcomes.filter(({ status }) => status === wanted).length
  const tensors = outcomes.reduce((total, { compared }) => total + compared, 0)
  console.log(`${tensors} tensors compared`)
  console.log(`${count("passed")} passed, ${count("failed")} failed, ${count("skipped")} skipped`)
  return count("failed") > 0 ? 1 : 0
}

try {
  process.exitCode = await main()
} catch (error) {
  console.error(error instanceof SelscanError ? error.message : error)
  process.exitCode = 1
}
