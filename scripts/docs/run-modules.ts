/** Runs the modules it is given, one after another, and tells its parent of each; what crashes ends with the one that is running. */
import { pathToFileURL } from "node:url"

const [seconds, ...modules] = process.argv.slice(2)

for (const file of modules) {
  process.send!({ file, state: "begun" })
  const limit = Number(seconds)
  const left = new Promise<"left">((resolve) => {
    if (limit > 0) setTimeout(() => resolve("left"), limit * 1000)
  })
  try {
    await Promise.race([import(pathToFileURL(file).href), left])
    process.send!({ file, state: "done" })
  } catch (error) {
    process.send!({ file, state: "failed", error: (error as Error).stack ?? String(error) })
  }
}
// Whatever a long example still does ends here.
process.exit()
