/**
 * Ops from named-dimension signatures.
 *
 * One string per input and output, `"rows inner"`, is the single source of: the argument types (keys; a trailing `?` on the
 * key makes it optional), the check at trace time, the output shapes, the error text and the documentation. A leading word
 * may be a dtype: `"i32 rows"`, or `float` for f32 or bf16 (weights and activations), or `matrix` for those and i8; without one it is
 * f32. A number is a fixed size; `...` stands for any dimensions, the same wherever it appears in the signature; `""` is a scalar.
 *
 * An output marked `float` has the dtype that the op's attribute `dtype` names; where the op has no such attribute, or its
 * value is "same", that of the first input given, in the order of the signature, that is marked `float`.
 *
 * Dimension glossary (paper letter): rows (T = B·L, token rows), length (L), dim (D, model width), inner (E, 2D in Mamba),
 * state (N), rank (R), width (W, taps of the convolution), groups (G), vocab (V), segments, slots, chunks; in and out are
 * the sides of a linear.
 */
import { expect, SelscanError, suggestion } from "../errors.ts"
import { current, type Trace } from "./trace.ts"
import type { Attribute, Dtype, Value } from "./value.ts"

type Signature = Readonly<Record<string, string>>
type Attributes = Readonly<Record<string, Attribute>>
type Bare<K> = K extends `${infer Name}?` ? Name : K
type RequiredKeys<S> = { [K in keyof S]: K extends `${string}?` ? never : K }[keyof S]
type OptionalKeys<S> = { [K in keyof S]: K extends `${string}?` ? Bare<K> : never }[keyof S]

/** The values an op takes, by name: optional ones may be missing or undefined. */
export type Inputs<S> = { [K in RequiredKeys<S> & string]: Value } & {
  [K in OptionalKeys<S> & string]?: Value | undefined
}
/** The values an op gives. One that nobody uses is not computed. */
export type Outputs<S> = { [K in keyof S & string as Bare<K> & string]: Value }
/** Gradients of outputs: undefined where nothing downstream depends on that output. */
export type OutputGrads<S> = { [K in keyof S & string as Bare<K> & string]?: Value | undefined }

export type Dims = Readonly<Record<string, number>>
type Widened<A> = { [K in keyof A]: A[K] extends number ? number : A[K] extends boolean ? boolean : string }

export interface Definition<I extends Signature, O extends Signature, A extends Attributes> {
  readonly name: string
  readonly inputs: I
  readonly outputs: O
  /** Attributes with their defaults, in the order of the kernel's signature. */
  readonly attrs?: A
  /** Sizes of dimensions that outputs have and inputs do not, and checks beyond the signature (throw with `expect`). */
  readonly dims?: (dims: Dims, attrs: Widened<A>) => Dims
  /** Inputs written in place: states, and weights in the optimizer. Such a node is never dropped. */
  readonly updates?: readonly string[]
  /** Outputs that are there for the gradient of the others and have none of their own: one that flows into them is an error. */
  readonly auxiliary?: readonly (keyof O & string)[]
  /**
   * Gradients of the inputs given those of the outputs. `null` says not differentiable; a missing entry for an input that
   * needs a gradient is an error at trace time, `null` for an entry says that this input has none (ids, segments).
   */
  readonly grad:
    | null
    | ((
        inputs: Inputs<I>,
        outputs: Outputs<O>,
        attrs: Widened<A>,
        grads: OutputGrads<O>,
      ) => { [K in keyof Inputs<I>]?: Value | null | undefined })
}

export interface Op<I extends Signature, O extends Signature, A extends Attributes> {
  (inputs: Inputs<I>, attrs?: Partial<Widened<A>>): Outputs<O>
  readonly definition: Definition<I, O, A>
}
// biome-ignore lint/suspicious/noExplicitAny: the walk and the printer treat all ops alike
export type AnyOp = Definition<any, any, any>

interface Pattern {
  readonly key: string
  readonly optional: boolean
  readonly dtypes: readonly Dtype[]
  readonly dims: readonly string[]
}

const registry = new Map<string, AnyOp>()

/** All ops that have been defined, by name: the contract test holds the kernels against this. */
export function registeredOps(): ReadonlyMap<string, AnyOp> {
  return registry
}

/** Defines an op. Calling it inside a trace appends a node and returns its outputs. */
export function op<
  const I extends Signature,
  const O extends Signature,
  const A extends Attributes = Record<never, never>,
>(definition: Definition<I, O, A>): Op<I, O, A> {
  expect(!registry.has(definition.name), "NATIVE", () => `op ${definition.name}: defined twice`)
  registry.set(definition.name, definition)
  const inputs = patterns(definition.inputs)
  const outputs = patterns(definition.outputs)
  const call = (given: Inputs<I>, attrs: Partial<Widened<A>> = {}): Outputs<O> => {
    const trace = traceOf(definition.name, given)
    const bound = bindInputs(definition, inputs, given, trace)
    const fullAttrs = bindAttributes(definition, attrs as Attributes, trace)
    const extra = definition.dims?.(bound.dims, fullAttrs as Widened<A>) ?? {}
    const all = { ...bound.dims, ...extra }
    const float = floatDtype(trace.where(definition.name), fullAttrs.dtype) ?? bound.float ?? "f32"
    const results = outputs.map((pattern) => ({
      key: pattern.key,
      dtype: pattern.dtypes === floats ? float : pattern.dtypes[0]!,
      shape: shapeOf(definition.name, pattern, all, bound.ellipsis),
    }))
    return trace.append(definition, bound.values, results, fullAttrs) as Outputs<O>
  }
  return Object.assign(call, { definition })
}

const floats: readonly Dtype[] = ["f32", "bf16"]

/** What the attribute `dtype` says of outputs marked `float`; undefined where they follow an input. */
function floatDtype(where: string, named: Attribute | undefined): Dtype | undefined {
  if (named === undefined || named === "same") return undefined
  expect(
    floats.includes(named as Dtype),
    "BAD_OPTION",
    () => `${where}: dtype is same, f32 or bf16, got ${named}; same is that of the input`,
  )
  return named as Dtype
}

function patterns(signature: Signature): Pattern[] {
  return Object.entries(signature).map(([key, text]) => {
    const words = text.split(" ").filter((word) => word !== "")
    const dtypes: Record<string, readonly Dtype[]> = {
      i32: ["i32"],
      float: floats,
      bf16: ["bf16"],
      matrix: [...floats, "i8"],
    }
    const first = dtypes[words[0] ?? ""]
    return {
      key: key.replace("?", ""),
      optional: key.endsWith("?"),
      dtypes: first ?? ["f32"],
      dims: first ? words.slice(1) : words,
    }
  })
}

function traceOf(where: string, inputs: Readonly<Record<string, Value | undefined>>): Trace {
  const trace = current(where)
  for (const [key, value] of Object.entries(inputs)) {
    expect(
      value === undefined || value.trace === trace,
      "BAD_INPUT",
      () => `${trace.where(where)}: ${key} belongs to another trace; values cannot be shared between programs`,
    )
  }
  return trace
}

function bindInputs(
  definition: AnyOp,
  wanted: readonly Pattern[],
  given: Readonly<Record<string, Value | undefined>>,
  trace: Trace,
) {
  const where = trace.where(definition.name)
  const known = wanted.map((pattern) => pattern.key)
  for (const key of Object.keys(given)) {
    expect(known.includes(key), "BAD_INPUT", () => `${where}: unknown input ${key}, ${suggestion(key, known)}`, { key })
  }
  const dims: Record<string, number> = {}
  const from: Record<string, string> = {}
  const values: Record<string, Value> = {}
  let ellipsis: readonly number[] = []
  let float: Dtype | undefined
  for (const pattern of wanted) {
    const value = given[pattern.key]
    if (value === undefined) {
      expect(pattern.optional, "BAD_INPUT", () => `${where}: input ${pattern.key} is missing`, { key: pattern.key })
      continue
    }
    values[pattern.key] = value
    expect(
      pattern.dtypes.includes(value.dtype),
      "BAD_INPUT",
      () => `${where}: ${pattern.key} is ${pattern.dtypes.join(" or ")}, got ${value.dtype}`,
    )
    if (pattern.dtypes === floats) float ??= value.dtype
    const rest = bindDims(where, pattern, value, dims, from)
    if (rest === undefined) continue
    expect(
      from["..."] === undefined || `${rest}` === `${ellipsis}`,
      "BAD_SHAPE",
      () => `${where}: shapes differ, ${from["..."]} is [${ellipsis}] but ${pattern.key} is [${rest}]`,
    )
    ellipsis = rest
    from["..."] ??= pattern.key
  }
  return { dims, values, ellipsis, float }
}

/** Binds the named dimensions of one value; returns what `...` stands for, if the pattern has one. */
function bindDims(
  where: string,
  pattern: Pattern,
  value: Value,
  dims: Record<string, number>,
  from: Record<string, string>,
): readonly number[] | undefined {
  const gap = pattern.dims.indexOf("...")
  const fixed = gap < 0 ? pattern.dims : pattern.dims.filter((dim) => dim !== "...")
  const { shape } = value
  expect(
    gap < 0 ? shape.length === fixed.length : shape.length >= fixed.length,
    "BAD_SHAPE",
    () => `${where}: ${pattern.key} is (${pattern.dims.join(", ")}), got shape [${shape}]`,
    { expected: pattern.dims, got: shape },
  )
  const width = shape.length - fixed.length
  const sizes = gap < 0 ? shape : [...shape.slice(0, gap), ...shape.slice(gap + width)]
  fixed.forEach((dim, i) => {
    const size = sizes[i]!
    const expected = /^\d+$/.test(dim) ? Number(dim) : dims[dim]
    expect(
      expected === undefined || expected === size,
      "BAD_SHAPE",
      () =>
        from[dim] === undefined
          ? `${where}: ${pattern.key} is (${pattern.dims.join(", ")}), got shape [${shape}]`
          : `${where}: ${dim} is ${expected} in ${from[dim]} but ${size} in ${pattern.key} [${shape}]`,
      { dim, expected, got: size },
    )
    if (expected !== undefined) return
    dims[dim] = size
    from[dim] = pattern.key
  })
  return gap < 0 ? undefined : shape.slice(gap, gap + width)
}

function bindAttributes(definition: AnyOp, given: Attributes, trace: Trace): Record<string, Attribute> {
  const where = trace.where(definition.name)
  const defaults: Attributes = definition.attrs ?? {}
  for (const [key, value] of Object.entries(given)) {
    const known = Object.keys(defaults)
    expect(key in defaults, "BAD_OPTION", () => `${where}: unknown attribute ${key}, ${suggestion(key, known)}`)
    expect(
      value === undefined || typeof value === typeof defaults[key],
      "BAD_OPTION",
      () => `${where}: ${key} is a ${typeof defaults[key]}, got ${value}`,
    )
    expect(
      typeof value !== "number" || Number.isFinite(value),
      "BAD_OPTION",
      () => `${where}: ${key} is a finite number, got ${value}`,
    )
  }
  const defined = Object.entries(given).filter(([, value]) => value !== undefined)
  return { ...defaults, ...Object.fromEntries(defined) }
}

function shapeOf(where: string, pattern: Pattern, dims: Dims, ellipsis: readonly number[]): number[] {
  return pattern.dims.flatMap((dim) => {
    if (dim === "...") return ellipsis
    const size = /^\d+$/.test(dim) ? Number(dim) : dims[dim]
    if (size === undefined) throw new SelscanError("NATIVE", `${where}: size of ${dim} in ${pattern.key} is unknown`)
    return [size]
  })
}
