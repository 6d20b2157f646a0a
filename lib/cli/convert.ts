import type { CAC } from "cac"
import { type Converted, type ConvertForm, convert, convertForms } from "../checkpoint/convert.ts"
import { expect } from "../errors.ts"
import { modelFolder } from "../generate/load.ts"
import type { DownloadProgress } from "../hub/options.ts"
import { progress } from "./common.ts"
import { interruptible } from "./interrupt.ts"

interface Flags {
  out?: unknown
  to?: ConvertForm
  dtype?: "f32" | "bf16" | "f16"
  weights?: "int8"
  modelName?: string
  force?: boolean
  json?: boolean
}

/** `selscan convert MODEL --out PATH`: the same weights under other names, or as a GGUF file for llama.cpp. */
export function convertCommand(cli: CAC): void {
  cli
    .command("convert <model>", "Write a model's weights as safetensors under other names, or as GGUF for llama.cpp")
    .option("--out <path>", "The folder to write, or the file where it is gguf")
    .option("--to <form>", `${convertForms.join(", ")}; gguf for a path that ends so, else what other programs read`)
    .option("--dtype <dtype>", "f32, bf16 or f16, of the matrices; as the file has them when not given")
    .option("--weights <weights>", "int8: large matrices in 8 bits, Q8_0 in gguf; as the file has them when not given")
    .option("--model-name <name>", "The name that a GGUF file says of its model (the folder's)")
    .option("--force", "Replace a model that is there")
    .option("--json", "Print one object: out, to, dtype, int8, tensors, bytes, seconds")
    .example("selscan convert demo --out demo.gguf --dtype f16")
    .example("selscan convert models/mamba-130m --out models/mamba-130m-hf --to transformers")
    .action((model: string, flags: Flags) => interruptible((signal) => run(model, flags, signal)))
}

const named = ({ int8, dtype }: Converted): string => (int8 ? `int8 and ${dtype}` : dtype)

async function run(model: string, flags: Flags, signal: AbortSignal): Promise<number> {
  const { out, to, dtype, weights, modelName, force, json } = flags
  expect(typeof out === "string", "BAD_OPTION", () => "convert: one path to write is expected; name it with --out")
  const [download, bar] = [progress("bytes", flags), progress("bytes", flags)]
  const began = performance.now()
  const options = { to, dtype, weights, modelName, force, signal, onProgress: bar.update }
  const onProgress = ({ loadedBytes, totalBytes }: DownloadProgress) => download.update(loadedBytes, totalBytes)
  const folder = await modelFolder(model, { signal, onProgress }).finally(() => download.stop())
  const written = await convert(folder, out, options).finally(() => bar.stop())
  const seconds = (performance.now() - began) / 1000
  if (json) console.log(JSON.stringify({ ...written, seconds }))
  else
    console.log(
      `${written.out}: ${written.tensors} tensors, ${written.bytes} bytes, ${written.to} in ${named(written)}`,
    )
  return 0
}
