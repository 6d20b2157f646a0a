/**
 * The border under abuse: whatever is passed, whenever it is disposed, aborted or terminated, there is one error with a
 * code, and the process goes on.
 */
import { execFile } from "node:child_process"
import { on } from "node:events"
import { setTimeout as delay } from "node:timers/promises"
import { promisify } from "node:util"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { Worker } from "node:worker_threads"
import test from "ava"
import fc from "fast-check"
import { SelscanError } from "../lib/errors.ts"
import { trace } from "../lib/graph/program.ts"
import { addon, type Executable, Store, setThreads } from "../lib/native.ts"
import { embedding } from "../lib/ops/embedding.ts"
import { sample } from "../lib/ops/sample.ts"
import { chain, onHost, randomPrograms } from "./native-border/programs.ts"

const property = { seed: 20, numRuns: Number(process.env.FUZZ_RUNS ?? 300), endOnFailure: true }
const loop = new URL("./native-border/loop.ts", import.meta.url)
// Node 20 does not hand the loader of TypeScript on to workers.
const worker = (runs: number) =>
  new Worker(`import("tsx/esm/api").then(({ register }) => (register(), import("${loop}")))`, {
    eval: true,
    workerData: { runs },
  })

async function opened(nodes = 2, elements = 8): Promise<{ store: Store; executable: Executable; x: Float32Array }> {
  const store = new Store("cpu")
  return { store, executable: await store.compile(chain(nodes, elements)), x: new Float32Array(elements).fill(1) }
}
const long = () => opened(4000, 1 << 19) // some tenths of a second at least

const rejects = (t: import("ava").ExecutionContext, run: () => Promise<unknown>, code: string) =>
  t.throwsAsync(run, { instanceOf: SelscanError, code })

/** Things that are not what a function expects, and some that are. Sizes stay small or absurd: nothing fills the memory. */
const garbage = fc.oneof(
  fc.constantFrom<unknown>(undefined, null, true, Symbol("s"), 1n, () => 1, Number.NaN, Number.POSITIVE_INFINITY),
  fc.constantFrom(-1, 0, 1, 2, 3, 4, 0.5, 2 ** 31, 2 ** 32, 2 ** 53, -(2 ** 53), 1e300),
  fc.string({ maxLength: 20 }),
  fc.constantFrom("cpu", "w", ""),
  fc.uint8Array({ maxLength: 64 }),
  fc
    .constantFrom<() => unknown>(
      () => new Float32Array(8),
      () => new DataView(new ArrayBuffer(8), 3),
      () => new Uint8Array(new SharedArrayBuffer(32)),
      () => new Proxy([], {}),
      () => Object.create(Float32Array.prototype),
      () => ({
        get length() {
          throw new Error("no")
        },
      }),
      () => [[new Float32Array(8)]],
      () => {
        const view = new Float32Array(8)
        structuredClone(view, { transfer: [view.buffer] })
        return view
      },
      () => Object.defineProperty(new Uint8Array(4096), "buffer", { value: new ArrayBuffer(1) }),
      () => Object.defineProperty(new Uint8Array(8), "byteLength", { value: 2 ** 40 }),
      () => {
        const sizes: unknown[] = []
        Object.defineProperty(sizes, 0, {
          get() {
            sizes.push(...Array(64).fill(1))
            return 1
          },
        })
        return sizes
      },
    )
    .map((make) => make()),
  fc.array(fc.constantFrom<unknown>(1, 2, 3, -1, 1e300, 2 ** 44, "1", null, new Float32Array(8)), { maxLength: 8 }),
)

test.serial("no function of the addon can be made to crash by its arguments", async (t) => {
  const native = addon() as unknown as Record<string, (...args: unknown[]) => unknown>
  const program = chain(2, 8).serialise()
  let refused = 0
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...Object.keys(native)),
      fc.array(garbage, { maxLength: 8 }),
      fc.array(fc.boolean(), { minLength: 8, maxLength: 8 }),
      async (name, args, keep) => {
        const store = native.open!("cpu") as number
        const compiled = (await native.compile!(store, program)) as { program: number }
        // Arguments that would be right, some of them replaced: garbage alone would stop at the first check.
        const right: Record<string, unknown[]> = {
          setThreads: [2],
          open: ["cpu"],
          compile: [store, program],
          memory: [store],
          dispose: [store],
          profile: [compiled.program],
          upload: [store, 2, "w", 0, [2, 4], new Float32Array(8), 0],
          download: [store, 2, "w", 0, 0],
          run: [compiled.program, [new Float32Array(8)], 1],
          runSteps: [compiled.program, [new Float32Array(8)], 1, 1, 0, 0, new Int32Array(2), 1000],
          abort: [1],
          copySlot: [store, 0, 1],
        }
        const given = (right[name] ?? []).map((value, i) => (keep[i] || i >= args.length ? value : args[i]))
        try {
          await native[name]!(...(keep[7] ? given : args))
        } catch (error) {
          t.true(error instanceof Error)
          refused++
        }
        await native.dispose!(store)
      },
    ),
    property,
  )
  t.true(refused > property.numRuns / 4)
  await setThreads(0)
})

test("a damaged program is refused", async (t) => {
  await using store = new Store("cpu")
  const handle = addon().open(store.device)
  const good = chain(3, 16).serialise()
  await fc.assert(
    fc.asyncProperty(fc.nat(good.length - 1), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
      const bad = good.slice()
      bad[at]! ^= flip
      await t.throwsAsync(async () => addon().compile(handle, bad, 0), { code: "BAD_FILE" })
      await t.throwsAsync(async () => addon().compile(handle, good.subarray(0, at), 0), { code: "BAD_FILE" })
    }),
    property,
  )
  await addon().dispose(handle)
})

test("inputs of the wrong name, type or size are refused, and the program still runs", async (t) => {
  const { store, executable, x } = await opened()
  const refuses = (inputs: unknown, message: string) =>
    t.throwsAsync(() => executable.run(inputs as never), {
      instanceOf: SelscanError,
      code: "BAD_INPUT",
      message: `chain of 2: ${message}`,
    })
  await refuses({}, "input x is missing")
  await refuses({ x, X: x }, "unknown input X, known are x")
  await refuses({ x: x.subarray(1) }, "input x is f32 [8] (32 bytes), got Float32Array of 28 bytes")
  await refuses({ x: new Int32Array(8) }, "input x is f32 [8] (32 bytes), got Int32Array of 32 bytes")
  await refuses({ x: null }, "input x is f32 [8] (32 bytes), got object")
  await refuses(undefined, "inputs are an object of arrays, got undefined")
  const shared = new Float32Array(new SharedArrayBuffer(32)) // another thread could change it while it is copied
  await t.throwsAsync(() => executable.run({ x: shared }), { code: "BAD_INPUT", message: /plain ArrayBuffer/ })
  t.deepEqual((await executable.run({ x })).y, x)
  await store.dispose()
})

test.serial("steps of wrong sizes, and what cannot be handed on, are refused, natively too", async (t) => {
  const { store, executable, x } = await opened()
  const refuses = (call: () => Promise<unknown>, message: RegExp) => t.throwsAsync(call, { code: "BAD_INPUT", message })
  const two = new Float32Array(16)
  const feed = ["y", "x"] as const
  await refuses(
    () => executable.steps({ x }, { count: 2, feed }),
    /32 bytes in each of 2 steps\), got Float32Array of 32/,
  )
  await refuses(() => executable.steps({ x: two }, { count: 2, feed: ["z", "x"] }), /got z for x/)
  await refuses(() => executable.steps({ x: two }, { count: 2, feed: ["y", "z"] }), /got y for z/)
  await refuses(() => executable.steps({ x: two }, { count: 2, feed }), /an i32 output is handed on/)
  t.like(await executable.steps({ x }, { count: 1, feed }), { done: 1, outputs: { y: x } })
  await rejects(t, () => executable.steps({ x: two }, { count: 2, feed, signal: AbortSignal.abort() }), "ABORTED")
  const handle = addon().open("cpu")
  const { program } = await addon().compile(handle, chain(2, 8).serialise(), 0)
  const none = new Int32Array()
  await refuses(() => addon().runSteps(program, [x], 1, 2, 0, 0, none, 0), /32 bytes in each of 2 steps, got 32/)
  await refuses(() => addon().runSteps(program, [two], 1, 2, 1, 0, none, 0), /got output 1 of 1 and input 0 of 1/)
  await refuses(() => addon().runSteps(program, [two], 1, 2, 0, 7, none, 0), /got output 0 of 1 and input 7 of 1/)
  await refuses(async () => addon().runSteps(program, [x], 1, 0, 0, 0, none, 0), /whole number within its range/)
  await addon().dispose(handle)
  await store.dispose()
})

test.serial("what a step says is judged before the next one takes it for an index", async (t) => {
  await using store = new Store("cpu")
  // A vocabulary of 8 words is chosen from, of which the table knows 4: the greatest logit is that of the word after the last.
  const program = trace("counting", (t) => {
    const hidden = embedding({ ids: t.input("ids", "i32", [1]), weight: t.weight("table", "f32", [4, 8]) }).y
    const [settings, limits] = [t.input("settings", "f32", [1, 6]), t.input("limits", "i32", [1, 5])]
    return sample({ logits: hidden, settings, limits, position: t.input("position", "i32", [1]) })
  })
  const table = Float32Array.from({ length: 32 }, (_, i) => (i % 8 === Math.floor(i / 8) + 1 ? 9 : 0))
  await store.upload("weight", { name: "table", dtype: "f32", shape: [4, 8] }, table)
  const executable = await store.compile(program)
  const inputs = (count: number) => ({
    ids: new Int32Array(count),
    settings: new Float32Array(6 * count),
    limits: new Int32Array(5 * count),
    position: Int32Array.from({ length: count }, (_, i) => i),
  })
  const steps = (count: number) => executable.steps(inputs(count), { count, feed: ["ids", "ids"] })
  t.deepEqual([...(await steps(4)).outputs.ids!], [1, 2, 3, 4])
  await t.throwsAsync(() => steps(5), { code: "BAD_INPUT", message: /ids .*got 4/ })
  const ended = await executable.steps(inputs(5), { count: 5, feed: ["ids", "ids"], ends: Int32Array.of(3) })
  t.deepEqual([ended.done, ...ended.outputs.ids!], [3, 1, 2, 3])
  const last = { ...inputs(4), position: Int32Array.of(0, 1, 2, -1) }
  const message = /position is at least 0, got -1/
  await t.throwsAsync(() => executable.steps(last, { count: 4, feed: ["ids", "ids"] }), { code: "BAD_INPUT", message })
})

test("the bytes of an input are those of its engine, whatever its properties say", async (t) => {
  const { store, executable, x } = await opened()
  const forged = Object.defineProperty(x.slice(), "buffer", { value: new ArrayBuffer(1) })
  t.deepEqual((await executable.run({ x: forged })).y, x)
  const wide = Float32Array.from([9, 9, ...x, 9])
  t.deepEqual((await executable.run({ x: wide.subarray(2, 10) })).y, x)
  await store.dispose()
})

test("inputs may be changed as soon as run returns", async (t) => {
  const { store, executable } = await opened(50, 1 << 16)
  const x = new Float32Array(1 << 16).fill(1)
  const running = executable.run({ x })
  x.fill(7)
  t.true((await running).y!.every((value) => value === 1))
  await store.dispose()
})

test("stored values are uploaded, read back by range, and refuse another shape", async (t) => {
  const store = new Store("cpu")
  const slot = { name: "w", dtype: "f32", shape: [4] } as const
  await store.upload("weight", slot, Float32Array.of(1, 2, 3, 4))
  await store.upload("weight", slot, Float32Array.of(9), 8)
  t.deepEqual(new Float32Array((await store.download("weight", "w")).buffer), Float32Array.of(1, 2, 9, 4))
  t.deepEqual(new Float32Array((await store.download("weight", "w", 4, 8)).buffer), Float32Array.of(2, 9))
  await rejects(t, () => store.upload("weight", { ...slot, shape: [5] }, Float32Array.of(1)), "BAD_SHAPE")
  await rejects(t, () => store.upload("weight", slot, Float32Array.of(1), 16), "BAD_SHAPE")
  await rejects(
    t,
    () => store.upload("weight", { ...slot, name: "huge", shape: [2 ** 40] }, Float32Array.of(1)),
    "OUT_OF_MEMORY",
  )
  await rejects(t, () => store.download("weight", "w", 4, 16), "BAD_SHAPE")
  await rejects(t, () => store.download("weight", "v"), "NOT_FOUND")
  t.is((await store.memory()).weights, 16)
  await store.dispose()
})

test("a device that is not there is said by name", (t) => {
  t.throws(() => new Store("cuda"), { instanceOf: SelscanError, code: "NO_DEVICE", message: /^device cuda: / })
})

test.serial("disposing in mid-run waits for the run, which gives its result", async (t) => {
  const { store, executable, x } = await long()
  const running = executable.run({ x })
  await Promise.all([executable.dispose(), store.dispose()])
  t.deepEqual((await running).y, x)
})

test("nothing can be used after it was disposed, and disposing twice is allowed", async (t) => {
  const { store, executable, x } = await opened()
  const second = await store.compile(chain(3, 8))
  await executable.dispose()
  await executable.dispose()
  await rejects(t, () => executable.run({ x }), "DISPOSED")
  await rejects(t, () => executable.profile(), "DISPOSED")
  const compiling = store.compile(chain(4, 8))
  await store.dispose()
  await store.dispose()
  await rejects(t, () => compiling, "DISPOSED") // it was on its way when its model went
  t.true(store.disposed)
  await rejects(t, () => second.run({ x }), "DISPOSED") // a model takes its programs with it
  await rejects(t, () => store.compile(chain(2, 8)), "DISPOSED")
  await rejects(t, () => store.memory(), "DISPOSED")
  await rejects(t, () => store.download("weight", "w"), "DISPOSED")
  await rejects(t, () => store.copySlot(0, 1), "DISPOSED")
})

/** How two runs end that are started together and aborted after so many milliseconds; undefined for one that came through. */
async function abortedPair(executable: Executable, x: Float32Array, wait: number) {
  const controllers = [new AbortController(), new AbortController()]
  const outcomes = Promise.allSettled(controllers.map(({ signal }) => executable.run({ x }, { signal })))
  await delay(wait)
  for (const controller of controllers.toReversed()) controller.abort()
  return (await outcomes).map((outcome) =>
    outcome.status === "rejected" ? (outcome.reason as SelscanError) : undefined,
  )
}

test.serial("an abort before the run, in the queue and in mid-run ends it as ABORTED", async (t) => {
  const { store, executable, x } = await long()
  const before = await t.throwsAsync(executable.run({ x }, { signal: AbortSignal.abort() }), { code: "ABORTED" })
  t.is(before?.message, "chain of 4000: aborted before it began")
  // On a busy machine the first may not have begun when it is aborted: then once more, after a longer wait.
  let [first, second] = await abortedPair(executable, x, 30)
  for (let wait = 60; wait < 2000 && /before it began/.test(first?.message ?? ""); wait *= 2) {
    ;[first, second] = await abortedPair(executable, x, wait)
  }
  t.regex(first?.message ?? "", /^chain of 4000: aborted at node \d+ of 4000$/)
  t.is(second?.message, "chain of 4000: aborted before it began")
  t.is(first?.code, "ABORTED")
  t.regex(first?.stack ?? "", /native-border\.test/) // the stack is the caller's
  t.deepEqual((await executable.run({ x })).y, x) // nothing is left behind
  await store.dispose()
})

test.serial("what runs is not collected with its wrappers", async (t) => {
  setFlagsFromString("--expose-gc")
  const collect = runInNewContext("gc") as () => void
  const start = async () => {
    const { executable, x } = await opened(200, 1 << 16)
    return executable.run({ x })
  }
  const runs = [start(), start(), start()]
  for (let i = 0; i < 5; i++) {
    await delay(5)
    collect()
  }
  for (const outputs of await Promise.all(runs)) t.is(outputs.y![0], 1)
})

test.serial("two workers run at once; one is terminated in mid-run and the other goes on", async (t) => {
  // Every message is kept: on a busy machine one worker may be through before the other has begun.
  const heard = (from: Worker) => on(from, "message") as AsyncIterator<[unknown]>
  const next = async (from: AsyncIterator<[unknown]>) => (await from.next()).value[0]
  const [doomed, other] = [worker(1_000_000), worker(40)]
  const [doomedSays, otherSays] = [heard(doomed), heard(other)]
  await Promise.all([next(doomedSays), next(otherSays)])
  t.is(await doomed.terminate(), 1)
  t.is(await next(otherSays), 1)
  const { store, executable, x } = await opened()
  t.deepEqual((await executable.run({ x })).y, x)
  await store.dispose()
})

test.serial("workers that are terminated at any moment leave the process alive", async (t) => {
  for (let i = 0; i < 6; i++) {
    const doomed = worker(1_000_000)
    await new Promise((resolve) => doomed.once("message", resolve))
    await delay(i)
    await doomed.terminate()
  }
  t.pass()
})

test.serial("the library outlives workers that alone have loaded it: its threads still run", async (t) => {
  const workers = new URL("./native-border/workers.ts", import.meta.url)
  const { stdout } = await promisify(execFile)(process.execPath, ["--import=tsx", workers.pathname, "60"])
  t.is(stdout, "survived 60\n")
})

test.serial("a process ends on its own after its last run, and may exit in the middle of one", async (t) => {
  const run = promisify(execFile)
  const command = ["--import=tsx", loop.pathname]
  const [whole, cut] = await Promise.all([
    run(process.execPath, [...command, "3"]),
    run(process.execPath, [...command, "3", "exit"]),
  ])
  t.is(whole.stdout, "running\n1\n")
  t.is(cut.stdout, "running\n")
})

test("no two blocks whose lives meet overlap, and random programs compute what the host computes", async (t) => {
  await using store = new Store("cpu")
  await fc.assert(
    fc.asyncProperty(randomPrograms, async (program) => {
      const executable = await store.compile(program)
      checkPlacements(executable)
      const inputs = Object.fromEntries(
        program.inputs.map(({ name, shape }, i) => [
          name,
          Float32Array.from({ length: shape[0]! }, (_, j) => Math.sin(i + j) / 4),
        ]),
      )
      const outputs = await executable.run(inputs)
      for (const [key, want] of Object.entries(onHost(program, inputs))) {
        const far = want.findIndex(
          (value, i) => Math.abs(value - outputs[key]![i]!) > 1e-4 * Math.abs(value) && Number.isFinite(value),
        )
        if (far >= 0)
          throw new Error(`${key}[${far}]: expected ${want[far]}, got ${outputs[key]![far]}\n${program.print()}`)
      }
      await executable.dispose()
    }),
    property,
  )
  t.pass()
})

function checkPlacements({ placements, peakBytes }: Executable): void {
  placements.forEach(([value, offset, bytes, first, last], i) => {
    if (offset + bytes > peakBytes) throw new Error(`block of ${value} ends at ${offset + bytes} of ${peakBytes}`)
    for (const [other, start, size, begin, end] of placements.slice(0, i)) {
      const meet = first <= end && begin <= last
      if (meet && offset < start + size && start < offset + bytes)
        throw new Error(`blocks of ${value} and ${other} overlap`)
    }
  })
}
