import { rope } from "../../../lib/ops/rope.ts"
import { type CaseFamily, type Extra, present, runForm } from "../family.ts"
import { reshaped } from "../layout.ts"

/** x (B,L,heads,headDim), every sequence from position `offset` on; the first `rotary_dim` columns of each head turn. */
export const ropeFamily: CaseFamily = {
  ops: ["rope"],
  run: (golden) => {
    const [batch = 1, length = 1, heads = 1, headDim = 1] = golden.shape("in.x")
    const rows = (shape: readonly number[]) => reshaped(shape, [batch * length, heads * headDim])
    return runForm(golden, {
      inputs: present(golden, { x: rows }),
      outputs: { y: rows(golden.shape("in.x")) },
      extra: { segments: segmentsAt(golden.number("offset", 0), batch, length) },
      forward: ({ x, segments }) =>
        rope(
          { x: x!, segments: segments! },
          {
            headDim,
            heads,
            base: golden.number("base", 10000),
            rotary: golden.number("rotary_dim", 0),
            interleaved: golden.flag("interleaved", false),
          },
        ),
    })
  },
}

function segmentsAt(position: number, batch: number, length: number): Extra {
  const lines = Array.from({ length: batch }, (_, b) => [b * length, (b + 1) * length, position, 0, 0])
  return { shape: [batch, 5], data: Int32Array.from(lines.flat()) }
}
