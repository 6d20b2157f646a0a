/**
 * Runs a folder of golden cases: every case of its index.json, and every model folder below `models/`.
 */
import { existsSync } from "node:fs"
import { readdir, readFile } from "node:fs/promises"
import { dirname, join } from "node:path"
import { expect, SelscanError } from "../../lib/errors.ts"
import { type GoldenCase, readCase } from "./case.ts"
import { type Comparison, describe } from "./compare.ts"
import { families } from "./families/index.ts"

/** One case to run: a file, or a torch.save file of a model folder. */
export interface Entry {
  /** Path inside the folder, the case's name. */
  readonly file: string
  readonly path: string
  /** The op; for models, the kind of model and what is done with it: `mamba train_steps`. */
  readonly family: string
  /** Why the kind of a model could not be found out: the case fails. */
  readonly fault?: string
}

export interface Outcome {
  readonly entry: Entry
  readonly status: "passed" | "failed" | "skipped"
  /** Tensors compared. */
  readonly compared: number
  /** One line for each thing that is wrong. */
  readonly failures: readonly string[]
}

const byOp = new Map(families.flatMap((family) => family.ops.map((op) => [op, family] as const)))

/** All cases of a folder, in the order of its index; model folders that the index leaves out follow. */
export async function listCases(folder: string): Promise<Entry[]> {
  const cases = await readIndex(folder)
  const models = join(folder, "models")
  for (const model of existsSync(models) ? (await readdir(models)).sort() : []) {
    for (const [name, op] of [
      ["expected", "language_model"],
      ["train", "train_steps"],
    ] as const) {
      const file = `models/${model}/${name}.safetensors`
      if (existsSync(join(folder, file)) && !cases.some((known) => known.file === file)) cases.push({ file, op })
    }
  }
  const entries = cases.map(async ({ file, op }) => {
    const path = join(folder, file)
    if (op !== "language_model" && op !== "train_steps") return { file, path, family: op }
    try {
      return { file, path, family: `${await modelKind(dirname(path))} ${op}` }
    } catch (error) {
      return { file, path, family: op, fault: (error as Error).message }
    }
  })
  return [...(await Promise.all(entries)), ...(await torchSaveFiles(folder))]
}

/** Runs one case. A wrong result, an error, a tensor not compared and an input not read each make it fail. */
export async function runCase(entry: Entry): Promise<Outcome> {
  const family = byOp.get(entry.family)
  const fault =
    entry.fault ?? (existsSync(entry.path) ? undefined : `${entry.path}: a golden file is expected, got none`)
  if (fault !== undefined) return { entry, status: "failed", compared: 0, failures: [fault] }
  if (family === undefined) return { entry, status: "skipped", compared: 0, failures: [] }
  let comparisons: readonly Comparison[] = []
  const failures: string[] = []
  try {
    const golden = "run" in family ? await readCase(entry.path) : undefined
    comparisons = "run" in family ? await family.run(golden!) : await family.runFile(entry.path)
    failures.push(...comparisons.filter(({ passed }) => !passed).map(describe))
    if (golden !== undefined) failures.push(...leftOver(golden, comparisons))
  } catch (error) {
    failures.push(error instanceof SelscanError ? error.message : `${(error as Error).stack ?? error}`)
  }
  return { entry, status: failures.length === 0 ? "passed" : "failed", compared: comparisons.length, failures }
}

function leftOver(golden: GoldenCase, comparisons: readonly Comparison[]): string[] {
  const compared = comparisons.map(({ name }) => name)
  const expected = [
    ...golden.names("out.").map((name) => `out.${name}`),
    ...golden.names("grad.").map((name) => `grad.${name}`),
  ]
  const missed = expected.filter((name) => !compared.includes(name)).map((name) => `${name}: not compared`)
  const unread = golden.unread().map((name) => `${name}: not used`)
  const none = expected.length === 0 ? ["expects nothing: no out.* and no grad.*"] : []
  return [...missed, ...unread, ...none]
}

async function readIndex(folder: string): Promise<{ file: string; op: string }[]> {
  const path = join(folder, "index.json")
  let parsed: unknown
  try {
    parsed = JSON.parse(await readFile(path, "utf8"))
  } catch (cause) {
    const message = `golden: ${path} is the list of cases, got ${(cause as Error).message}; give a folder of golden cases`
    throw new SelscanError("BAD_FILE", message, { path }, { cause })
  }
  const wellFormed = (entry: { file?: unknown; op?: unknown } | null) =>
    typeof entry?.file === "string" && typeof entry.op === "string"
  expect(
    Array.isArray(parsed) && parsed.every(wellFormed),
    "BAD_FILE",
    () => `golden: ${path} is a list of objects with file and op, got something else`,
  )
  return (parsed as { file: string; op: string }[]).map(({ file, op }) => ({ file, op }))
}

/** Files that torch.save wrote beside a model's weights. */
async function torchSaveFiles(folder: string): Promise<Entry[]> {
  const models = join(folder, "models")
  if (!existsSync(models)) return []
  const files = (await readdir(models, { recursive: true })).filter((file) => /\.(bin|pth|pt)$/.test(file)).sort()
  return files.map((file) => ({ file: `models/${file}`, path: join(models, file), family: "torch_save" }))
}

/** What kind of model a folder holds, by its configuration: `model_type`, or mamba for the original form. */
async function modelKind(folder: string): Promise<string> {
  const folders = [folder, ...["f32", "bf16", "f16"].map((dtype) => join(folder, dtype))]
  for (const at of folders) {
    if (existsSync(join(at, "lit_config.json"))) return "samba"
    if (existsSync(join(at, "megabyte.json"))) return "megabyte"
    if (!existsSync(join(at, "config.json"))) continue
    const config: unknown = JSON.parse(await readFile(join(at, "config.json"), "utf8"))
    const { model_type: type, d_model: dim } = (config ?? {}) as { model_type?: unknown; d_model?: unknown }
    if (typeof type === "string") return type
    if (dim !== undefined) return "mamba"
  }
  throw new SelscanError("NOT_FOUND", `${folder}: the configuration of a model is expected, got none that is known`)
}
