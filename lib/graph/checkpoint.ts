/**
 * Trading time for memory: values inside a checkpointed function are not kept for the backward pass but computed again.
 */
import { current } from "./trace.ts"
import type { CheckpointSegment, Value } from "./value.ts"

/**
 * Wraps fn so that the backward pass re-traces it from its inputs instead of keeping what lies inside.
 *
 * Memory of n blocks falls from n·inside to n·inputs + 1·inside; time grows by one forward pass. States that fn reads and
 * writes must come from different slots (from ≠ to), since fn runs twice.
 *
 * @example
 * const layer = new SwiGLU({ dim: 64, inner: 256 })
 * trace("block", (t) => {
 *   const rows = { segments: t.input("segments", "i32", [1, 5]), matrixDtype: "f32" } as const
 *   const block = checkpoint((x: Value) => apply("layers.0", layer, x, rows))
 *   return { y: block(t.input("x", "f32", [128, 64])) }
 * })
 * @see Chen et al. 2016, arXiv:1604.06174
 */
export function checkpoint<Inputs extends readonly Value[]>(
  fn: (...inputs: Inputs) => Value,
): (...inputs: Inputs) => Value {
  return (...inputs) => {
    const trace = current("checkpoint")
    const path = trace.path
    const segment: CheckpointSegment = {
      inputs,
      outputs: [],
      retrace: (again) => trace.at(path, () => [fn(...(again as unknown as Inputs))]),
    }
    const output = trace.segment(segment, () => fn(...inputs))
    segment.outputs = [output]
    return output
  }
}
