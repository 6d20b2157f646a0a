#!/usr/bin/env node
/**
 * Disassembles the addon's objects: outside the namespaces of an instruction set, no function may hold an instruction that
 * a plain x86-64 processor lacks. Most dangerous are inline functions that several objects share (a std::vector's growth):
 * the linker keeps one copy, and if that one was compiled for AVX-512, portable code dies in it on an older machine.
 */
import { execFileSync } from "node:child_process"
import { readdirSync } from "node:fs"
import { join, resolve } from "node:path"

const folder = resolve(import.meta.dirname, "..", process.argv[2] ?? "build/Release/obj.target")

// Every VEX or EVEX instruction begins with v, save those on mask registers, tiles and the integers of BMI2.
const beyondPortable =
  /^(v(?!err|erw|mcall)|k(mov|and|or|xor|test|unpck|shift|add|not)|tile|tdp|ldtile|sttile|(shlx|shrx|sarx|rorx|mulx|pdep|pext|bzhi)$)/
const beyondAvx2 = /%zmm|%k[0-7]|^tile|^tdp/
const namespaceOf = /selscan::(avx2|avxvnni|avx512|avx512vnni|avx512bf16|amx)::/g

/** Names of functions in an object that use what they may not, with the first such instruction. */
function offenders(object) {
  const text = execFileSync("objdump", ["-d", "-C", "--no-show-raw-insn", object], {
    maxBuffer: 2 ** 30,
    encoding: "utf8",
  })
  const found = new Map()
  let name = ""
  let allowed = new Set()
  for (const line of text.split("\n")) {
    const head = /^[0-9a-f]+ <(.*)>:$/.exec(line)
    if (head) {
      name = head[1]
      allowed = new Set([...name.matchAll(namespaceOf)].map((match) => match[1]))
      functions++
      continue
    }
    const instruction = /^\s+[0-9a-f]+:\t(.*)$/.exec(line)?.[1]
    if (instruction === undefined || found.has(name)) continue
    const avx2Only = [...allowed].every((set) => set === "avx2" || set === "avxvnni")
    if (!avx2Only) continue
    if ((allowed.size > 0 ? beyondAvx2 : beyondPortable).test(instruction)) found.set(name, instruction.trim())
  }
  return found
}

const objects = readdirSync(folder, { recursive: true })
  .filter((file) => file.endsWith(".o") && file.includes("native"))
  .sort()
let functions = 0
let wrong = 0
if (process.arch !== "x64") {
  console.log("check-portable: only x86-64 has instruction sets to mix up")
} else if (objects.length === 0) {
  console.error(`check-portable: no objects under ${folder}; build the addon first`)
  process.exitCode = 1
} else {
  for (const object of objects) {
    for (const [name, instruction] of offenders(join(folder, object))) {
      wrong++
      console.error(`${object}: ${name}: ${instruction}`)
    }
  }
  console.log(
    `check-portable: ${objects.length} objects, ${functions} functions, ${wrong} with instructions beyond their set`,
  )
  process.exitCode = wrong === 0 ? 0 : 1
}
