/**
 * Programs may come from a file, and a file may say what no trace does. Each op in turn is given a node whose shapes or whose written
 * inputs are not those of its signature: all of it is refused when it is compiled, before any kernel sees it.
 */
import test, { type ExecutionContext } from "ava"
import type { AnyOp } from "../lib/graph/op.ts"
import { type Program, trace } from "../lib/graph/program.ts"
import type { Value } from "../lib/graph/value.ts"
import { Store } from "../lib/native.ts"
import { device } from "./device.ts"
import { allSpecs } from "./ops/all-specs.ts"
import { declare } from "./ops/harness.ts"
import type { OpCase, OpSpec } from "./ops/spec.ts"

/** By op, with the cases of all its specs. */
const specs = new Map<string, OpSpec>()
for (const spec of await allSpecs()) {
  const { name } = spec.op.definition
  specs.set(name, { ...spec, cases: [...(specs.get(name)?.cases ?? []), ...spec.cases] })
}

const elements = ({ inputs }: OpCase) =>
  Object.values(inputs).reduce((total, tensor) => total + (tensor?.data.length ?? 0), 0)

const isOpen = (pattern = "") => pattern.endsWith("...")

/** The smallest case that has the input (any has every output), and in which "..." stands for more than a scalar. */
function smallest({ cases, op }: OpSpec, input?: string): OpCase | undefined {
  return cases
    .filter(({ inputs }) => input === undefined || inputs[input] !== undefined)
    .filter(({ inputs }) =>
      Object.entries(inputs).every(([key, tensor]) => !isOpen(op.definition.inputs[key]) || tensor?.shape.length !== 0),
    )
    .sort((a, b) => elements(a) - elements(b))[0]
}

/** A program of one op and all its outputs, with one of its values changed behind the trace's back. */
function changed(spec: OpSpec, one: OpCase, change: (values: Readonly<Record<string, Value>>) => void): Program {
  return trace(spec.op.definition.name, (tr) => {
    const inputs = declare(tr, spec, one)
    const outputs = spec.op(inputs, one.attrs) as Record<string, Value>
    change({ ...inputs, ...outputs })
    return outputs
  })
}

async function refused(t: ExecutionContext, program: Program, code: string, what: string): Promise<void> {
  await using store = new Store(device)
  const error = await t.throwsAsync(() => store.compile(program), undefined, `${what} is refused`)
  t.is((error as { code?: string } | undefined)?.code, code, `${what}: ${error?.message}`)
}

/** Whether a scalar is what the signature says, or fits it: "..." where it stands once is any shape. */
function mayBeScalar({ inputs, outputs }: AnyOp, key: string): boolean {
  const patterns = { ...inputs, ...outputs } as Record<string, string>
  const pattern = patterns[key] ?? patterns[`${key}?`]!
  return pattern === "" || (isOpen(pattern) && Object.values(patterns).filter(isOpen).length === 1)
}

for (const [name, spec] of specs) {
  const { definition } = spec.op
  const keys = [...Object.keys(definition.inputs), ...Object.keys(definition.outputs)].map((key) =>
    key.replace("?", ""),
  )
  const never = keys.filter((key) => !mayBeScalar(definition, key))

  if (never.length > 0) {
    test(`${name} refuses a scalar in the place of any of its tensors`, async (t) => {
      for (const key of never) {
        const one = smallest(spec, key in definition.outputs ? undefined : key)
        if (one === undefined && key === "scales" && device !== "cpu") continue // weights of 8 bits are the cpu's alone
        if (one === undefined) return t.fail(`a case with ${key} is expected among those of ${name}`)
        const program = changed(spec, one, (values) => Object.defineProperty(values[key]!, "shape", { value: [] }))
        await refused(t, program, "BAD_SHAPE", `${key} as a scalar`)
      }
    })
  }

  const { updates } = definition
  if (updates === undefined) continue
  test(`${name} refuses a node that hides what it writes`, async (t) => {
    const one = smallest(spec, updates[0])!
    const program = changed(spec, one, () => {})
    for (const node of program.nodes) Object.assign(node, { op: { ...node.op, updates: [] } })
    await refused(t, program, "BAD_FILE", "a node without updates")
  })
}
