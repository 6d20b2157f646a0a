import { existsSync, readdirSync } from "node:fs"
import { join } from "node:path"
import { defineConfig } from "vitepress"

const api = join(import.meta.dirname, "../api")

/** The reference that typedoc wrote, by kind and name. */
const reference = () =>
  ["classes", "functions", "interfaces", "type-aliases", "variables", "selscan/namespaces/ops/variables"].flatMap(
    (kind) => {
      const pages = markdownUnder(join(api, kind))
      if (pages.length === 0) return []
      const items = pages.map((path) => ({ text: path.split("/").at(-1)!.slice(0, -3), link: `/api/${kind}/${path}` }))
      return [{ text: kind.includes("ops") ? "ops" : kind.replace("-", " "), collapsed: true, items }]
    },
  )

function markdownUnder(folder: string): string[] {
  if (!existsSync(folder)) return []
  const paths = readdirSync(folder, { recursive: true, encoding: "utf8" })
  return paths.filter((path) => path.endsWith(".md") && !path.endsWith("index.md")).sort()
}

/** Equations of doc comments are indented, which Markdown would run together: they become blocks. */
const equations = (text: string) =>
  text.replaceAll(/(?<=\n\n)(?: {2,3}\S.*(?:\n|$))+(?=\n|$)/g, (block) => block.replaceAll(/^ {2,3}/gm, "    "))

export default defineConfig({
  markdown: {
    config: (markdown) => {
      markdown.core.ruler.before("normalize", "equations", (state) => {
        if (state.env.relativePath?.startsWith("api/")) state.src = equations(state.src)
      })
    },
  },
  title: "selscan",
  description: "Selective state-space language models for Node.js: a native addon whose kernels train and run them.",
  // Dead links fail the build; what is hosted elsewhere is not asked.
  ignoreDeadLinks: false,
  cleanUrls: true,
  themeConfig: {
    search: { provider: "local" },
    outline: [2, 3],
    nav: [
      { text: "Guide", link: "/" },
      { text: "API", link: "/api/" },
    ],
    sidebar: [
      {
        text: "Use",
        items: [
          { text: "Quick start", link: "/" },
          { text: "Sessions", link: "/sessions" },
          { text: "Checkpoints", link: "/checkpoints" },
          { text: "Train", link: "/train" },
          { text: "Devices", link: "/devices" },
        ],
      },
      {
        text: "Build",
        items: [
          { text: "Compose a model", link: "/compose" },
          { text: "Add an op", link: "/adding-an-op" },
          { text: "Same bits", link: "/same-bits" },
        ],
      },
      { text: "API", link: "/api/", items: reference() },
    ],
  },
})
