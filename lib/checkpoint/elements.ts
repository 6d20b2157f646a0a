/** Elements of our parameters out of a file's tensors, by position: the way back from `FileTensor`, for files made from files. */
import { SelscanError } from "../errors.ts"
import { dtypeSize, type TensorDtype, toF32 } from "./dtypes.ts"
import type { FileTensor } from "./family.ts"
import type { TensorSource } from "./shards.ts"
import { checkFinite, rowElements } from "./weights.ts"

/** Consecutive elements of a parameter that are consecutive in the file too. */
interface Run {
  readonly at: number
  readonly count: number
  readonly tensor: string
  readonly dtype: TensorDtype
  /** Index of its first element in the file's tensor. */
  readonly fileAt: number
}

export class Elements {
  readonly #source: TensorSource
  readonly #runs = new Map<string, Run[]>()

  /** Of tensors whose names and shapes have been checked. */
  constructor(source: TensorSource, tensors: readonly FileTensor[]) {
    this.#source = source
    for (const { fileName: tensor, shape, parts } of tensors) {
      const columns = rowElements(shape)
      const { dtype } = source.tensors.get(tensor)!
      for (const { name, row, fileRow, rows } of parts) {
        const runs = this.#runs.get(name) ?? []
        runs.push({ at: row * columns, count: rows * columns, tensor, dtype, fileAt: fileRow * columns })
        this.#runs.set(name, runs)
      }
    }
    for (const runs of this.#runs.values()) runs.sort((a, b) => a.at - b.at)
  }

  /**
   * `count` elements of a parameter from element `at` on, as f32.
   * @throws SelscanError NOT_FINITE for a NaN or an infinity, else as the file's `readInto`
   */
  async read(name: string, at: number, count: number): Promise<Float32Array> {
    const result = new Float32Array(count)
    for (const run of this.#of(name)) {
      const [from, to] = [Math.max(at, run.at), Math.min(at + count, run.at + run.count)]
      if (from >= to) continue
      const size = dtypeSize[run.dtype]
      const first = run.fileAt + from - run.at
      const bytes = new Uint8Array((to - from) * size)
      await this.#source.readInto(run.tensor, bytes, first * size)
      const floats = toF32(run.dtype, bytes)
      checkFinite(floats, `${this.#source.path}: ${run.tensor}`, first)
      result.set(floats, from - at)
    }
    return result
  }

  #of(name: string): readonly Run[] {
    const runs = this.#runs.get(name)
    if (runs !== undefined) return runs
    const message = `${this.#source.path}: expected a tensor for ${name}, got none; pair it with its own config file`
    throw new SelscanError("BAD_CHECKPOINT", message, { name })
  }
}
