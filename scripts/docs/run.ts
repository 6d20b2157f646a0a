/**
 * Compiles and runs examples: all are type-checked in one program against lib/index.ts, those of a page run in one process and one
 * folder, in their order, so that a later one finds the files of an earlier.
 */
import { fork, spawnSync } from "node:child_process"
import { once } from "node:events"
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { fileURLToPath } from "node:url"
import { brotliDecompressSync } from "node:zlib"
import ts from "typescript"
import { complete } from "./complete.ts"
import { type Example, root, type Surface, surface } from "./extract.ts"

const library = resolve(root, "lib/index.ts")
const tsx = import.meta.resolve("tsx")
const runner = fileURLToPath(new URL("./run-modules.ts", import.meta.url))
const entry = fileURLToPath(new URL("./selscan.ts", import.meta.url))
/** Time for an example marked `long`: enough to trace, compile and take steps. */
const longSeconds = 5
/** Of all examples of a page together; nothing may hang. */
const timeoutMs = 240_000

const options: ts.CompilerOptions = {
  target: ts.ScriptTarget.ES2023,
  lib: ["lib.es2023.d.ts", "lib.esnext.disposable.d.ts"],
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  strict: true,
  noUncheckedIndexedAccess: true,
  exactOptionalPropertyTypes: true,
  skipLibCheck: true,
  allowImportingTsExtensions: true,
  erasableSyntaxOnly: true,
  noEmit: true,
  types: ["node"],
  typeRoots: [resolve(root, "node_modules/@types")],
}

/** The package as its users see it. */
export class Package {
  readonly #program = ts.createProgram([library], options)
  readonly surface: Surface = surface(this.#program)

  /** Errors of the compiler, as sentences with the place of the example. */
  check(modules: ReadonlyMap<string, Example>): string[] {
    const program = ts.createProgram([library, ...modules.keys()], options, undefined, this.#program)
    const found: string[] = []
    for (const [file, { where }] of modules) {
      const source = program.getSourceFile(file)!
      for (const { messageText } of [
        ...program.getSyntacticDiagnostics(source),
        ...program.getSemanticDiagnostics(source),
      ])
        found.push(`${where}: ${ts.flattenDiagnosticMessageText(messageText, " ")}`)
    }
    return found
  }
}

/** What must have run before examples whose files are made by the package itself. */
export const prelude: Example = {
  where: "scripts/docs/run.ts: session.bin",
  language: "ts",
  words: [],
  code: 'import { writeFile } from "node:fs/promises"\nawait session.append("Once")\nawait writeFile("session.bin", await session.save())\n',
}

/** A folder with the files that examples name; removed by dispose. */
export class Workplace {
  readonly folder = mkdtempSync(join(tmpdir(), "selscan-docs-"))

  constructor() {
    const prose = readFileSync(resolve(root, "LICENSE"), "utf8")
    for (const name of ["book.txt", "other.txt"]) writeFileSync(join(this.folder, name), prose.repeat(8))
    // The demo as a folder that a run or an export left, and its files by themselves.
    for (const name of [".", "models/demo", "models/my-model", "runs/shipped"]) {
      mkdirSync(join(this.folder, name), { recursive: true })
      for (const file of ["config.json", "model.safetensors"])
        copyFileSync(resolve(root, "models/demo", file), join(this.folder, name, file))
    }
    const saved = "test/golden/data/models/mamba-byte/bf16/pytorch_model.bin"
    copyFileSync(resolve(root, saved), join(this.folder, "pytorch_model.bin"))
    const tokenizer = readFileSync(resolve(root, "test/text/gpt-neox.json.br"))
    writeFileSync(join(this.folder, "tokenizer.json"), brotliDecompressSync(tokenizer))
    // Modules here are ESM, and find the packages that examples may import beside ours.
    writeFileSync(join(this.folder, "package.json"), '{ "type": "module" }')
  }

  /** Writes the module of an example; its path. */
  write(example: Example, index: number, face: Surface): string {
    const file = join(this.folder, `example-${index}.ts`)
    writeFileSync(file, complete(example, face, library))
    return file
  }

  /** Runs modules in their order; failures as sentences. */
  async run(modules: ReadonlyMap<string, Example>): Promise<string[]> {
    const failures: string[] = []
    const groups: { seconds: number; files: string[] }[] = []
    for (const [file, { words }] of modules) {
      const seconds = words.includes("long") ? longSeconds : 0
      if (groups.at(-1)?.seconds !== seconds || seconds > 0) groups.push({ seconds, files: [] })
      groups.at(-1)!.files.push(file)
    }
    for (const { seconds, files } of groups) failures.push(...(await this.#together(files, seconds, modules)))
    return failures
  }

  async #together(
    files: readonly string[],
    seconds: number,
    examples: ReadonlyMap<string, Example>,
  ): Promise<string[]> {
    const child = fork(runner, [String(seconds), ...files], {
      cwd: this.folder,
      execArgv: ["--import", tsx],
      stdio: ["ignore", "ignore", "pipe", "ipc"],
      timeout: timeoutMs,
    })
    let said = ""
    child.stderr!.on("data", (data: Buffer) => {
      said += data
    })
    const failures: string[] = []
    const open = new Set(files)
    let running: string | undefined
    child.on("message", (message: { file: string; state: string; error?: string }) => {
      running = message.file
      if (message.state === "begun") return
      open.delete(message.file)
      if (message.state === "failed") failures.push(`${examples.get(message.file)!.where}: ${message.error}`)
    })
    const [status] = await once(child, "close")
    for (const file of open)
      failures.push(
        `${examples.get(file)!.where}: not finished${file === running ? `, ended by ${status}: ${said}` : ""}`,
      )
    return failures
  }

  /** Runs a block of shell commands, `npx selscan` being this repository's; what went wrong, or undefined. */
  shell(example: Example): string | undefined {
    const script = `npx() { [ "$1" = selscan ] && shift; node --import "${tsx}" "${entry}" "$@"; }\nselscan() { npx selscan "$@"; }\n${example.code}`
    const { status, stdout, stderr } = spawnSync("bash", ["-euo", "pipefail", "-c", script], {
      cwd: this.folder,
      encoding: "utf8",
      timeout: timeoutMs,
    })
    return status === 0 ? undefined : `${example.where}: ended with ${status}: ${stdout}${stderr}`
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true })
  }
}
