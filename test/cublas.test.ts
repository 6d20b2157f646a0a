/**
 * cuBLAS as an option, on the emulated device with a library of our own in its place: products go there where they should, and
 * a library that cannot be had or trusted is refused, never passed over.
 */
import { execFileSync, spawnSync } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import test from "ava"
import { device } from "./device.ts"

const onEmulated = device === "emulated" ? test : test.skip
const file = (path: string) => fileURLToPath(new URL(path, import.meta.url))

let folder = ""
let library = ""
test.before(() => {
  if (device !== "emulated") return
  folder = mkdtempSync(join(tmpdir(), "selscan-cublas-"))
  library = join(folder, "libcublas.so")
  // Not under the sanitizer of the addon, whose library may be preloaded here.
  const { LD_PRELOAD: _, ...env } = process.env
  const flags = ["-std=c++20", "-O2", "-shared", "-fPIC"]
  execFileSync("g++", [...flags, file("emulated/cublas/library.cpp"), "-o", library], { env })
})
test.after.always(() => folder && rmSync(folder, { recursive: true, force: true }))

/** The products in a process of their own: what it printed, and the products that the library noted. */
function products(variables: Record<string, string>) {
  const script = file("emulated/cublas/products.ts")
  const { stdout, stderr } = spawnSync(process.execPath, ["--import", "tsx", script], {
    env: { ...process.env, ...variables },
    encoding: "utf8",
  })
  return { said: stdout.trim(), stderr, noted: stderr.match(/^gemm .*$/gm) ?? [] }
}

onEmulated("large bf16 products go to cuBLAS, those with an activation stay", (t) => {
  const { said, noted, stderr } = products({ SELSCAN_CUBLAS: "1", SELSCAN_CUBLAS_LIBRARY: library })
  t.is(said, "right", stderr)
  t.deepEqual(noted, [
    "gemm 24 16 32, operations 1 0, beta 0", // its test
    "gemm 272 264 256, operations 1 0, beta 0",
    "gemm 272 264 256, operations 1 0, beta 1",
    "gemm 256 264 272, operations 0 0, beta 0",
    "gemm 256 272 264, operations 0 1, beta 0",
  ])
})

onEmulated("cuBLAS is not looked for unless it is asked for", (t) => {
  const { said, noted, stderr } = products({ SELSCAN_CUBLAS: "", SELSCAN_CUBLAS_LIBRARY: library })
  t.is(said, "right", stderr)
  t.deepEqual(noted, [])
})

for (const [kind, message] of [
  ["old", /got version 10; install it/],
  ["wrong", /computes a small product wrongly/],
  ["failing", /status 13 from a small product/],
] as const) {
  onEmulated(`a library that is ${kind} is refused at compile`, (t) => {
    const { said } = products({ SELSCAN_CUBLAS: "1", SELSCAN_CUBLAS_LIBRARY: library, FAKE_CUBLAS: kind })
    t.regex(said, /^NO_DEVICE /)
    t.regex(said, message)
  })
}

onEmulated("a library that is not there is refused with the loader's words", (t) => {
  const { said } = products({ SELSCAN_CUBLAS: "1", SELSCAN_CUBLAS_LIBRARY: join(folder, "none.so") })
  t.regex(said, /^NO_DEVICE .*none\.so: cannot open shared object file.*unset SELSCAN_CUBLAS/)
})
