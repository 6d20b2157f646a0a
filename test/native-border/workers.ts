/**
 * Starts workers one after another and terminates each while its programs run. This thread never loads the addon itself, so
 * that Node closes the library whenever a worker ends. The first argument: how many workers.
 */
import { Worker } from "node:worker_threads"

const loop = new URL("./loop.ts", import.meta.url)
const count = Number(process.argv[2])
for (let i = 0; i < count; i++) {
  const doomed = new Worker(`import("tsx/esm/api").then(({ register }) => (register(), import("${loop}")))`, {
    eval: true,
    workerData: { runs: 1_000_000 },
  })
  await new Promise((resolve) => doomed.once("message", resolve))
  await new Promise((resolve) => setTimeout(resolve, i % 6))
  await doomed.terminate()
}
console.log(`survived ${count}`)
