/**
 * The process's pool of threads as users meet it: how many there are, who shares them, and that they sleep. What the pool itself
 * promises is held by native/threads.cpp and native/cores.cpp.
 */
import { setTimeout as delay } from "node:timers/promises"
import { Worker } from "node:worker_threads"
import test from "ava"
import { devices, Store, setThreads } from "../lib/native.ts"
import { chain } from "./native-border/programs.ts"
import { printed } from "./printed.ts"

const native = new URL("../lib/native.ts", import.meta.url)

/** What a script prints as JSON, in a process that begins with SELSCAN_THREADS. */
const printedWith = (threads: string, script: string): unknown =>
  printed(
    `import { devices, Store, setThreads } from "${native}"
    const attempt = (fn) => { try { return fn() } catch ({ code, message }) { return { code, message } } }
    ${script}`,
    { SELSCAN_THREADS: threads },
  )

const cpu = () => devices().find(({ name }) => name === "cpu")!

test.serial("a process begins with SELSCAN_THREADS threads, and setThreads says otherwise", async (t) => {
  const script = `
    const [{ threads, description }] = devices()
    console.log(JSON.stringify([threads, description, await setThreads(2), await setThreads(0)]))`
  const [threads, description, set, all] = printedWith("3", script) as [number, string, number, number]
  t.deepEqual([threads, set], [3, 2])
  t.regex(description, /, 3 threads of \d+ usable cores?\b.*, SELSCAN_THREADS=3$/)
  t.is(all, await setThreads(0), "0 takes all usable cores, whatever a process begins with")
  t.is(cpu().threads, all)
})

test("SELSCAN_THREADS that is no number of threads is refused in one sentence, where the cpu is opened", (t) => {
  for (const bad of ["", "two", "-1", "1025", "1.5"]) {
    const error = printedWith(bad, `console.log(JSON.stringify(attempt(() => new Store("cpu"))))`)
    t.deepEqual(error, {
      code: "BAD_OPTION",
      message: `SELSCAN_THREADS: a whole number from 0 to 1024 is expected, got ${bad}; unset it for all usable cores`,
    })
  }
  t.like(printedWith("two", "console.log(JSON.stringify(devices()[0]))"), { name: "cpu", description: "not available" })
})

test.serial("models of all threads of Node share the pool, and each gets its results", async (t) => {
  const loop = new URL("./native-border/loop.ts", import.meta.url)
  const elements = 1 << 16
  const run = async (factor: number) => {
    const x = Float32Array.from({ length: elements }, (_, i) => factor * i)
    await using store = new Store("cpu")
    const { y } = await (await store.compile(chain(32, elements))).run({ x }) // which comes out as it went in
    return y!.every((value, i) => value === x[i])
  }
  const started = Array.from({ length: 2 }, () => {
    const code = `import("tsx/esm/api").then(({ register }) => (register(), import("${loop}")))`
    return new Worker(code, { eval: true, workerData: { runs: 20 } })
  })
  const last = started.map((worker) => {
    return new Promise((resolve) => worker.on("message", (said) => said !== "running" && resolve(said)))
  })
  try {
    const counts = [1, 4, 2, 3]
    const resized = counts.reduce((before, count) => before.then(() => setThreads(count)), Promise.resolve(0))
    const here = await Promise.all(Array.from({ length: 6 }, (_, i) => run(i + 1)))
    t.true(here.every(Boolean))
    t.deepEqual(await Promise.all(last), [1, 1])
    t.is(await resized, 3)
  } finally {
    await Promise.all(started.map((worker) => worker.terminate()))
    await setThreads(0)
  }
})

test.serial("threads sleep when nothing runs", async (t) => {
  await setThreads(4)
  try {
    await using store = new Store("cpu")
    const executable = await store.compile(chain(32, 1 << 16))
    await executable.run({ x: new Float32Array(1 << 16).fill(1) })
    // What else this process has to do (collecting garbage, say) comes to an end; a thread that spins would not.
    let used = Number.POSITIVE_INFINITY
    for (let second = 0; second < 5 && used > 20_000; second++) {
      const before = process.cpuUsage()
      await delay(1000)
      const { user, system } = process.cpuUsage(before)
      used = user + system
    }
    t.true(used <= 20_000, `${used} µs of a processor in a second`)
  } finally {
    await setThreads(0)
  }
})
