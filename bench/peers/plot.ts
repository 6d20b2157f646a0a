/**
 * How many times the speed of llama.cpp: a dot for every task on a logarithmic axis, from the line where both are equal.
 */
import { scaleLog } from "d3-scale"
import type { Statistics } from "../measure.ts"

export interface Dot extends Statistics {
  /** `mamba-130m, bf16: prefill 512` */
  readonly name: string
  /** Beside the dot: the speeds. */
  readonly note: string
}

const width = 760
const left = 250
const right = 200
const top = 56
const step = 24
/** Okabe and Ito's blue and vermilion, told apart by colour-blind readers too. */
const colours = { win: "#0072b2", loss: "#d55e00" }

/** An SVG; whiskers are the smallest and largest ratio of a round. */
export function ratioPlot(title: string, dots: readonly Dot[]): string {
  const low = Math.min(0.5, ...dots.map(({ min }) => 0.9 * min))
  const high = Math.max(2, ...dots.map(({ max }) => 1.1 * max))
  const across = scaleLog()
    .domain([low, high])
    .range([left, width - right])
  const height = top + step * dots.length + 44
  const base = height - 36
  const ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100].filter((tick) => tick >= low && tick <= high)
  const parts = [
    text(width / 2, 22, title, 'text-anchor="middle" font-size="15" font-weight="600"'),
    ...ticks.flatMap((tick) => [
      rule(
        across(tick),
        top - 12,
        across(tick),
        base,
        tick === 1 ? 'stroke="#888" stroke-width="1.5"' : 'stroke="#ddd"',
      ),
      text(across(tick), base + 16, `${tick}×`, 'text-anchor="middle"'),
    ]),
    ...dots.flatMap(({ name, note, median, min, max }, i) => {
      const y = top + step * i
      const colour = median < 1 ? colours.loss : colours.win
      return [
        text(left - 12, y + 4, name, 'text-anchor="end"'),
        rule(across(1), y, across(median), y, `stroke="${colour}" stroke-width="2"`),
        rule(across(min), y, across(max), y, `stroke="${colour}" stroke-width="6" stroke-opacity="0.3"`),
        `<circle cx="${across(median).toFixed(1)}" cy="${y}" r="4.5" fill="${colour}"/>`,
        text(width - right + 14, y + 4, note, ""),
      ]
    }),
  ]
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="system-ui, sans-serif" font-size="12" fill="#222">
<rect width="${width}" height="${height}" fill="#fff"/>
${parts.join("\n")}
</svg>
`
}

const rule = (x1: number, y1: number, x2: number, y2: number, attributes: string) =>
  `<line x1="${x1.toFixed(1)}" y1="${y1}" x2="${x2.toFixed(1)}" y2="${y2}" ${attributes}/>`

function text(x: number, y: number, content: string, attributes: string): string {
  const escaped = content.replace(/[&<>]/g, (char) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[char]!)
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escaped}</text>`
}
