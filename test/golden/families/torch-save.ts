import { readdir } from "node:fs/promises"
import { dirname, join } from "node:path"
import { readConfig } from "../../../lib/checkpoint/families.ts"
import { openSafetensors } from "../../../lib/checkpoint/safetensors.ts"
import { openWeights } from "../../../lib/checkpoint/shards.ts"
import { openTorch } from "../../../lib/checkpoint/torch-file.ts"
import { expect } from "../../../lib/errors.ts"
import { type Comparison, identical } from "../compare.ts"
import type { FileFamily } from "../family.ts"
import { weightsOf } from "./model-checkpoint.ts"

/**
 * A model's torch.save file beside its safetensors: every parameter is the same, bit for bit, so that what the families of models compute
 * holds of either format. A tied head, which only torch.save writes, is held to its embedding by the reader.
 */
export const torchSaveFamily: FileFamily = {
  ops: ["torch_save"],
  runFile: async (path) => {
    const folder = dirname(path)
    const read = await readConfig(folder)
    await using torch = await openTorch(path)
    await using plain = await openWeights(folder)
    expect(plain.path !== path, "NOT_FOUND", () => `${folder}: model.safetensors is expected beside ${path}, got none`)
    const [{ weights: got }, { weights: want }] = [await weightsOf(torch, read), await weightsOf(plain, read)]
    return [...want].map(([name, values]) => identical(name, got.get(name)!, values))
  },
}

/** `{name}.expected.safetensors` has the plain values of every tensor in the torch.save files whose names begin with the same word. */
export const torchSaveReadingFamily: FileFamily = {
  ops: ["torch_save_reading"],
  runFile: async (path) => {
    const folder = dirname(path)
    const files = (await readdir(folder)).filter((name) => /\.(bin|pth|pt)$/.test(name)).sort()
    expect(files.length > 0, "NOT_FOUND", () => `${folder}: files of torch.save are expected, got none`)
    await using want = await openSafetensors(path)
    const compared: Comparison[] = []
    for (const file of files) {
      await using torch = await openTorch(join(folder, file))
      const both = new Set([...torch.tensors.keys(), ...want.tensors.keys()])
      for (const name of both) {
        const [got, wanted] = [torch.tensors.get(name), want.tensors.get(name)]
        const same = got?.dtype === wanted?.dtype && `${got?.shape}` === `${wanted?.shape}`
        expect(
          same,
          "BAD_SHAPE",
          () => `${file}: ${name} is ${wanted?.dtype} [${wanted?.shape}], got ${got?.dtype} [${got?.shape}]`,
        )
        // Bytes as numbers: the same bits, NaN among them, for every dtype.
        const [bytes, wantedBytes] = [await torch.read(name), await want.read(name)]
        compared.push(identical(`${file} ${name}`, Float32Array.from(bytes), Float32Array.from(wantedBytes)))
      }
    }
    return compared
  },
}
