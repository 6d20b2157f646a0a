/**
 * Which CUDA toolkit the addon is built with: asked of toolkits that only say which version they are.
 */
import { spawnSync } from "node:child_process"
import { chmodSync, mkdirSync, mkdtempSync, writeFileSync } from "node:fs"
import { rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import test from "ava"

const script = fileURLToPath(new URL("../native/toolkit.cjs", import.meta.url))
const folder = mkdtempSync(join(tmpdir(), "selscan-toolkit-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))

/** A folder with an nvcc that answers a dry run as that version does. */
function toolkit(major: number, minor: number): string {
  const home = join(folder, `cuda-${major}.${minor}`)
  for (const name of ["bin", "lib64"]) mkdirSync(join(home, name), { recursive: true })
  writeFileSync(join(home, "lib64", "libcudart_static.a"), "")
  const nvcc = join(home, "bin", "nvcc")
  writeFileSync(
    nvcc,
    `#!/bin/sh\necho '#$ TOP=${home}\n#$ gcc -D__CUDACC_VER_MAJOR__=${major} -D__CUDACC_VER_MINOR__=${minor}' >&2\n`,
  )
  chmodSync(nvcc, 0o755)
  return home
}

/** The nvcc that is chosen, or the error's message. */
function chosen(home: string, asked: string): string {
  const code = `try { console.log(require(${JSON.stringify(script)}).chooseToolkit()?.nvcc) } catch ({ message }) { console.log(message) }`
  const env = { ...process.env, PATH: "/usr/bin:/bin", CUDA_HOME: home, SELSCAN_CUDA: asked }
  return spawnSync(process.execPath, ["-e", code], { env, encoding: "utf8" }).stdout.trim()
}

test("a recent toolkit is taken where it is asked for, and none where it is declined", (t) => {
  for (const [major, minor] of [
    [12, 8],
    [12, 10],
    [13, 0],
  ] as const) {
    const home = toolkit(major, minor)
    t.is(chosen(home, "1"), join(home, "bin", "nvcc"))
    t.is(chosen(home, "0"), "undefined")
  }
})

test("one that is too old for the sources is passed over, and named where nothing better is found", (t) => {
  for (const [major, minor] of [
    [11, 8],
    [12, 7],
  ] as const) {
    const home = toolkit(major, minor)
    const answer = chosen(home, "1")
    t.not(answer, join(home, "bin", "nvcc"))
    if (answer.startsWith("SELSCAN_CUDA"))
      t.regex(answer, new RegExp(`12.8 or newer .* got ${home}/bin/nvcc of ${major}.${minor}; install`))
  }
})

test("a word that is neither 0 nor 1 is refused", (t) => {
  t.is(chosen("", "yes"), "SELSCAN_CUDA: 0 or 1 is expected, got yes; unset it to decide by what is found")
})
