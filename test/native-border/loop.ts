/**
 * Runs a program over and over until it is told to stop: as a worker thread, or as a process of its own.
 *
 * `workerData.runs` or the first argument: how many runs; then it says what came out. With `exit` as the second argument the
 * process exits while a run is under way.
 */
import { isMainThread, parentPort, workerData } from "node:worker_threads"
import { Store } from "../../lib/native.ts"
import { chain } from "./programs.ts"

const runs = isMainThread ? Number(process.argv[2]) : (workerData as { runs: number }).runs
const say = (message: unknown) => (parentPort ? parentPort.postMessage(message) : console.log(message))

const store = new Store("cpu")
const executable = await store.compile(chain(32, 1 << 16))
let last = 0
for (let i = 0; i < runs; i++) {
  const running = executable.run({ x: new Float32Array(1 << 16).fill(1) })
  if (i === 0) say("running")
  if (process.argv[3] === "exit") process.exit(0)
  const outputs = await running
  last = outputs.y![0]!
}
say(last)
