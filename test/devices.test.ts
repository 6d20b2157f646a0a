/**
 * Which device a name means, against an addon that only says what it has (test/native-border/fake-addon.cjs): this machine
 * need not have a GPU, nor lack one.
 */
import { spawnSync } from "node:child_process"
import { fileURLToPath } from "node:url"
import test from "ava"
import { activationsOn } from "../lib/native.ts"

const addon = fileURLToPath(new URL("native-border/fake-addon.cjs", import.meta.url))

/** What a script prints as JSON, in a process of its own whose addon is the fake one. */
function printed(script: string, missing = "", env: Readonly<Record<string, string>> = {}): unknown {
  const root = fileURLToPath(new URL("..", import.meta.url))
  const code = `
    import { resolveDevice } from "${root}lib/native.ts"
    const attempt = (fn) => { try { return fn() } catch ({ code, message, details }) { return { code, message, details } } }
    ${script}`
  const { stdout, stderr } = spawnSync(process.execPath, ["--import=tsx", "--input-type=module", "-e", code], {
    env: { ...process.env, SELSCAN_ADDON: addon, CUDA_MISSING: missing, ...env },
    encoding: "utf8",
  })
  if (stdout === "") throw new Error(stderr)
  return JSON.parse(stdout)
}

const resolved = (names: readonly string[], missing?: string, env?: Readonly<Record<string, string>>) =>
  printed(
    `console.log(JSON.stringify(${JSON.stringify(names)}.map((name) => attempt(() => resolveDevice(name)))))`,
    missing,
    env,
  ) as unknown[]

test("auto is cuda where it can be used; a name is itself", (t) => {
  t.deepEqual(resolved(["auto", "cpu", "cuda", "cuda:0", "cuda:1"]), ["cuda", "cpu", "cuda", "cuda:0", "cuda:1"])
})

test("without cuda auto is the cpu, and cuda by name is refused with what is missing", (t) => {
  const missing = "no NVIDIA driver was found"
  const [auto, cpu, ...refused] = resolved(["auto", "cpu", "cuda", "cuda:2"], missing) as [string, string, ...object[]]
  t.deepEqual([auto, cpu], ["cpu", "cpu"])
  for (const [i, device] of ["cuda", "cuda:2"].entries()) {
    t.deepEqual(refused[i], {
      code: "NO_DEVICE",
      message: `device ${device}: ${missing}`,
      details: { device },
    })
  }
})

test("a GPU is judged by itself: the first may be too old, and the next not", (t) => {
  const [first, second] = resolved(["cuda", "cuda:1"], "compute capability 7.5", { CUDA_USABLE: "cuda:1" })
  t.like(first as object, { code: "NO_DEVICE" })
  t.is(second, "cuda:1")
})

test("the cpu by name asks for no list of devices: that would wake every GPU", (t) => {
  t.deepEqual(resolved(["cpu"], "", { SELSCAN_ADDON: "none" }), ["cpu"])
})

test("a name that is no device's is refused with those that are", (t) => {
  for (const name of ["cudda", "cuda:", "cuda:-1", "cuda:x", "cuda:1000", "", "CPU", "emulated", 7, null]) {
    t.like((resolved([name as string]) as object[])[0], {
      code: "BAD_OPTION",
      message: `device: one of auto, cpu, cuda, cuda:N is expected, got ${name}`,
    })
  }
})

test("activations are bf16 on a GPU alone, in a bf16 model", (t) => {
  t.deepEqual(
    ["cpu", "cuda", "cuda:1", "emulated"].map((device) => [
      activationsOn(device, "bf16"),
      activationsOn(device, "f32"),
    ]),
    [
      ["f32", "f32"],
      ["bf16", "f32"],
      ["bf16", "f32"],
      ["bf16", "f32"],
    ],
  )
})

test("a model whose device was lost says so, from then on and however it is asked", (t) => {
  const script = `
    import { Model } from "${fileURLToPath(new URL("../lib/generate/model.ts", import.meta.url))}"
    import { modelConfig } from "${fileURLToPath(new URL("../lib/models/config.ts", import.meta.url))}"
    import { PatternModel } from "${fileURLToPath(new URL("../lib/models/pattern-model.ts", import.meta.url))}"
    import { SelscanError } from "${fileURLToPath(new URL("../lib/errors.ts", import.meta.url))}"
    const model = new Model(new PatternModel(modelConfig({ dim: 8, layers: 1, vocab: 256 })), "f32")
    const kept = model.session()
    const codes = [model.device]
    const asked = [
      async () => { for await (const text of model.generate("a")) text },
      () => model.bitsPerByte("abc"),
      async () => { for await (const text of kept.generate("a")) text },
      () => kept.append("abc"),
    ]
    for (const ask of [...asked, ...asked])
      await ask().then(() => codes.push("none"), (error) => codes.push(error instanceof SelscanError && error.code))
    kept.dispose()
    await model.dispose()
    console.log(JSON.stringify(codes))`
  t.deepEqual(printed(script), ["cuda", ...Array.from({ length: 8 }, () => "DEVICE_LOST")])
})
