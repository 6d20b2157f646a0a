import { execFileSync, spawnSync } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, utimesSync, writeFileSync } from "node:fs"
import { type FileHandle, open } from "node:fs/promises"
import { join } from "node:path"
import test from "ava"
import { writeAtomically, writeFileAtomically } from "../../lib/checkpoint/atomic.ts"
import { writeSafetensors } from "../../lib/checkpoint/safetensors.ts"
import { SelscanError } from "../../lib/errors.ts"
import { temporaryFolder } from "./helpers.ts"

const folder = temporaryFolder()

/** A folder that holds one file with the text `old`. */
function withOld(name: string): { home: string; path: string } {
  const home = join(folder, name)
  mkdirSync(home)
  writeFileSync(join(home, "file"), "old")
  return { home, path: join(home, "file") }
}

test("a file is replaced by everything that was appended, and nothing else stays in the folder", async (t) => {
  const { home, path } = withOld("replace")
  await writeAtomically(path, async (file) => {
    await file.write(Buffer.from("new "))
    t.is(readFileSync(path, "utf8"), "old")
    await file.write(new Uint8Array(0))
    await file.write(Buffer.from("text"))
    t.is(file.sizeBytes, 8)
  })
  t.is(readFileSync(path, "utf8"), "new text")
  await writeFileAtomically(path, "ünï")
  t.is(readFileSync(path, "utf8"), "ünï")
  t.deepEqual(readdirSync(home), ["file"])
})

test("many writers of one path at once leave one whole file", async (t) => {
  const { home, path } = withOld("race")
  const texts = Array.from({ length: 20 }, (_, i) => `${i}`.repeat(1000 + i))
  await Promise.all(texts.map((text) => writeFileAtomically(path, text)))
  t.true(texts.includes(readFileSync(path, "utf8")))
  t.deepEqual(readdirSync(home), ["file"])
})

test("an error of the writer comes out unchanged and the old file stays", async (t) => {
  const { home, path } = withOld("thrown")
  const thrown = new RangeError("mine")
  const failing = writeAtomically(path, async (file) => {
    await file.write(Buffer.from("half"))
    throw thrown
  })
  t.is(await t.throwsAsync(failing), thrown)
  t.is(readFileSync(path, "utf8"), "old")
  t.deepEqual(readdirSync(home), ["file"])
})

test("a folder that is missing, or a folder in the file's place, is a DISK error", async (t) => {
  const { home, path } = withOld("unwritable")
  const missing = await t.throwsAsync(writeFileAtomically(join(home, "none", "file"), "x"), { code: "DISK" })
  t.regex(missing.message, /none\/file: expected to write the file, got ENOENT.*; check the folder/)
  await t.throwsAsync(writeFileAtomically(join(path, "below"), "x"), { code: "DISK" })
  mkdirSync(join(home, "folder"))
  await t.throwsAsync(writeFileAtomically(join(home, "folder"), "x"), { code: "DISK" })
  t.deepEqual(readdirSync(home).sort(), ["file", "folder"])
})

const onDevFull = existsSync("/dev/full") ? test : test.skip

/** The temporary file is there, but what is written goes to a device that is always full: the kernel's own ENOSPC. */
async function openFull(path: string): Promise<FileHandle> {
  symlinkSync("/dev/full", path)
  return open(path, "w")
}

onDevFull("a full disk is a DISK error that says so; the old file stays, the temporary one goes", async (t) => {
  const { home, path } = withOld("full")
  const error = await t.throwsAsync(writeFileAtomically(path, "new", { open: openFull }), { instanceOf: SelscanError })
  t.is((error as SelscanError).code, "DISK")
  t.is((error as SelscanError).details.reason, "ENOSPC")
  t.regex(error.message, /no space left on device.*; free some space/)
  const entry = { name: "w", dtype: "F32" as const, shape: [4], data: async () => new Uint8Array(16) }
  await t.throwsAsync(writeSafetensors(path, [entry], { open: openFull }), { code: "DISK" })
  t.is(readFileSync(path, "utf8"), "old")
  t.deepEqual(readdirSync(home), ["file"])
})

const onPosix = process.platform === "win32" ? test.skip : test

onPosix("a disk that refuses in the middle of a large tensor leaves the old file", (t) => {
  const { home, path } = withOld("quota")
  const library = new URL("../../lib/checkpoint/safetensors.ts", import.meta.url)
  const script = `
    import { writeSafetensors } from ${JSON.stringify(library.href)}
    const entry = (name) => ({ name, dtype: "U8", shape: [400_000], data: async () => new Uint8Array(400_000) })
    await writeSafetensors(${JSON.stringify(path)}, [entry("a"), entry("b")]).catch((e) => console.log(e.code, e.details.reason))`
  // The shell's limit on file sizes, 1,000 blocks of 512 bytes or 1 KB by shell: the second tensor crosses 512,000 bytes.
  const limited = `ulimit -f 1000; exec "$0" --import=tsx --input-type=module -e "$1"`
  const output = execFileSync("sh", ["-c", limited, process.execPath, script], { encoding: "utf8" })
  t.is(output.trim(), "DISK EFBIG")
  t.is(readFileSync(path, "utf8"), "old")
  t.deepEqual(readdirSync(home), ["file"])
})

/** Root on Linux may mount, though not in every container. */
const asRoot = process.platform === "linux" && process.getuid?.() === 0 ? test : test.skip

asRoot("a file system that fills up leaves the old file and no other", async (t) => {
  const home = join(folder, "tmpfs")
  mkdirSync(home)
  if (spawnSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", home]).status !== 0) {
    t.log("this root may not mount a tmpfs")
    return t.pass()
  }
  t.teardown(() => void execFileSync("umount", [home]))
  const path = join(home, "file.safetensors")
  const entry = (size: number) => ({ name: "w", dtype: "U8" as const, shape: [size], data: new Uint8Array(size) })
  await writeSafetensors(path, [entry(600_000)])
  const old = readFileSync(path)
  const error = await t.throwsAsync(writeSafetensors(path, [entry(700_000)]), { code: "DISK" })
  t.regex(error.message, /ENOSPC/)
  t.deepEqual(readFileSync(path), old)
  t.deepEqual(readdirSync(home), ["file.safetensors"])
})

test("what a killed process left behind long ago is removed, what is recent or foreign is not", async (t) => {
  const { home, path } = withOld("stale")
  const names = [".file.123.tmp", ".file.124.tmp", ".file.txt.123.tmp", ".other.123.tmp", ".file.note.tmp"]
  for (const name of names) writeFileSync(join(home, name), "")
  const longAgo = new Date(Date.now() - 7_200_000)
  for (const name of names) if (!name.includes("124")) utimesSync(join(home, name), longAgo, longAgo)
  await writeFileAtomically(path, "new")
  t.deepEqual(readdirSync(home).sort(), ["file", ...names.slice(1)].sort())
})
