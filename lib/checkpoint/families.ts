/** The families of checkpoints, and the one that a folder, a configuration or a file's tensors belong to. */
import { access, readFile, stat } from "node:fs/promises"
import { join } from "node:path"
import { expect, SelscanError } from "../errors.ts"
import { allParameters } from "../layers/layer.ts"
import type { ModelConfig } from "../models/config.ts"
import { Fields } from "./config-fields.ts"
import { falconMamba } from "./falcon-mamba.ts"
import { type AnyConfig, type Family, type FileTensor, type Naming, Table } from "./family.ts"
import { readsInt8 } from "./int8.ts"
import { llama } from "./llama.ts"
import { mambaOriginal, mambaTransformers } from "./mamba.ts"
import { mambaByte } from "./mambabyte.ts"
import { megabyte, megabyteOwn } from "./megabyte.ts"
import { mistral } from "./mistral.ts"
import { patternNames } from "./patterns.ts"
import { samba } from "./samba.ts"
import { selscan } from "./selscan.ts"

/** Every family; where several suit a configuration, the first that can say it is taken. */
export const families: readonly Family[] = [
  ...[mambaOriginal, mambaTransformers, mambaByte, falconMamba, llama, mistral, samba, selscan],
  ...[megabyte, megabyteOwn],
]

/** Names of config files, in the order in which a folder is searched for them. */
export const configFiles: readonly string[] = [...new Set(families.map(({ configFile }) => configFile))]
/** A config has a few hundred bytes. */
const fileBytesMax = 1 << 20

/** A configuration and the family whose config file said it. */
export interface ReadConfig {
  readonly family: Family
  readonly config: AnyConfig
  /** Whether the files have matrices in 8 bits, as lib/checkpoint/int8.ts says. */
  readonly int8?: boolean
}

/**
 * Reads the text of a config file; `where` names it in errors.
 * @throws SelscanError BAD_CHECKPOINT when it is no JSON object, lacks a field, or describes a model that is not supported
 */
export function parseConfig(text: string, where: string): ReadConfig {
  const fields = Fields.parse(text, where)
  const family = families.find((family) => family.recognises(fields))
  if (family === undefined) {
    const known =
      "mamba, falcon_mamba, llama, mistral or selscan, or d_model (original Mamba, MambaByte), n_embd and n_layer (SAMBA), or num_tokens (MegaByte)"
    const { model_type: type } = fields.raw
    return fields.refuse(`model_type to be ${known}`, type === undefined ? "none" : JSON.stringify(type).slice(0, 40))
  }
  return { family, config: readWith(family, fields), ...(readsInt8(fields) && { int8: true }) }
}

function readWith(family: Family, given: Fields): AnyConfig {
  const fields = given.named(family.name)
  const config = family.read(fields)
  const extra = fields.optionalObject("selscan")
  return extra ? { ...config, extra: extra.raw } : config
}

/** The configuration of a pattern of blocks in the text of a config file; as `parseConfig`. Other models are refused. */
export const parseModelConfig = (text: string, where: string): ModelConfig => patternOf(parseConfig(text, where), where)

function patternOf({ config }: ReadConfig, where: string): ModelConfig {
  expect(
    "pattern" in config,
    "BAD_CHECKPOINT",
    () => `${where}: expected the config of a pattern of blocks, got ${described(config)}; load() takes it`,
  )
  return config
}

/**
 * Reads a folder's config.json, or where there is none its lit_config.json or megabyte.json.
 * @throws SelscanError NOT_FOUND when there is neither, BAD_INPUT for what is no path, else as `parseConfig`
 */
export async function readConfig(folder: string): Promise<ReadConfig> {
  expect(
    typeof folder === "string",
    "BAD_INPUT",
    () => `config: the path of a folder is expected, got ${typeof folder}`,
  )
  const path = await configPath(folder)
  try {
    const info = await stat(path)
    // A pipe would be waited for, and a device read, for ever.
    expect(info.isFile() && info.size <= fileBytesMax, "BAD_CHECKPOINT", () => {
      const got = info.isFile() ? info.size : "no regular file"
      return `${path}: expected a config of at most ${fileBytesMax} bytes, got ${got}; give the model's config file`
    })
    return parseConfig(await readFile(path, "utf8"), path)
  } catch (cause) {
    if (cause instanceof SelscanError) throw cause
    const message = `${path}: expected a config file, got ${(cause as Error).message}; check the path`
    throw new SelscanError("BAD_CHECKPOINT", message, { path }, { cause })
  }
}

async function configPath(folder: string): Promise<string> {
  for (const file of configFiles) {
    const path = join(folder, file)
    const found = await access(path).then(
      () => true,
      () => false,
    )
    if (found) return path
  }
  const message = `${folder}: expected a model's ${configFiles.join(" or ")}, got none; check the path`
  throw new SelscanError("NOT_FOUND", message, { folder })
}

/** The configuration of a pattern of blocks in a folder; as `readConfig`. Other models are refused. */
export async function readModelConfig(folder: string): Promise<ModelConfig> {
  return patternOf(await readConfig(folder), folder)
}

/** The fields that a family writes, or in words what it has none for. */
function said(family: Family, config: AnyConfig): { fields: Record<string, unknown>; unsaid?: string } {
  const fields = family.write(config)
  try {
    const again = readWith(family, Fields.of(fields, family.configFile))
    const unsaid = family.difference(config, again)
    return unsaid === undefined ? { fields } : { fields, unsaid }
  } catch (error) {
    if (!(error instanceof SelscanError) || error.code !== "BAD_CHECKPOINT") throw error
    return { fields, unsaid: `${error.details.got} for ${error.details.expected}` }
  }
}

const described = (config: AnyConfig): string =>
  "pattern" in config ? `the pattern ${patternNames(config.pattern)}` : "a MegaByte"

/**
 * The family that a configuration is written as.
 *
 * Without a naming it is the form that other programs read and that can say the model: original for Mamba, transformers for Llama and
 * Mistral, original for MegaByte; for every other pattern our own.
 * @throws SelscanError BAD_CHECKPOINT, with what that naming has no words for
 */
export function familyOf(config: AnyConfig, naming?: Naming): Family {
  const suited = families.filter((family) => family.suits(config) && family.naming === (naming ?? family.naming))
  if (naming === undefined) {
    const public_ = suited.filter((family) => family !== samba)
    return public_.find((family) => said(family, config).unsaid === undefined) ?? selscan
  }
  const family = suited.find((family) => said(family, config).unsaid === undefined)
  if (family !== undefined) return family
  const got = suited[0] ? said(suited[0], config).unsaid : described(config)
  const names = new Set(families.filter((family) => family.naming === naming).map(({ name }) => name))
  const message = `config: expected a model that naming ${naming} has words for (${[...names].join(", ")}), got ${got}; choose another naming, such as selscan`
  throw new SelscanError("BAD_CHECKPOINT", message, { naming, got })
}

/**
 * The fields of a config file; `JSON.stringify` them. Without a naming: the form whose tensors have our own names, which is the
 * original one of Mamba where it can say the model, else selscan.
 * @throws SelscanError BAD_CHECKPOINT, with what that naming has no words for
 */
export function modelConfigFields(config: AnyConfig, naming: Naming = ownNaming(config)): Record<string, unknown> {
  const { fields } = said(familyOf(config, naming), config)
  return config.extra ? { ...fields, selscan: config.extra } : fields
}

/** The naming in which a file's tensors are our parameters by their own names. */
export function ownNaming(config: AnyConfig): Naming {
  return familyOf(config) === mambaOriginal ? "original" : "selscan"
}

/** Every tensor that a family's file has for a configuration. */
export function tensorsOf(family: Family, config: AnyConfig): readonly FileTensor[] {
  const table = new Table(allParameters(family.network(config)))
  family.tensors(table, config)
  return table.tensors
}

/**
 * The family whose names a file's tensors have: the config's own, or the same family in its other naming.
 * @throws SelscanError BAD_CHECKPOINT when they are those of another family
 */
export function familyOfTensors(read: ReadConfig, names: { has(name: string): boolean }, where: string): Family {
  const { family } = read
  if (names.has(family.mark)) return family
  const marked = families.filter(({ mark }) => names.has(mark))
  const sibling = marked.find(({ name }) => name === family.name)
  if (sibling !== undefined) return sibling
  const others = [...new Set(marked.map(({ name }) => name))].join(" or ")
  expect(others === "", "BAD_CHECKPOINT", () => {
    return `${where}: expected the tensors of a ${family.name} model, as ${family.configFile} says, got those of ${others}; pair it with its own ${family.configFile}`
  })
  return family
}
