/** A file's tensors against the table of its family: what is missing, unexpected, of another shape, or unlike what it repeats. */
import { expect, oneLine, SelscanError } from "../errors.ts"
import type { Family, FileTensor } from "./family.ts"
import { shown, type TensorSource } from "./source.ts"

export interface NameReport {
  /** Tensors of the table that the file has, copies apart. */
  readonly tensors: readonly FileTensor[]
  /** Names looked for and not found. */
  readonly missing: readonly string[]
  /** Names found and not known. */
  readonly unexpected: readonly string[]
  /** A tied model's file may hold the head too: tensors whose data must be those of another. */
  readonly copies: readonly FileTensor[]
}

/** Which tensors of the table a file with these names has. Names that match `ignored` are buffers that nobody reads. */
export function match(names: Iterable<string>, table: readonly FileTensor[], ignored?: RegExp): NameReport {
  const rest = new Set(names)
  const found = table.filter(({ fileName }) => rest.delete(fileName))
  const present = new Set(found)
  return {
    tensors: found.filter(({ copyOf }) => copyOf === undefined),
    missing: table.filter((row) => !present.has(row) && row.copyOf === undefined).map(({ fileName }) => fileName),
    unexpected: [...rest].filter((name) => !ignored?.test(name)),
    copies: found.filter(({ copyOf }) => copyOf !== undefined),
  }
}

/** @throws SelscanError BAD_CHECKPOINT with the first names of each kind when any is missing or unexpected */
export function checkNames({ missing, unexpected }: NameReport, where: string): void {
  const faults = [
    missing.length > 0 && `${list(missing)} missing`,
    unexpected.length > 0 && `${list(unexpected)} unexpected`,
  ]
  expect(
    missing.length + unexpected.length === 0,
    "BAD_CHECKPOINT",
    () => {
      return `${where}: expected the tensors of its config, got ${faults.filter(Boolean).join(" and ")}; pair it with its own config file`
    },
    { missing, unexpected },
  )
}

/** @throws SelscanError BAD_CHECKPOINT naming the first tensor of a shape other than the config's; absent tensors are `checkNames`' */
export function checkShapes(
  tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>,
  table: readonly FileTensor[],
  where: string,
): void {
  for (const { fileName, shape } of table) {
    const got = tensors.get(fileName)?.shape
    if (!got || (got.length === shape.length && got.every((dim, i) => dim === shape[i]))) continue
    const message = `${where}: expected ${fileName} to be [${shape}], got [${got}]; pair it with its own config file`
    throw new SelscanError("BAD_CHECKPOINT", message, { tensor: fileName, expected: shape, got })
  }
}

/** Bytes compared at a time. */
const pieceBytes = 1 << 20

/** @throws SelscanError BAD_CHECKPOINT when a tied model's file holds a head that differs from its embedding */
export async function checkCopies(source: TensorSource, { copies }: NameReport): Promise<void> {
  for (const { fileName: name, copyOf } of copies) {
    const of = copyOf!
    if (source.tensors.has(of) && source.same?.(name, of)) continue
    const { sizeBytes, dtype } = source.tensors.get(name)!
    const original = source.tensors.get(of)
    let equal = original?.sizeBytes === sizeBytes && original.dtype === dtype
    for (let at = 0; equal && at < sizeBytes; at += pieceBytes) {
      const [copy, other] = [0, 1].map(() => new Uint8Array(Math.min(pieceBytes, sizeBytes - at)))
      await source.readInto(name, copy!, at)
      await source.readInto(of, other!, at)
      equal = Buffer.compare(copy!, other!) === 0
    }
    expect(equal, "BAD_CHECKPOINT", () => {
      const remedy = "say in the config that the head is not tied"
      return `${source.path}: expected ${name} to equal ${of}, got other data; ${remedy}`
    })
  }
}

/**
 * Holds a file to the table of its family and its config, and returns the tensors to read.
 * @throws SelscanError BAD_CHECKPOINT as `checkNames`, `checkShapes`, `checkCopies`
 */
export async function checkTensors(
  source: TensorSource,
  table: readonly FileTensor[],
  { ignored }: Pick<Family, "ignored">,
): Promise<readonly FileTensor[]> {
  const report = match(source.tensors.keys(), table, ignored)
  checkNames(report, source.path)
  checkShapes(source.tensors, table, source.path)
  await checkCopies(source, report)
  return report.tensors
}

const listed = 8

function list(names: readonly string[]): string {
  // A stranger's file may name them as it likes.
  const head = names.slice(0, listed).map((name) => (/^[\w.]{1,100}$/.test(name) ? name : oneLine(shown(name))))
  return names.length > listed ? `${head.join(", ")} and ${names.length - listed} more` : head.join(", ")
}
