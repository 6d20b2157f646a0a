/**
 * Lets Node import the bundle's .ts files: their types have been taken out when it was packed, so they are JavaScript under
 * the names by which tests and benches look for them.
 */
import { register } from "node:module"

const hooks = `
import { readFile } from "node:fs/promises"
import { fileURLToPath } from "node:url"
export async function load(url, context, next) {
  if (!url.startsWith("file:") || !/[.]ts([?]|$)/.test(url)) return next(url, context)
  return { format: "module", source: await readFile(fileURLToPath(url)), shortCircuit: true }
}`
register(`data:text/javascript,${encodeURIComponent(hooks)}`)
