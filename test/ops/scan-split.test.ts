/**
 * SELSCAN_SCAN_SPLIT, which a process reads once: each setting is a process of its own.
 */
import { spawnSync } from "node:child_process"
import test from "ava"
import { device } from "../device.ts"
import { largest } from "./harness.ts"

const gpu = device === "cpu" ? test.skip : test

/** A scan of 1100 rows of 5 channels, its longest segment 1049 rows; prints what comes out as base64. */
const script = `
import { trace } from "../../lib/graph/program.ts"
import { Store } from "../../lib/native.ts"
import { selectiveScan } from "../../lib/ops/selective-scan.ts"
import { normal, segmentsOf, uniform } from "./spec.ts"

const rows = { x: 5, delta: 5, z: 5, B: 16, C: 16 }
const lines = segmentsOf([3, 40, 0, 0, 1], [41, 1090, 7, 2, 2], [1090, 1090])
const store = new Store(process.env.DEVICE)
const program = await store.compile(trace("scan", (tr) => {
  const all = Object.fromEntries(Object.entries(rows).map(([key, columns]) => [key, tr.input(key, "f32", [1100, columns])]))
  const A = tr.input("A", "f32", [5, 16])
  const carried = tr.state("ssm", "f32", [3, 5, 16])
  const { y, final } = selectiveScan({ ...all, A, segments: tr.input("segments", "i32", [3, 5]), carried })
  return { y, final }
}))
const floats = ({ data }) => Float32Array.from(data)
await store.upload("state", { name: "ssm", dtype: "f32", shape: [3, 5, 16] }, floats(normal([3, 5, 16], 1)))
const inputs = Object.entries(rows).map(([key, columns], i) => [key, floats(normal([1100, columns], 2 + i))])
const A = floats(uniform([5, 16], 9, -1, -0.001))
const outputs = await program.run({ ...Object.fromEntries(inputs), A, segments: Int32Array.from(lines.data) })
const all = { ...outputs, carried: await store.download("state", "ssm") }
const text = ({ buffer, byteOffset, byteLength }) => Buffer.from(buffer, byteOffset, byteLength).toString("base64")
console.log(JSON.stringify(Object.fromEntries(Object.entries(all).map(([key, array]) => [key, text(array)]))))
`

function scan(setting: string | undefined): { outputs: Record<string, Float32Array>; stderr: string } {
  const { SELSCAN_SCAN_SPLIT: _, ...environment } = process.env
  const env = { ...environment, DEVICE: device, ...(setting !== undefined && { SELSCAN_SCAN_SPLIT: setting }) }
  const { stdout, stderr } = spawnSync(process.execPath, ["--import=tsx", "--input-type=module", "-e", script], {
    cwd: import.meta.dirname,
    encoding: "utf8",
    env,
  })
  const floats = (text: string) => new Float32Array(new Uint8Array(Buffer.from(text, "base64")).buffer)
  const parsed: Record<string, string> = stdout === "" ? {} : JSON.parse(stdout)
  return { outputs: Object.fromEntries(Object.entries(parsed).map(([key, text]) => [key, floats(text)])), stderr }
}

gpu("a scan split over its length equals the whole one but for rounding, and has the same bits twice", (t) => {
  const whole = scan(undefined)
  t.deepEqual(Object.keys(whole.outputs).sort(), ["carried", "final", "y"], whole.stderr)
  t.deepEqual(scan("0").outputs, whole.outputs)
  const split = scan("1")
  t.deepEqual(scan("1").outputs, split.outputs)
  t.notDeepEqual(split.outputs.y, whole.outputs.y, "it was split")
  for (const key of ["y", "final", "carried"]) {
    const want = whole.outputs[key]!
    const error = Math.max(...want.map((value, i) => Math.abs(value - split.outputs[key]![i]!)))
    t.true(error <= 1e-5 * largest(want), `${key}: ${error}`)
  }
})

gpu("a setting of SELSCAN_SCAN_SPLIT that is neither 0 nor 1 is refused", (t) => {
  t.regex(scan("yes").stderr, /SELSCAN_SCAN_SPLIT is 0 or 1, got yes/)
})
