/**
 * MegaByte: as lucidrains/MEGABYTE-pytorch names it, megabyte.json with the arguments of its constructor, and in our own form. Queries
 * are one tensor there, keys and values another; ours are one. Two stages are what we compute.
 */
import { expect } from "../errors.ts"
import type { MegaByteConfig } from "../models/megabyte.ts"
import { MegaByte } from "../models/megabyte.ts"
import type { Fields } from "./config-fields.ts"
import type { Family, Table } from "./family.ts"
import { depthMost } from "./patterns.ts"

const headDimMost = 256
const patchMost = 2 ** 12

/** What both forms have in common. */
const shared = {
  name: "MegaByte",
  suits: (config: object) => "kind" in config && config.kind === "megabyte",
  difference: (wanted: MegaByteConfig, got: MegaByteConfig) => {
    const names = [
      "vocab",
      "dims",
      "depths",
      "patches",
      "patch",
      "headDim",
      "heads",
      "ffMult",
      "relPos",
      "posEmb",
    ] as const
    const other = names.find((name) => `${wanted[name]}` !== `${got[name]}`)
    return other && `${other} ${wanted[other]}`
  },
  // Learned positions are as many as there are; the others follow the number.
  withContext: (config: MegaByteConfig, positions: number) => {
    const { patches, patch } = config
    expect(
      !config.posEmb || positions === patches * patch,
      "BAD_OPTION",
      () =>
        `load: contextMax is the ${patches * patch} positions that this model has learned, got ${positions}; leave it out`,
    )
    return config.posEmb ? config : { ...config, patches: Math.ceil(positions / patch) }
  },
  network: (config: MegaByteConfig) => new MegaByte(config),
}

export const megabyte: Family<MegaByteConfig> = {
  ...shared,
  naming: "original",
  configFile: "megabyte.json",
  mark: "transformers.0.layers.0.0.to_q.weight",
  ignored: /^transformers\.\d+\.rotary_emb\.inv_freq$/,
  recognises: ({ raw }) => raw.num_tokens !== undefined && raw.max_seq_len !== undefined,
  read: readArguments,
  write: ({ vocab, dims, depths, patches, patch, headDim, heads, ffMult, relPos, posEmb }) => ({
    num_tokens: vocab,
    dim: dims,
    depth: depths,
    max_seq_len: [patches, patch],
    dim_head: headDim,
    heads,
    ff_mult: ffMult,
    rel_pos: relPos,
    pos_emb: posEmb,
  }),
  tensors: theirTensors,
}

/** With our names; training writes it. */
export const megabyteOwn: Family<MegaByteConfig> = {
  ...shared,
  naming: "selscan",
  configFile: "config.json",
  mark: "transformers.0.layers.0.0.mixer.qkv.weight",
  recognises: ({ raw }) => raw.model_type === "selscan-megabyte",
  read: (fields) => {
    fields.only(["model_type", "selscan", "quantization_config", ...ownFields])
    const [dims, depths] = [pair(fields, "dims", 2, 2 ** 20), pair(fields, "depths", 1, depthMost)]
    const sizes = {
      vocab: fields.count("vocab"),
      dims,
      depths,
      patches: fields.count("patches"),
      patch: fields.count("patch", { most: patchMost }),
    }
    const heads = {
      headDim: fields.count("headDim", { most: headDimMost }),
      heads: fields.count("heads", { most: 65536 }),
    }
    const rest = {
      ffMult: fields.count("ffMult", { most: 256 }),
      relPos: fields.flag("relPos"),
      posEmb: fields.flag("posEmb"),
    }
    return held(fields, { kind: "megabyte", ...sizes, ...heads, ...rest })
  },
  write: ({ kind: _kind, extra: _extra, ...fields }) => ({ model_type: "selscan-megabyte", ...fields }),
  tensors: (table) => {
    for (const name of table.names) table.same(name, name)
  },
}

const ownFields = ["vocab", "dims", "depths", "patches", "patch", "headDim", "heads", "ffMult", "relPos", "posEmb"]

function readArguments(fields: Fields): MegaByteConfig {
  const single = typeof fields.raw.dim === "number"
  const dims = single
    ? ([fields.count("dim", { least: 2, most: 2 ** 20 }), fields.count("dim")] as const)
    : pair(fields, "dim", 2, 2 ** 20)
  const [patches, patch] = pair(fields, "max_seq_len", 1, 2 ** 24)
  fields.require(patch <= patchMost, "max_seq_len", `a patch of at most ${patchMost} bytes`)
  return held(fields, {
    kind: "megabyte",
    vocab: fields.count("num_tokens"),
    dims,
    depths: pair(fields, "depth", 1, depthMost),
    patches,
    patch,
    headDim: fields.count("dim_head", { absent: 64, most: headDimMost }),
    heads: fields.count("heads", { absent: 8, most: 65536 }),
    ffMult: fields.count("ff_mult", { absent: 4, most: 256 }),
    relPos: fields.flag("rel_pos", false),
    posEmb: fields.flag("pos_emb", false),
  })
}

/** Two whole numbers, of the global and the local stage. */
function pair(fields: Fields, name: string, least: number, most: number): readonly [number, number] {
  const value = fields.raw[name]
  const whole = (size: unknown) => typeof size === "number" && Number.isInteger(size) && size >= least && size <= most
  const good = Array.isArray(value) && value.length === 2 && value.every(whole)
  fields.require(good, name, `two whole numbers from ${least} to ${most}, for we compute two stages`)
  return value as [number, number]
}

/** Holds a model to what its layers can be. */
function held(fields: Fields, config: MegaByteConfig): MegaByteConfig {
  const { vocab, dims, patch, patches, headDim, heads, ffMult, relPos, depths } = config
  if (relPos && headDim % 2 !== 0) fields.refuse("heads of an even size, whose halves turn together", `${headDim}`)
  const widest = Math.max(vocab, patches, patch * dims[1], ffMult * Math.max(...dims), 3 * heads * headDim)
  const largest = widest * Math.max(...dims, patch)
  if (largest > 2 ** 40) fields.refuse("matrices of at most 2^40 elements", `${largest}`)
  if (depths[0] + depths[1] > depthMost) fields.refuse(`at most ${depthMost} layers`, `${depths[0] + depths[1]}`)
  return config
}

/** The file's name of every one of our parameters. */
function theirTensors(table: Table, { depths, heads, headDim, posEmb }: MegaByteConfig): void {
  const inner = heads * headDim
  for (const stage of [0, 1] as const) {
    table.flat(`start_tokens.${stage}`, `start_tokens.${stage}`)
    if (posEmb) table.same(`pos_embs.${stage}.weight`, `pos_embs.${stage}.weight`)
    for (let i = 0; i < depths[stage]; i++) {
      const [attention, mlp] = [`transformers.${stage}.layers.${i}.0`, `transformers.${stage}.layers.${i}.1`]
      const qkv = `${attention}.mixer.qkv.weight`
      table.same(`${attention}.norm.g`, `${attention}.norm.weight`)
      table.rows(`${attention}.to_q.weight`, [[qkv, 0, inner]])
      table.rows(`${attention}.to_kv.weight`, [[qkv, inner, 2 * inner]])
      table.same(`${attention}.to_out.weight`, `${attention}.mixer.out_proj.weight`)
      table.same(`${mlp}.0.g`, `${mlp}.norm.weight`)
      for (const [theirs, ours] of [
        ["1", "fc1"],
        ["4", "fc2"],
      ]) {
        for (const part of ["weight", "bias"]) table.same(`${mlp}.${theirs}.${part}`, `${mlp}.mixer.${ours}.${part}`)
      }
    }
    table.same(`transformers.${stage}.norm.g`, `transformers.${stage}.norm.weight`)
  }
  for (const path of ["token_embs.0", "token_embs.1", "to_next_transformer_projections.0.1", "to_logits"])
    table.below(path, path)
}
