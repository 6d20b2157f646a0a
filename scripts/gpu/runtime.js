/**
 * A smaller copy of the Node that runs this: without symbols, and with the Unicode data of other languages than English
 * blanked, of which a bundle that prints numbers has no need. A third of the bundle would be those.
 */
import { execFileSync } from "node:child_process"
import { chmodSync, copyFileSync, readFileSync, writeFileSync } from "node:fs"

/** Of languages other than English, whatever they describe, and the dictionaries that divide words of some scripts. */
const unneeded = /^(?:\w+\/)?(?!en[_.]|res_index)[a-z]{2,3}(?:_\w+)?\.res$|^brkitr\/.*\.dict$/

/**
 * Blanks items of ICU's common data, which a full build of Node holds: a header that names its format "CmnD" at byte 12, then
 * a table of name and data offsets, both counted from the table, in the order of the data.
 *
 * @see unicode-org/icu, icu4c/source/common/ucmndata.h
 */
function blankLanguages(bytes) {
  let blanked = 0
  for (let at = bytes.indexOf("CmnD"); at >= 0; at = bytes.indexOf("CmnD", at + 1)) {
    const start = at - 12
    if (start < 0 || bytes.readUInt16LE(start + 2) !== 0x27da) continue // the word alone, in code
    const table = start + bytes.readUInt16LE(start)
    const count = bytes.readUInt32LE(table)
    for (let i = 0; i + 1 < count; i++) {
      const entry = table + 4 + 8 * i
      const nameAt = table + bytes.readUInt32LE(entry)
      const name = bytes.toString("latin1", nameAt, bytes.indexOf(0, nameAt)).replace(/^icudt\w+\//, "")
      const [begin, end] = [bytes.readUInt32LE(entry + 4), bytes.readUInt32LE(entry + 12)]
      if (!unneeded.test(name) || end < begin) continue
      bytes.fill(0, table + begin, table + end)
      blanked += end - begin
    }
  }
  return blanked
}

/** Writes the copy and runs it. Returns the bytes that were blanked; 0 for a Node that was built without that data. */
export function copyNode(to) {
  copyFileSync(process.execPath, to)
  chmodSync(to, 0o755)
  execFileSync("strip", [to])
  const bytes = readFileSync(to)
  const blanked = blankLanguages(bytes)
  writeFileSync(to, bytes)
  const said = execFileSync(to, ["-p", "[process.version, (1234.5).toLocaleString('en'), 'É'.toLowerCase()].join()"], {
    encoding: "utf8",
  })
  if (said.trim() !== `${process.version},1,234.5,é`)
    throw new Error(`the smaller Node is expected to work, got ${said}`)
  return blanked
}
