import { expect } from "../../../lib/errors.ts"
import { trace } from "../../../lib/graph/program.ts"
import { type HostArray, Store } from "../../../lib/native.ts"
import { selectiveScan } from "../../../lib/ops/selective-scan.ts"
import { device } from "../../device.ts"
import type { GoldenCase } from "../case.ts"
import { compare } from "../compare.ts"
import { type CaseFamily, run } from "../family.ts"

/**
 * One token at a time: x, dt, z (steps,B,D), B, C (steps,B,N) or (steps,B,G,N), state (B,D,N) updated in place; in the
 * head form D is (H,D) everywhere. With heads as runs of channels both are our layout already: a group of heads is a
 * group of channels.
 */
export const selectiveStateUpdateFamily: CaseFamily = {
  ops: ["selective_state_update"],
  run: async (golden) => {
    const [batch = 1, ...channels] = golden.shape("in.state")
    const state = channels.pop()!
    const inner = channels.reduce((product, size) => product * size, 1)
    const steps = golden.shape("in.x")[0]!
    const bands = golden
      .shape("in.B")
      .slice(2)
      .reduce((product, size) => product * size, 1)
    const shapes: Record<string, readonly number[]> = {
      x: [batch, inner],
      dt: [batch, inner],
      A: [inner, state],
      B: [batch, bands],
      C: [batch, bands],
      ...(golden.has("in.D") && { D: [inner] }),
      ...(golden.has("in.z") && { z: [batch, inner] }),
      ...(golden.has("in.dt_bias") && { dt_bias: [inner] }),
    }
    await using store = new Store(device)
    // Slot 0 is nobody's; sequence b owns slot b + 1.
    const slots = { name: "ssm", dtype: "f32", shape: [batch + 1, inner, state] } as const
    const slotBytes = inner * state * Float32Array.BYTES_PER_ELEMENT
    await store.upload("state", slots, new Float32Array((batch + 1) * inner * state))
    await store.upload("state", slots, golden.floats("in.state"), slotBytes)
    const executable = await store.compile(stepProgram(golden, shapes, slots.shape))
    const tensors = Object.fromEntries(Object.keys(shapes).map((name) => [name, golden.floats(`in.${name}`)]))
    const y = new Float32Array(steps * batch * inner)
    for (let step = 0; step < steps; step++) {
      const inputs = stepInputs(tensors, shapes, step)
      const segments = Array.from({ length: batch }, (_, b) => [b, b + 1, step, b + 1, b + 1])
      const result = await run(executable, { ...inputs, segments: Int32Array.from(segments.flat()) })
      y.set(result.y!, step * batch * inner)
    }
    const final = new Float32Array((await store.download("state", "ssm", slotBytes, batch * slotBytes)).buffer)
    return [compare(golden, "out.y", y), compare(golden, "out.state", final)]
  },
}

function stepProgram(golden: GoldenCase, shapes: Record<string, readonly number[]>, slots: readonly number[]) {
  return trace("selective_state_update", (t) => {
    const value = (name: string) => (shapes[name] === undefined ? undefined : t.input(name, "f32", shapes[name]))
    const inputs = {
      x: value("x")!,
      delta: value("dt")!,
      A: value("A")!,
      B: value("B")!,
      C: value("C")!,
      D: value("D"),
      z: value("z"),
      bias: value("dt_bias"),
      segments: t.input("segments", "i32", [shapes.x![0]!, 5]),
      carried: t.state("ssm", "f32", slots),
    }
    return { y: selectiveScan(inputs, { softplus: golden.flag("softplus", false) }).y }
  })
}

/** The step's part of what has a steps axis, all of what has none. */
function stepInputs(tensors: Record<string, Float32Array>, shapes: Record<string, readonly number[]>, step: number) {
  const inputs: Record<string, HostArray> = {}
  for (const [name, data] of Object.entries(tensors)) {
    const size = shapes[name]!.reduce((product, n) => product * n, 1)
    const stepped = ["x", "dt", "B", "C", "z"].includes(name)
    expect(
      stepped ? data.length >= (step + 1) * size : data.length === size,
      "BAD_SHAPE",
      () => `selective_state_update: ${name} has ${size} elements${stepped ? " per step" : ""}, got ${data.length}`,
    )
    inputs[name] = stepped ? data.slice(step * size, (step + 1) * size) : data
  }
  return inputs
}
