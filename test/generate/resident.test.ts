/**
 * A model is in memory once: while it is read, and after its weights were packed for the products.
 */
import { execFile } from "node:child_process"
import { existsSync, mkdtempSync } from "node:fs"
import { rm, stat, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import test from "ava"
import { modelConfigFields } from "../../lib/checkpoint/families.ts"
import { f32ToBf16 } from "../../lib/checkpoint/halves.ts"
import { writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { allParameters } from "../../lib/layers/layer.ts"
import { modelConfig } from "../../lib/models/config.ts"
import { PatternModel } from "../../lib/models/pattern-model.ts"

const folder = mkdtempSync(join(tmpdir(), "selscan-resident-"))
test.after.always(() => rm(folder, { recursive: true, force: true }))

const linux = existsSync("/proc/self/status")
const noise = Float32Array.from({ length: 1 << 18 }, (_, i) => 0.02 * Math.sin(i * i))

/** Over GPT-NeoX's vocabulary, whose table is a fifth of it: about 500 MB in bf16, or half the layers in f32. */
async function writeModel(dtype: "BF16" | "F32"): Promise<number> {
  const config = modelConfig({ dim: 1024, layers: dtype === "BF16" ? 32 : 12, vocab: 50280 })
  const entries = [...allParameters(new PatternModel(config))].map(([name, { shape, matrix }]) => {
    const half = matrix && dtype === "BF16"
    const piece = new Uint8Array((half ? f32ToBf16(noise) : noise).buffer)
    const bytes = shape.reduce((product, size) => product * size, half ? 2 : 4)
    const data = async function* () {
      for (let left = bytes; left > 0; left -= piece.length) yield piece.subarray(0, Math.min(left, piece.length))
    }
    return { name, dtype: half ? "BF16" : "F32", shape, data } as const
  })
  const path = join(folder, "model.safetensors")
  await writeSafetensors(path, entries)
  await writeFile(join(folder, "config.json"), JSON.stringify(modelConfigFields(config)))
  return (await stat(path)).size
}

for (const dtype of ["BF16", "F32"] as const) {
  const title = `loading 500 MB of ${dtype} raises resident memory by the file's size and 64 MB at most`
  const declare = linux ? test.serial : test.serial.skip
  declare(title, async (t) => {
    t.timeout(120_000)
    const size = await writeModel(dtype)
    const script = fileURLToPath(new URL("./resident.ts", import.meta.url))
    const { stdout } = await promisify(execFile)(process.execPath, ["--import=tsx", script, folder])
    const { loaded, ran } = JSON.parse(stdout) as { loaded: number; ran: number }
    const beyond = (bytes: number) => (bytes - size) / 2 ** 20
    t.log(
      `${(size / 2 ** 20).toFixed(0)} MB: loading ${beyond(loaded).toFixed(0)} MB beyond that, two tokens ${beyond(ran).toFixed(0)}`,
    )
    t.true(size > 400e6)
    t.true(beyond(loaded) <= 64, `loading takes ${beyond(loaded)} MB beyond the file's size`)
    t.true(beyond(ran) <= 96, `the first tokens take ${beyond(ran)} MB beyond the file's size`)
  })
}
