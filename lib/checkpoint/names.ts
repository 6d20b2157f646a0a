/**
 * One table of tensors per model family. Loader, exporter and the report of what is missing or unexpected all derive from it.
 *
 * A row has our name, which is the original naming's and the path in the model (`{i}` stands for the layer), its names
 * in other namings where they differ, its shape, and when it exists.
 */
import { expect, SelscanError } from "../errors.ts"
import type { MambaConfig } from "./config.ts"
import type { SafetensorsFile } from "./safetensors.ts"

export type Naming = "original" | "transformers"

interface Row<Config> {
  readonly name: string
  readonly renamed?: Partial<Record<Naming, string>>
  readonly shape: (config: Config) => readonly number[]
  /** Absent: always there. */
  readonly exists?: (config: Config) => boolean
  /** May be missing, and repeats that row when present. */
  readonly copyOf?: (config: Config) => string | undefined
}

const mamba: readonly Row<MambaConfig>[] = [
  {
    name: "backbone.embedding.weight",
    renamed: { transformers: "backbone.embeddings.weight" },
    shape: ({ vocab, dim }) => [vocab, dim],
  },
  { name: "backbone.layers.{i}.norm.weight", shape: ({ dim }) => [dim] },
  // Rows: x, then the gate z.
  { name: "backbone.layers.{i}.mixer.in_proj.weight", shape: ({ inner, dim }) => [2 * inner, dim] },
  {
    name: "backbone.layers.{i}.mixer.in_proj.bias",
    shape: ({ inner }) => [2 * inner],
    exists: ({ projBias }) => projBias,
  },
  { name: "backbone.layers.{i}.mixer.conv1d.weight", shape: ({ inner, conv }) => [inner, 1, conv] },
  { name: "backbone.layers.{i}.mixer.conv1d.bias", shape: ({ inner }) => [inner], exists: ({ convBias }) => convBias },
  // Rows: delta's low-rank input, B, C.
  { name: "backbone.layers.{i}.mixer.x_proj.weight", shape: ({ rank, state, inner }) => [rank + 2 * state, inner] },
  { name: "backbone.layers.{i}.mixer.dt_proj.weight", shape: ({ inner, rank }) => [inner, rank] },
  { name: "backbone.layers.{i}.mixer.dt_proj.bias", shape: ({ inner }) => [inner] },
  { name: "backbone.layers.{i}.mixer.A_log", shape: ({ inner, state }) => [inner, state] },
  { name: "backbone.layers.{i}.mixer.D", shape: ({ inner }) => [inner] },
  { name: "backbone.layers.{i}.mixer.out_proj.weight", shape: ({ dim, inner }) => [dim, inner] },
  { name: "backbone.layers.{i}.mixer.out_proj.bias", shape: ({ dim }) => [dim], exists: ({ projBias }) => projBias },
  { name: "backbone.norm_f.weight", shape: ({ dim }) => [dim] },
  {
    name: "lm_head.weight",
    shape: ({ vocab, dim }) => [vocab, dim],
    copyOf: ({ tied }) => (tied ? "backbone.embedding.weight" : undefined),
  },
]

/** A tensor that a config asks for. */
export interface ExpectedTensor {
  /** Ours. */
  readonly name: string
  /** Its name in the file. */
  readonly fileName: string
  readonly shape: readonly number[]
  /** Our name of the tensor that this one repeats when a file has it at all: the head of a tied model. */
  readonly copyOf?: string
}

export interface NameReport {
  /** From the file's names to ours for `toOurs`, the other way for `fromOurs`. */
  readonly mapping: Map<string, string>
  /** Names looked for and not found. */
  readonly missing: string[]
  /** Names found and not known. */
  readonly unexpected: string[]
  /** A tied model's file may hold the head too: the two names, in the file's naming, whose data must be equal. */
  readonly copies: { readonly name: string; readonly of: string }[]
}

/** Every tensor of a Mamba model, layer by layer, in the order of the table. */
export function expectedTensors(naming: Naming, config: MambaConfig): ExpectedTensor[] {
  const isLayer = (row: Row<MambaConfig>) => row.name.includes("{i}")
  const first = mamba.findIndex(isLayer)
  const last = mamba.findLastIndex(isLayer)
  const tensors: ExpectedTensor[] = []
  const add = (row: Row<MambaConfig>, layer: number) => {
    if (row.exists?.(config) === false) return
    const at = (name: string) => name.replace("{i}", String(layer))
    const copyOf = row.copyOf?.(config)
    const fileName = at(row.renamed?.[naming] ?? row.name)
    tensors.push({ name: at(row.name), fileName, shape: row.shape(config), ...(copyOf ? { copyOf } : {}) })
  }
  for (const row of mamba.slice(0, first)) add(row, 0)
  for (let layer = 0; layer < config.layers; layer++) for (const row of mamba.slice(first, last + 1)) add(row, layer)
  for (const row of mamba.slice(last + 1)) add(row, 0)
  return tensors
}

/**
 * Which naming a file follows, by the tensors whose names differ.
 * @throws SelscanError BAD_CHECKPOINT when none of them is there, or those of two namings are
 */
export function detectNaming(names: Iterable<string>, where = "checkpoint"): Naming {
  const present = new Set(names)
  const namings: Naming[] = ["original", "transformers"]
  const marks = mamba.filter(({ renamed }) => renamed)
  const nameIn = (row: Row<MambaConfig>, naming: Naming) => row.renamed?.[naming] ?? row.name
  const found = namings.filter((naming) => marks.some((row) => present.has(nameIn(row, naming))))
  const wanted = namings.flatMap((naming) => marks.map((row) => nameIn(row, naming)))
  expect(found.length === 1, "BAD_CHECKPOINT", () => {
    const got = found.length > 1 ? "both" : list([...present])
    return `${where}: expected one tensor of ${wanted.join(" and ")}, got ${got}; load a Mamba checkpoint`
  })
  return found[0]!
}

/** Maps a file's names to ours. */
export function toOurs(names: Iterable<string>, naming: Naming, config: MambaConfig): NameReport {
  return match(names, naming, config, (tensor) => [tensor.fileName, tensor.name])
}

/** Maps our names to those of a file to write. */
export function fromOurs(names: Iterable<string>, naming: Naming, config: MambaConfig): NameReport {
  return match(names, naming, config, (tensor) => [tensor.name, tensor.fileName])
}

function match(
  names: Iterable<string>,
  naming: Naming,
  config: MambaConfig,
  direction: (tensor: ExpectedTensor) => [from: string, to: string],
): NameReport {
  const rest = new Set(names)
  const expected = expectedTensors(naming, config)
  const report: NameReport = { mapping: new Map(), missing: [], unexpected: [], copies: [] }
  for (const tensor of expected) {
    const [from, to] = direction(tensor)
    const present = rest.delete(from)
    if (tensor.copyOf !== undefined) {
      const original = expected.find(({ name }) => name === tensor.copyOf)!
      if (present) report.copies.push({ name: from, of: direction(original)[0] })
    } else if (present) report.mapping.set(from, to)
    else report.missing.push(from)
  }
  report.unexpected.push(...rest)
  return report
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
      return `${where}: expected the tensors of its config, got ${faults.filter(Boolean).join(" and ")}; pair it with its own config.json`
    },
    { missing, unexpected },
  )
}

/** @throws SelscanError BAD_CHECKPOINT naming the first tensor of a shape other than the config's; absent tensors are `checkNames`' */
export function checkShapes(
  tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>,
  naming: Naming,
  config: MambaConfig,
  where: string,
): void {
  for (const { fileName, shape } of expectedTensors(naming, config)) {
    const got = tensors.get(fileName)?.shape
    if (!got || (got.length === shape.length && got.every((dim, i) => dim === shape[i]))) continue
    const message = `${where}: expected ${fileName} to be [${shape}], got [${got}]; pair it with its own config.json`
    throw new SelscanError("BAD_CHECKPOINT", message, { tensor: fileName, expected: shape, got })
  }
}

/** Bytes compared at a time. */
const pieceBytes = 1 << 20

/** @throws SelscanError BAD_CHECKPOINT when a tied model's file holds a head that differs from its embedding */
export async function checkCopies(file: SafetensorsFile, { copies }: NameReport): Promise<void> {
  for (const { name, of } of copies) {
    const sizeBytes = file.tensors.get(name)!.sizeBytes
    let equal = file.tensors.get(of)?.sizeBytes === sizeBytes
    for (let at = 0; equal && at < sizeBytes; at += pieceBytes) {
      const [copy, original] = [0, 1].map(() => new Uint8Array(Math.min(pieceBytes, sizeBytes - at)))
      await file.readInto(name, copy!, at)
      await file.readInto(of, original!, at)
      equal = Buffer.compare(copy!, original!) === 0
    }
    expect(equal, "BAD_CHECKPOINT", () => {
      const remedy = "say in config.json that the head is not tied"
      return `${file.path}: expected ${name} to equal ${of}, got other data; ${remedy}`
    })
  }
}

const listed = 8

function list(names: readonly string[]): string {
  if (names.length === 0) return "none"
  const head = names.slice(0, listed).map((name) => (name.length > 100 ? `${name.slice(0, 100)}…` : name))
  return names.length > listed ? `${head.join(", ")} and ${names.length - listed} more` : head.join(", ")
}
