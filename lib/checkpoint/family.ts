/**
 * What a family of checkpoints is: how its config file reads and writes, and which rows of which of our parameters each of its
 * tensors holds. Loader, exporter, shape checks and the report of what is missing or unexpected all derive from it.
 */
import { expect } from "../errors.ts"
import type { ModelConfig } from "../models/config.ts"
import type { MegaByte, MegaByteConfig } from "../models/megabyte.ts"
import { PatternModel } from "../models/pattern-model.ts"
import type { Fields } from "./config-fields.ts"
import { checkModel, difference, withContext } from "./patterns.ts"

/**
 * How a folder is written: `original` as state-spaces/mamba or lucidrains/MEGABYTE-pytorch, `transformers` as that library (Mamba, Llama, Mistral), `samba` as
 * microsoft/Samba (lit_gpt), `selscan` with our own names, for any model.
 */
export type Naming = "original" | "transformers" | "samba" | "selscan"
export const namings: readonly Naming[] = ["original", "transformers", "samba", "selscan"]

/** Rows of one of our parameters, where they lie in it and in the file's tensor. A row is one index of the first dimension. */
export interface Part {
  /** Our parameter. */
  readonly name: string
  /** Its first row. */
  readonly row: number
  /** The first row in the file's tensor. */
  readonly fileRow: number
  readonly rows: number
}

/** A tensor of a file. */
export interface FileTensor {
  readonly fileName: string
  readonly shape: readonly number[]
  /** By fileRow, without gaps. */
  readonly parts: readonly Part[]
  /** The file's tensor that this one repeats when it is there at all: the head of a tied model. It has no parts. */
  readonly copyOf?: string
}

/** Configurations and networks of all families. A model that is no pattern of blocks adds its own to both. */
export type AnyConfig = ModelConfig | MegaByteConfig
export type AnyNetwork = PatternModel | MegaByte

/** One family in one naming. */
export interface Family<Config extends AnyConfig = AnyConfig> {
  /** In messages: `Llama`. */
  readonly name: string
  readonly naming: Naming
  readonly configFile: "config.json" | "lit_config.json" | "megabyte.json"
  /** File name of the tensor that only files of this naming have. */
  readonly mark: string
  /** Names of buffers in files that hold no weights. */
  readonly ignored?: RegExp
  /** Whether a config file is this family's. */
  recognises(fields: Fields): boolean
  /** Throws BAD_CHECKPOINT for a model that we do not compute. */
  read(fields: Fields): Config
  /** Whether such models belong to the family; `write` may still lack words for their sizes. */
  suits(config: AnyConfig): boolean
  /** Fields that come nearest to the config: what was written is read again and compared. */
  write(config: Config): Record<string, unknown>
  /** What a model says that another does not, such as `window 16 of block 2`; undefined where both compute the same. */
  difference(wanted: Config, got: Config): string | undefined
  /** The same model with other positions for attention that has no window. */
  withContext(config: Config, positions: number): Config
  network(config: Config): AnyNetwork
  /** Fills the table. */
  tensors(table: Table, config: Config): void
}

/** What the families of patterns of blocks have in common. */
export type PatternForm = Omit<Family<ModelConfig>, "suits" | "difference" | "withContext" | "network"> & {
  suits(config: ModelConfig): boolean
}

export function patternFamily(form: PatternForm): Family<ModelConfig> {
  return {
    ...form,
    suits: (config) => "pattern" in config && form.suits(config),
    read: (fields) => {
      const config = form.read(fields)
      checkModel(fields, config)
      return config
    },
    difference,
    withContext,
    network: (config) => new PatternModel(config),
  }
}

/** The tensors of a family's files, collected row by row. Shapes come from our parameters, which the layers state. */
export class Table {
  readonly tensors: FileTensor[] = []
  readonly #shapes: ReadonlyMap<string, readonly number[]>

  constructor(parameters: ReadonlyMap<string, { readonly shape: readonly number[] }>) {
    this.#shapes = new Map([...parameters].map(([name, { shape }]) => [name, shape]))
  }

  has(name: string): boolean {
    return this.#shapes.has(name)
  }

  get names(): Iterable<string> {
    return this.#shapes.keys()
  }

  /** A tensor that is one of our parameters. */
  same(fileName: string, name: string): void {
    this.rows(fileName, [[name, 0, this.#shape(name)[0] ?? 1]])
  }

  /** A tensor of one dimension with the elements of one of ours. */
  flat(fileName: string, name: string): void {
    const elements = this.#shape(name).reduce((product, size) => product * size, 1)
    this.tensors.push({ fileName, shape: [elements], parts: [{ name, row: 0, fileRow: 0, rows: elements }] })
  }

  /** A tensor made of rows of ours, in order: name, first row, rows. */
  rows(fileName: string, runs: readonly (readonly [name: string, row: number, rows: number])[]): void {
    let total = 0
    const parts = runs.map(([name, row, rows]): Part => {
      const part = { name, row, fileRow: total, rows }
      total += rows
      return part
    })
    this.tensors.push({ fileName, shape: [total, ...this.#shape(parts[0]!.name).slice(1)], parts })
  }

  /** All parameters below one of our paths, under another path, with the same names after it unless renamed. */
  below(filePath: string, path: string, renamed: Readonly<Record<string, string>> = {}): void {
    for (const name of this.#shapes.keys()) {
      if (!name.startsWith(`${path}.`)) continue
      const rest = name.slice(path.length + 1)
      this.same(`${filePath}.${renamed[rest] ?? rest}`, name)
    }
  }

  /** The head of a tied model, which a file may have too. */
  copy(fileName: string, of: string): void {
    const { shape } = this.tensors.find((tensor) => tensor.fileName === of)!
    this.tensors.push({ fileName, shape, parts: [], copyOf: of })
  }

  /** The head: of its own where we have one, else the embedding's copy. */
  head(fileName: string, embedding: string): void {
    if (this.has("lm_head.weight")) this.same(fileName, "lm_head.weight")
    else this.copy(fileName, embedding)
  }

  #shape(name: string): readonly number[] {
    const shape = this.#shapes.get(name)
    expect(shape !== undefined, "BAD_CHECKPOINT", () => `table: a parameter ${name} is expected, the model has none`)
    return shape
  }
}
