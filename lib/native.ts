/**
 * The only typed border to the addon, and the two things it holds, memory (`Store`) and compiled programs
 * (`Executable`).
 */
import { loadAddon } from "./addon.ts"
import { checkSignal, type ErrorCode, expect, SelscanError, suggestion } from "./errors.ts"
import type { Program, Slot } from "./graph/program.ts"
import type { Precision } from "./graph/trace.ts"
import { type Dtype, dtypes, type Storage, storages } from "./graph/value.ts"

export type StoredKind = Exclude<Storage, "temporary" | "input">
export type HostArray = Float32Array | Int32Array | Uint16Array | Int8Array | Uint8Array

export interface DeviceInfo {
  readonly name: string
  readonly description: string
  /** What is missing for it to be used, in words; absent where it can be used. */
  readonly missing?: string
  /** Of the cpu: the instruction set of its kernels, and the threads of the process's pool. */
  readonly instructionSet?: string
  readonly threads?: number
  /** Of a GPU: its memory, and how much of it nobody uses at the moment. */
  readonly freeBytes?: number
  readonly totalBytes?: number
}

/** A device by name; `auto` is cuda where it can be used, else the cpu. `emulated` exists in developer builds alone. */
export type Device = "auto" | "cpu" | "cuda" | `cuda:${number}` | "emulated"

/** Where the planner put a block: value id (or −1 − node for a workspace), offset, bytes, first and last node of its life. */
export type Placement = readonly [value: number, offset: number, bytes: number, first: number, last: number]

export interface Memory {
  readonly weights: number
  readonly training: number
  readonly states: number
  readonly rings: number
  readonly derived: number
  readonly arena: number
}

/** The functions of native/addon.cpp. Handles are numbers; promises reject with a `code`. */
interface Addon {
  devices(): DeviceInfo[]
  describe(device: string): DeviceInfo
  kernels(): { name: string; device: string; signature: string }[]
  setThreads(count: number): Promise<number>
  open(device: string): number
  upload(
    store: number,
    storage: number,
    name: string,
    dtype: number,
    shape: readonly number[],
    bytes: HostArray,
    offset: number,
  ): Promise<void>
  download(
    store: number,
    storage: number,
    name: string,
    offset: number,
    length: number,
  ): Promise<Uint8Array<ArrayBuffer>>
  compile(
    store: number,
    bytes: Uint8Array,
    profiled: number,
  ): Promise<{ program: number; peakBytes: number; placements: Placement[] }>
  run(program: number, inputs: readonly HostArray[], runId: number): Promise<Uint8Array<ArrayBuffer>[]>
  runSteps(
    program: number,
    inputs: readonly HostArray[],
    runId: number,
    count: number,
    output: number,
    input: number,
    ends: Int32Array,
    microseconds: number,
  ): Promise<Uint8Array<ArrayBuffer>[]>
  abort(runId: number): void
  copySlot(store: number, from: number, to: number): Promise<void>
  memory(store: number): Promise<Memory>
  profile(program: number): Promise<number[]>
  dispose(handle: number): Promise<void>
}

/** The addon, loaded on first use: graphs, shapes and gradients work without it. */
export const addon = () => loadAddon() as Addon

export const devices = (): readonly DeviceInfo[] => told(() => addon().devices())
export const kernels = () => addon().kernels()

/**
 * The name of the device to open. One that is asked for by name is never replaced by another.
 *
 * @throws BAD_OPTION for a name that is none; NO_DEVICE, with what is missing, for one that cannot be had; DEVICE_LOST
 * @example
 * const device = resolveDevice("auto") // "cuda", or "cpu" where there is no GPU
 */
export function resolveDevice(wanted: Device = "auto"): string {
  if (wanted === "cpu") return wanted // always there; GPUs are not woken, and opening it says what is wrong with its settings
  const known = devices()
  if (wanted === "auto")
    return known.some(({ name, missing }) => name === "cuda" && missing === undefined) ? "cuda" : "cpu"
  const kind = typeof wanted === "string" ? wanted.replace(/^cuda:\d{1,3}$/, "cuda") : undefined
  const names = ["auto", ...known.map(({ name }) => (name === "cuda" ? "cuda, cuda:N" : name))]
  expect(
    known.some(({ name }) => name === kind),
    "BAD_OPTION",
    () => `device: one of ${names.join(", ")} is expected, got ${wanted}`,
    { device: wanted },
  )
  told(() => addon().describe(wanted), { device: wanted }) // this very one: the first may be too old, and the next not
  return wanted
}

/** Whether the cpu makes products of bf16x3, which takes AMX; where it does not they are those of f32. */
export const splitsProducts = (): boolean => devices().some(({ instructionSet }) => instructionSet === "amx")

/** How activations are stored in programs for a device: GPUs keep those of bf16 models in bf16, the cpu all in f32. */
export const activationsOn = (device: string, precision: Precision): "f32" | "bf16" =>
  device !== "cpu" && precision === "bf16" ? "bf16" : "f32"

/**
 * Sets the number of threads of the process's pool, which all models share, in turn after runs that wait; 0 for all usable cores:
 * those this process may use by affinity, each once however many threads it has, and no more than a container's quota pays for. A
 * process begins with these, or with `SELSCAN_THREADS` where it is set. Resolves with the number in force.
 *
 * @throws BAD_OPTION; OUT_OF_MEMORY where the system has fewer threads to give
 */
export async function setThreads(count: number): Promise<number> {
  expect(
    Number.isInteger(count) && count >= 0 && count <= 1024,
    "BAD_OPTION",
    () => `threads: a whole number from 0 to 1024 is expected, got ${count}; 0 takes all usable cores`,
  )
  return settled(() => addon().setThreads(count))
}

/** Makes a native call that answers at once; its failure is thrown as a SelscanError. */
function told<T>(call: () => T, details: Readonly<Record<string, unknown>> = {}): T {
  try {
    return call()
  } catch (cause) {
    if (cause instanceof SelscanError) throw cause
    throw new SelscanError((cause as { code?: ErrorCode }).code ?? "NATIVE", (cause as Error).message, details)
  }
}

/** Runs a native call; its failure arrives as a SelscanError whose stack begins at the caller. */
async function settled<T>(call: () => Promise<T> | T): Promise<T> {
  const error = new SelscanError("NATIVE", "")
  try {
    return await call()
  } catch (cause) {
    const { code, message } = cause as Error & { code?: ErrorCode }
    throw Object.assign(error, {
      code: code ?? "NATIVE",
      message,
      stack: error.stack?.replace("SelscanError", `SelscanError: ${message}`),
    })
  }
}

// A store or program whose wrapper is gone is released; dispose() does so at a chosen time.
const forgotten = new FinalizationRegistry<number>((handle) => {
  addon()
    .dispose(handle)
    .catch(() => {})
})

let runs = 0

export interface StepOptions {
  /** Steps at most. */
  readonly count: number
  /** The output that is handed on and the input that takes it, both i32. */
  readonly feed: readonly [output: string, input: string]
  /** No step follows one that says any of these, or a negative number. */
  readonly ends?: Int32Array | undefined
  /** No step begins that would likely end later than this; 0, the default, for no such bound. */
  readonly milliseconds?: number
  readonly signal?: AbortSignal | undefined
}

/** The memory of one model on one device: weights, training values and states, by name. */
export class Store {
  readonly device: string
  #handle: number | undefined

  /** @throws NO_DEVICE when there is no such device; the message says what is missing */
  constructor(device = "cpu") {
    const handle = told(() => addon().open(device))
    this.#handle = handle
    this.device = device
    forgotten.register(this, handle, this)
  }

  get disposed(): boolean {
    return this.#handle === undefined
  }

  get #live(): number {
    expect(this.#handle !== undefined, "DISPOSED", () => "model: it has been disposed")
    return this.#handle
  }

  /** Writes bytes of a stored value, at an offset in bytes; makes it (with zeros) if it is new. */
  async upload(kind: StoredKind, slot: Omit<Slot, "sizeBytes">, bytes: HostArray, offset = 0): Promise<void> {
    const { name, dtype, shape } = slot
    return settled(() =>
      addon().upload(this.#live, storages.indexOf(kind), name, dtypes.indexOf(dtype), shape, bytes, offset),
    )
  }

  /** Bytes of a stored value; all of them unless a range is given. */
  download(kind: StoredKind, name: string, offset = 0, length = 0): Promise<Uint8Array<ArrayBuffer>> {
    return settled(() => addon().download(this.#live, storages.indexOf(kind), name, offset, length))
  }

  /** Copies every state of slot `from` to slot `to`; from 0 clears it. Rings are not slots, and stay. */
  copySlot(from: number, to: number): Promise<void> {
    return settled(() => addon().copySlot(this.#live, from, to))
  }

  memory(): Promise<Memory> {
    return settled(() => addon().memory(this.#live))
  }

  /**
   * Finds a kernel for every node and plans the memory. With `profile`, every node of every run is timed on the device, for
   * `Executable.profile()`; a GPU then runs node by node instead of replaying the whole program at once.
   */
  async compile(program: Program, { profile = false } = {}): Promise<Executable> {
    const bytes = program.serialise()
    const result = await settled(() => addon().compile(this.#live, bytes, Number(profile)))
    return new Executable(this, program, result)
  }

  /** Releases the memory, and the programs compiled for it, once what runs has finished. Calling it twice is allowed. */
  async dispose(): Promise<void> {
    if (this.#handle === undefined) return
    const handle = this.#handle
    this.#handle = undefined
    forgotten.unregister(this)
    await settled(() => addon().dispose(handle))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose()
  }
}

/** A program with a kernel for every node and its memory planned. */
export class Executable {
  /** Kept from being collected as long as its program can run. */
  readonly store: Store
  readonly program: Program
  /** Bytes of the arena that the temporaries of one run need. */
  readonly peakBytes: number
  readonly placements: readonly Placement[]
  readonly #inputs: readonly Slot[]
  readonly #outputs: readonly Slot[]
  #handle: number | undefined

  constructor(store: Store, program: Program, native: { program: number; peakBytes: number; placements: Placement[] }) {
    this.store = store
    this.program = program
    this.peakBytes = native.peakBytes
    this.placements = native.placements
    this.#handle = native.program
    this.#inputs = program.inputs
    this.#outputs = program.outputSlots
    forgotten.register(this, native.program, this)
  }

  /**
   * Runs the program once, off the event loop. Inputs are copied before this returns.
   *
   * @throws BAD_INPUT for a missing, unknown or wrongly sized input, or for ids and segments out of range; ABORTED when
   * the signal fires first. A failed run has written no output, and no state but in slots nobody has adopted. A program
   * that updates weights is no such thing: aborted, it leaves some of them updated. A GPU finishes what it has begun: there an
   * abort comes in time while the run waits in the queue or, the first time, while it is handed over.
   */
  async run(
    inputs: Readonly<Record<string, HostArray>>,
    { signal }: { signal?: AbortSignal | undefined } = {},
  ): Promise<Record<string, HostArray>> {
    const ordered = this.#ordered(inputs, 1)
    const results = await this.#abortable(signal, (handle, runId) => addon().run(handle, ordered, runId))
    return this.#named(results)
  }

  /**
   * Runs the program several times without coming back in between: inputs hold what every step takes, one after another, and from the
   * second step on what the step before said as one output is taken as one input, in place of what was given there.
   * At least one step is done; fewer than `count` where one ends them, the time is over, or others wait for the device. Outputs hold
   * those of the steps that were done, one after another. A step that fails fails all, as in run().
   *
   * @throws as run(); BAD_INPUT too where an output cannot be handed on
   */
  async steps(
    inputs: Readonly<Record<string, HostArray>>,
    { count, feed: [output, input], ends = new Int32Array(), milliseconds = 0, signal }: StepOptions,
  ): Promise<{ done: number; outputs: Record<string, HostArray> }> {
    const from = this.#outputs.findIndex(({ name }) => name === output)
    const to = this.#inputs.findIndex(({ name }) => name === input)
    expect(from >= 0 && to >= 0, "BAD_INPUT", () => {
      return `${this.program.name}: steps hand an output on to an input, got ${output} for ${input}; both are named as in the program`
    })
    const ordered = this.#ordered(inputs, count)
    const microseconds = Math.ceil(milliseconds * 1000) // a bound however small: 0 is none
    const results = await this.#abortable(signal, (handle, runId) =>
      addon().runSteps(handle, ordered, runId, count, from, to, ends, microseconds),
    )
    return { done: results[from]!.byteLength / this.#outputs[from]!.sizeBytes, outputs: this.#named(results) }
  }

  /** A run that a signal can end. */
  async #abortable(
    signal: AbortSignal | undefined,
    call: (handle: number, runId: number) => Promise<Uint8Array<ArrayBuffer>[]>,
  ): Promise<Uint8Array<ArrayBuffer>[]> {
    const handle = this.#handle
    expect(handle !== undefined, "DISPOSED", () => `${this.program.name}: the program has been disposed`)
    checkSignal(this.program.name, signal)
    runs = runs >= 0xffffffff ? 1 : runs + 1
    const runId = runs
    const onAbort = () => addon().abort(runId)
    signal?.addEventListener("abort", onAbort, { once: true })
    try {
      return await settled(() => call(handle, runId))
    } finally {
      signal?.removeEventListener("abort", onAbort)
    }
  }

  #named(results: readonly Uint8Array<ArrayBuffer>[]): Record<string, HostArray> {
    return Object.fromEntries(this.#outputs.map((slot, i) => [slot.name, typed(slot.dtype, results[i]!)]))
  }

  /**
   * Seconds spent in each node over all runs so far, in the order of `program.nodes`: always on the cpu, on a GPU zeros
   * unless the program was compiled with `profile`.
   */
  async profile(): Promise<number[]> {
    const handle = this.#handle
    expect(handle !== undefined, "DISPOSED", () => `${this.program.name}: the program has been disposed`)
    return settled(() => addon().profile(handle))
  }

  async dispose(): Promise<void> {
    if (this.#handle === undefined) return
    const handle = this.#handle
    this.#handle = undefined
    forgotten.unregister(this)
    await settled(() => addon().dispose(handle))
  }

  /** Inputs in the program's order, each with what every one of so many steps takes. */
  #ordered(inputs: Readonly<Record<string, HostArray>>, steps: number): HostArray[] {
    const { name } = this.program
    const known = this.#inputs.map((slot) => slot.name)
    expect(
      typeof inputs === "object" && inputs !== null,
      "BAD_INPUT",
      () => `${name}: inputs are an object of arrays, got ${inputs}`,
    )
    for (const key of Object.keys(inputs)) {
      expect(known.includes(key), "BAD_INPUT", () => `${name}: unknown input ${key}, ${suggestion(key, known)}`)
    }
    return this.#inputs.map((slot) => {
      const array = inputs[slot.name]
      expect(array !== undefined, "BAD_INPUT", () => `${name}: input ${slot.name} is missing`)
      expect(
        isOf(slot.dtype, array) && array.byteLength === slot.sizeBytes * steps,
        "BAD_INPUT",
        () =>
          `${name}: input ${slot.name} is ${slot.dtype} [${slot.shape}] (${slot.sizeBytes} bytes${steps === 1 ? "" : ` in each of ${steps} steps`}), got ${ArrayBuffer.isView(array) ? `${array.constructor.name} of ${array.byteLength} bytes` : typeof array}`,
      )
      return array
    })
  }
}

function isOf(dtype: Dtype, array: HostArray): boolean {
  if (dtype === "f32") return array instanceof Float32Array
  if (dtype === "i32") return array instanceof Int32Array
  if (dtype === "i8") return array instanceof Int8Array
  return array instanceof Uint16Array
}

function typed(dtype: Dtype, bytes: Uint8Array<ArrayBuffer>): HostArray {
  if (dtype === "f32") return new Float32Array(bytes.buffer)
  if (dtype === "i32") return new Int32Array(bytes.buffer)
  if (dtype === "i8") return new Int8Array(bytes.buffer)
  return new Uint16Array(bytes.buffer)
}
