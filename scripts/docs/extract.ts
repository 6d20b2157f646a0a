/**
 * What the documentation shows as code: examples in the doc comments of everything the package exports, and fenced blocks of Markdown.
 *
 * A fence may carry a word: `no-run` is checked but not run (it needs a network, or a GPU), `long` is started and left after a few
 * seconds; `sh run` runs its commands, which are otherwise only held against `--help`.
 */
import { readFileSync } from "node:fs"
import { relative, resolve } from "node:path"
import ts from "typescript"

export const root = resolve(import.meta.dirname, "../..")

export interface Example {
  /** File and line, as errors name it. */
  readonly where: string
  readonly language: "ts" | "sh"
  readonly words: readonly string[]
  readonly code: string
}

/** Fenced `ts` and `sh` blocks of a Markdown text. Other fences are not code of ours. */
export function fences(text: string, where: string, line = 1): Example[] {
  const found: Example[] = []
  for (const match of text.matchAll(/^```(ts|sh)\b([^\n]*)\n(.*?)^```$/gms)) {
    const at = line + text.slice(0, match.index).split("\n").length
    const words = match[2]!.split(" ").filter((word) => word !== "")
    found.push({ where: `${where}:${at}`, language: match[1] as "ts" | "sh", words, code: match[3]! })
  }
  return found
}

/** The examples of a page, in their order. */
export function pageExamples(file: string): Example[] {
  return fences(readFileSync(resolve(root, file), "utf8"), file)
}

/** Commands that stand in tables and sentences: `selscan train --file book.txt`. */
export function inlineCommands(file: string): Example[] {
  const lines = readFileSync(resolve(root, file), "utf8").split("\n")
  return lines.flatMap((text, index) =>
    [...text.matchAll(/`((?:npx )?selscan [a-z][^`]*)`/g)].map(([, code]) => ({
      where: `${file}:${index + 1}`,
      language: "sh" as const,
      words: [],
      code: code!,
    })),
  )
}

/** Names that `import … from "selscan"` gives, of values and of types, and those of its ops. */
export interface Surface {
  readonly values: ReadonlySet<string>
  readonly types: ReadonlySet<string>
  readonly ops: ReadonlySet<string>
  readonly examples: readonly Example[]
}

/** Reads the package's public face: its names, and the examples of its doc comments. */
export function surface(program: ts.Program): Surface {
  const checker = program.getTypeChecker()
  const index = program.getSourceFile(resolve(root, "lib/index.ts"))!
  const real = (symbol: ts.Symbol) => (symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol)
  const exportsOf = (symbol: ts.Symbol) => checker.getExportsOfModule(symbol)
  const [values, types] = [new Set<string>(), new Set<string>()]
  const public_ = exportsOf(checker.getSymbolAtLocation(index)!)
  for (const symbol of public_) {
    const isValue = (real(symbol).flags & ts.SymbolFlags.Value) !== 0
    ;(isValue ? values : types).add(symbol.name)
  }
  const opSymbols = exportsOf(real(public_.find(({ name }) => name === "ops")!))
  const nodes = new Set<ts.Node>([index.statements[0]!])
  for (const symbol of [...public_, ...opSymbols].map(real)) {
    for (const declaration of symbol.declarations ?? []) {
      if (ts.isSourceFile(declaration)) continue
      nodes.add(declaration)
      if (ts.isClassDeclaration(declaration) || ts.isInterfaceDeclaration(declaration))
        for (const member of declaration.members) nodes.add(member)
    }
  }
  const examples = [...nodes].flatMap(commentExamples)
  return { values, types, ops: new Set(opSymbols.map(({ name }) => name)), examples }
}

function commentExamples(node: ts.Node): Example[] {
  const source = node.getSourceFile()
  return ts
    .getJSDocTags(node)
    .filter(({ tagName }) => tagName.text === "example")
    .flatMap((tag) => {
      const text = `${ts.getTextOfJSDocComment(tag.comment) ?? ""}\n`
      const line = source.getLineAndCharacterOfPosition(tag.getStart()).line + 1
      const where = relative(root, source.fileName)
      if (text.includes("```")) return fences(text, where, line)
      return [{ where: `${where}:${line}`, language: "ts" as const, words: [], code: text }]
    })
}
