/**
 * Makes an example a module that compiles and runs by itself. Examples leave out what a reader has in mind anyway:
 *
 * - a loaded `model`, and a `session` of it
 * - in doc comments, imports of what the package exports and of `node:fs/promises`; a page's block has its own
 * - around ops the trace, and the values that an op takes: `linear({ x, weight })` has them in shapes of its signature
 *
 * Names are added, and nothing is taken away. A statement that ends in `// literal` must have that value.
 */
import * as files from "node:fs/promises"
import ts from "typescript"
import * as library from "../../lib/ops/index.ts"
import type { Example, Surface } from "./extract.ts"

/** Sizes of the dimensions in signatures. */
const sizes: Readonly<Record<string, number>> = {
  rows: 8,
  dim: 8,
  in: 8,
  out: 8,
  inner: 8,
  state: 4,
  bands: 4,
  width: 4,
  tail: 3,
  half: 4,
  vocab: 256,
  segments: 1,
  slots: 3,
  tails: 3,
  copies: 3,
  sequences: 1,
  samples: 1,
  picks: 2,
  patches: 2,
  left: 8,
  right: 8,
}

/** Those of ops whose examples have attributes that decide sizes. */
const sizesOf: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  gatedHeadNorm: { inner: 16, value: 8 },
  linearAttention: {
    ...{ keys: 768, values: 1536, gates: 768 },
    ...{ matrices: 4, height: 192, width: 384, lines: 15, columns: 3072 },
  },
  patchRows: { width: 32 },
  rope: { width: 192 },
  slidingAttention: { packed: 1280, kv: 4, capacity: 2560, size: 64 },
  split: { width: 16 },
}

/** What an example may use without declaring it, and what that needs. */
const context: Readonly<Record<string, string>> = {
  model: 'await using model = await load("demo")',
  session: "using session = model.session()",
}

/** A model that conversations need: the demo, whose bytes get a template. */
const modelOfChats = `await using model = await load("demo", { codec: { ...byteCodec, chat: new ChatTemplates(new Map([["default", "{% for m in messages %}{{ m.content }}\\n{% endfor %}"]])) } })`

/** The source of a module; `from "selscan"` becomes `from` the path of lib/index.ts. */
export function complete(example: Example, { values, types, ops }: Surface, path: string): string {
  const source = ts.createSourceFile("example.ts", example.code, ts.ScriptTarget.Latest, true)
  const isComment = example.where.startsWith("lib/")
  const read = freeNames(source)
  const free = isComment ? read : new Set([...read].filter((name) => name in context))
  if (free.has("session")) free.add("model")
  const talks = /\bChat\b|\.chat\(/.test(example.code)
  if (free.has("model")) for (const name of talks ? ["load", "byteCodec", "ChatTemplates"] : ["load"]) free.add(name)
  const isOp = example.where.startsWith("lib/ops/")
  const operands = isOp ? operandsOf(source, free) : []
  const taken = new Set(operands.map(({ name }) => name))
  const among = (names: ReadonlySet<string>) => [...free].filter((name) => names.has(name) && !taken.has(name))
  const opNames = isOp ? among(ops) : []
  if (isOp) for (const name of ["trace", "ops"]) free.add(name)
  const lines = [
    imports(
      among(values).filter((name) => !opNames.includes(name)),
      path,
    ),
    imports(
      among(types).map((name) => `type ${name}`),
      path,
    ),
    imports(
      [...free].filter((name) => name in files && !values.has(name)),
      "node:fs/promises",
    ),
    'import { deepStrictEqual as equal } from "node:assert"',
    "void equal",
    ...Object.keys(context)
      .filter((name) => free.has(name))
      .map((name) => (talks && name === "model" ? modelOfChats : context[name]!)),
  ]
  const body = compared(source).replaceAll(/(from|import\() ?"selscan"/g, (_, word) => `${word} "${path}"`)
  if (!isOp) return [...lines, body, "export {}", ""].join("\n")
  const declared = operands.map(({ line }) => line).join("\n")
  return [
    ...lines,
    `const { ${opNames.join(", ")} } = ops`,
    `trace("example", (t) => {\n${declared}\n${body}\nreturn {}\n})`,
    "",
  ].join("\n")
}

function imports(names: readonly string[], from: string): string {
  return names.length === 0 ? "" : `import { ${names.join(", ")} } from "${from}"`
}

/** Identifiers that a text reads and declares nowhere. */
function freeNames(source: ts.SourceFile): Set<string> {
  const [read, declared] = [new Set<string>(), new Set<string>()]
  const visit = (node: ts.Node): void => {
    if (ts.isIdentifier(node)) {
      const { parent } = node
      const isDeclared =
        (ts.isVariableDeclaration(parent) ||
          ts.isParameter(parent) ||
          ts.isBindingElement(parent) ||
          ts.isFunctionDeclaration(parent) ||
          ts.isClassDeclaration(parent) ||
          ts.isImportClause(parent) ||
          ts.isImportSpecifier(parent) ||
          ts.isNamespaceImport(parent)) &&
        parent.name === node
      const isLabel =
        (ts.isPropertyAccessExpression(parent) && parent.name === node) ||
        (ts.isPropertyAssignment(parent) && parent.name === node) ||
        (ts.isBindingElement(parent) && parent.propertyName === node) ||
        ((ts.isMethodDeclaration(parent) || ts.isPropertyDeclaration(parent)) && parent.name === node)
      if (isDeclared) declared.add(node.text)
      else if (!isLabel) read.add(node.text)
    }
    ts.forEachChild(node, visit)
  }
  visit(source)
  return new Set([...read].filter((name) => !declared.has(name) && !(name in globalThis)))
}

/** Declarations of the values that calls of ops name and that are not there: `linear({ x, weight: w1 })` takes x and w1. */
function operandsOf(source: ts.SourceFile, free: ReadonlySet<string>): { name: string; line: string }[] {
  const found = new Map<string, string>()
  const visit = (node: ts.Node): void => {
    ts.forEachChild(node, visit)
    if (!ts.isCallExpression(node) || !ts.isIdentifier(node.expression)) return
    const called = (library as Readonly<Record<string, unknown>>)[node.expression.text] as
      | { definition?: { name: string; inputs: Record<string, string>; updates?: readonly string[] } }
      | undefined
    const [given] = node.arguments
    if (called?.definition === undefined || given === undefined || !ts.isObjectLiteralExpression(given)) return
    for (const property of given.properties) {
      if (!ts.isShorthandPropertyAssignment(property) && !ts.isPropertyAssignment(property)) continue
      const value = ts.isShorthandPropertyAssignment(property) ? property.name : property.initializer
      if (!ts.isIdentifier(value) || !free.has(value.text) || found.has(value.text)) continue
      found.set(value.text, operand(value.text, property.name.getText(), called.definition))
    }
  }
  visit(source)
  return [...found].map(([name, line]) => ({ name, line }))
}

function operand(
  name: string,
  input: string,
  definition: { name: string; inputs: Record<string, string>; updates?: readonly string[] },
): string {
  const signature = definition.inputs[input] ?? definition.inputs[`${input}?`] ?? ""
  const words = signature.split(" ").filter((word) => word !== "")
  const dtype = words[0] === "i32" ? "i32" : "f32"
  const dims = words.filter((word) => !["i32", "float", "matrix", "bf16"].includes(word))
  const shape = dims.flatMap((dim) => (dim === "..." ? [8, 8] : [sizeOf(definition.name, dim)]))
  const isState = dims[0] !== "..."
  const stored = dims.includes("capacity") ? "ring" : isState ? "state" : "training"
  const kind = definition.updates?.includes(input) ? stored : "input"
  return `const ${name} = t.${kind}("${name}", "${dtype}", [${shape.join(", ")}])`
}

function sizeOf(op: string, dim: string): number {
  const size = sizesOf[op]?.[dim] ?? sizes[dim] ?? Number(dim)
  if (Number.isNaN(size)) throw new Error(`${op}: ${dim} has no size in scripts/docs/complete.ts; add one to \`sizes\``)
  return size
}

/** Statements that end in `// literal` become comparisons with it. */
function compared(source: ts.SourceFile): string {
  let text = source.text
  for (const statement of [...source.statements].reverse()) {
    if (!ts.isExpressionStatement(statement)) continue
    const [, comment] = /^ *\/\/ (.*)/.exec(source.text.slice(statement.end)) ?? []
    const literal = comment === undefined ? undefined : literalOf(comment)
    if (literal === undefined) continue
    const code = `equal(${statement.expression.getText()}, ${JSON.stringify(literal)})`
    text = text.slice(0, statement.getStart()) + code + text.slice(statement.end)
  }
  return text
}

function literalOf(comment: string): unknown {
  try {
    return JSON.parse(comment.replaceAll(/(?<=\d)_(?=\d)/g, ""))
  } catch {
    return undefined // words of a person
  }
}
